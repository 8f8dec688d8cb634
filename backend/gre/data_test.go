package gre

import (
	"encoding/json"
	"strings"
	"testing"
)

var headers = map[string]header{
	`{}`:                        {},
	`{"Key":0}`:                 {Keyed: true},
	`{"Key":7}`:                 {Key: 7, Keyed: true},
	`{"Key":4294967295}`:        {Key: 1<<32 - 1, Keyed: true},
	`{"Checksum":true}`:         {Checksum: true},
	`{"Key":7,"Checksum":true}`: {Key: 7, Keyed: true, Checksum: true},
}

func TestDataIsTakenByWhoSendsTheSame(t *testing.T) {
	for text, h := range headers {
		if got := string(marshalData(h)); got != text {
			t.Errorf("%+v is written as %s, want %s", h, got, text)
		}
		for other := range headers {
			if err := checkData([]byte(other), h); (err == nil) != (other == text) {
				t.Errorf("a peer with %s is taken by a host with %s: %v", other, text, err)
			}
		}
	}
}

func TestOtherDataIsRefusedWithWhatIsWrong(t *testing.T) {
	own := header{Key: 7, Keyed: true, Sequence: true}
	for text, want := range map[string]string{
		``:                          "no BackendData",
		`null`:                      "must be as in",
		`7`:                         "must be as in",
		`{"Key":"7"}`:               "must be as in",
		`{"Key":4294967303}`:        "must be as in",
		`{"Key":7.5}`:               "must be as in",
		`{"Key":null}`:              "no Key is not this network's Key 7",
		`{"Key":8}`:                 "Key 8 is not this network's Key 7",
		`{"Key":7,"Checksum":true}`: "its Checksum is true, this network's false",
		`{"Key":7` + strings.Repeat(" ", 5000) + `}`: "5009 bytes",
	} {
		if err := checkData([]byte(text), own); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40s: got %v, want %q in it", text, err, want)
		}
	}
	if err := checkData([]byte(`{"Key":7,"Later":[1,2]}`), own); err != nil {
		t.Errorf("a field that we do not know: %v", err)
	}
}

func FuzzBackendData(f *testing.F) {
	for text := range headers {
		f.Add([]byte(text), uint32(7), true, false)
	}
	f.Add([]byte(`{"key":7,"KEY":8}`), uint32(8), true, true)
	f.Fuzz(func(t *testing.T, raw []byte, key uint32, keyed, checksum bool) {
		err := checkData(raw, header{Key: key, Keyed: keyed, Checksum: checksum})
		switch {
		case err == nil && !json.Valid(raw):
			t.Errorf("%q is taken", raw)
		case err != nil && (len(err.Error()) > 300 || strings.ContainsAny(err.Error(), "\n\x00\x1b")):
			t.Errorf("error not fit for a log: %q", err)
		}
	})
}
