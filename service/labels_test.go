package service

import (
	"errors"
	"strings"
	"testing"
)

func TestLabelsThatMeanSomethingAreChecked(t *testing.T) {
	for label, says := range map[string]string{
		"app=sample":                          "",
		"app=":                                "",
		"example.com/flanneld.io/x=y":         "",
		"flanneld.io/weight=1":                "",
		"flanneld.io/weight=100":              "",
		"flanneld.io/port-http=8080":          "",
		"flanneld.io/weight=0":                "from 1 to 100",
		"flanneld.io/weight=101":              "from 1 to 100",
		"flanneld.io/weight=+3":               "from 1 to 100",
		"flanneld.io/weight=":                 "from 1 to 100",
		"flanneld.io/port-http=0":             "from 1 to 65535",
		"flanneld.io/port-http=65536":         "from 1 to 65535",
		"flanneld.io/port-http=080":           "from 1 to 65535",
		"flanneld.io/port-HTTP=80":            "must be a DNS label",
		"flanneld.io/port-=80":                "is missing",
		"flanneld.io/wieght=3":                "flanneld knows flanneld.io/weight and flanneld.io/port-NAME",
		"=x":                                  "must be printable",
		"a=\x1b[31m":                          "must be printable",
		"a=" + strings.Repeat("x", maxText+1): "must be printable",
	} {
		key, value, _ := strings.Cut(label, "=")
		err := CheckEndpointLabel(key, value)
		if (err == nil) != (says == "") || err != nil && !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", label, err)
		}
		if _, ok := errors.AsType[*FieldError](err); err != nil && !ok {
			t.Errorf("%s: %T", label, err)
		}
	}
}
