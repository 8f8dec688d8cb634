package service

import (
	"fmt"
	"strconv"
	"strings"
)

// labelsPrefix begins the labels of endpoints that mean something here.
const labelsPrefix = "flanneld.io/"

// CheckEndpointLabel returns nil if an endpoint may be given a label, else a
// *FieldError. Labels of others mean nothing here and may be any text.
func CheckEndpointLabel(key, value string) error {
	if key == "" || !isText(key) || !isText(value) {
		return &FieldError{"label", quote(key + "=" + value), fmt.Sprintf("must be printable, a key and a value of at most %d bytes each", maxText)}
	}
	name, isPort := strings.CutPrefix(key, LabelPort)
	switch {
	case key == LabelWeight:
		if n, err := strconv.Atoi(value); err != nil || n < 1 || n > maxWeight || strconv.Itoa(n) != value {
			return &FieldError{key, quote(value), fmt.Sprintf("must be a number from 1 to %d: so many times as many connections go there", maxWeight)}
		}
	case isPort:
		if err := CheckLabel("port in "+quote(key), name); err != nil {
			return err
		}
		if n, err := strconv.ParseUint(value, 10, 16); err != nil || n == 0 || strconv.FormatUint(n, 10) != value {
			return &FieldError{key, quote(value), "must be the number of the port, from 1 to 65535"}
		}
	case strings.HasPrefix(key, labelsPrefix):
		return &FieldError{"label", quote(key), fmt.Sprintf("means nothing: flanneld knows %s and %sNAME; begin labels of your own otherwise", LabelWeight, LabelPort)}
	}
	return nil
}
