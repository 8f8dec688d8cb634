package store

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strings"
)

// KeepUnknown returns the JSON object value with the fields added that old has
// and whose names are not known, in whatever case: a newer version may have
// written them. If old is no object, value is returned as it is.
func KeepUnknown(value, old []byte, known []string) []byte {
	const most = 1 << 20
	all := map[string]json.RawMessage{}
	if len(old) > most || json.Unmarshal(old, &all) != nil {
		return value
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if slices.ContainsFunc(known, func(k string) bool { return strings.EqualFold(k, name) }) {
			continue
		}
		n, err := json.Marshal(name)
		if err != nil {
			continue
		}
		body := bytes.TrimSuffix(value, []byte("}"))
		if len(body) > 1 {
			body = append(slices.Clip(body), ',')
		}
		value = slices.Concat(body, n, []byte(":"), all[name], []byte("}"))
	}
	return value
}
