package gre

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/flanneld/flanneld/backend/routed"
)

// data is BackendData: the optional fields that this host sends and demands.
type data struct {
	Key      *uint32 `json:",omitempty"`
	Checksum bool    `json:",omitempty"`
}

func marshalData(h header) json.RawMessage {
	d := data{Checksum: h.Checksum}
	if h.Keyed {
		d.Key = &h.Key
	}
	raw, _ := json.Marshal(d) // of a number and a flag: cannot go wrong
	return raw
}

// errNoData: the lease says nothing about a family that it has a subnet of.
var errNoData = errors.New("has no BackendData")

// checkData reads a peer's BackendData and says how it differs from what this
// host sends. The value comes from elsewhere: it may be anything.
func checkData(raw []byte, own header) error {
	const most = 4 << 10
	switch {
	case len(raw) == 0:
		return errNoData
	case len(raw) > most:
		return fmt.Errorf("BackendData of %d bytes: must be at most %d", len(raw), most)
	}
	var d *data
	if err := json.Unmarshal(raw, &d); err != nil || d == nil {
		return fmt.Errorf(`BackendData %s: must be as in {"Key":7}`, routed.Clip(string(raw)))
	}
	h := header{Checksum: d.Checksum}
	if d.Key != nil {
		h.Key, h.Keyed = *d.Key, true
	}
	switch {
	case h.Keyed != own.Keyed || h.Key != own.Key:
		return fmt.Errorf("%s is not this network's %s: give both hosts one configuration", h.key(), own.key())
	case h.Checksum != own.Checksum:
		return fmt.Errorf("its Checksum is %t, this network's %t: give both hosts one configuration", h.Checksum, own.Checksum)
	}
	return nil
}

// key is the key for people.
func (h header) key() string {
	if !h.Keyed {
		return "no Key"
	}
	return fmt.Sprintf("Key %d", h.Key)
}
