package vxlan

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/flanneld/flanneld/backend/routed"
	"github.com/flanneld/flanneld/kernel/link"
)

// marshalData is flannel's BackendData. Its VNI has 16 bits, so that of a
// longer one only those are told.
func marshalData(vni uint32, mac link.MAC) json.RawMessage {
	return fmt.Appendf(nil, `{"VNI":%d,"VtepMAC":"%s"}`, uint16(vni), mac)
}

// errNoData: the lease says nothing about a family that it has a subnet of.
var errNoData = errors.New("has no BackendData")

// parseData reads a peer's BackendData and checks it against what this host's
// device is. The value comes from elsewhere: it may be anything.
func parseData(raw []byte, vni uint32, own link.MAC) (link.MAC, error) {
	if len(raw) == 0 {
		return link.MAC{}, errNoData
	}
	theirs, mac, ok := quickData(raw)
	if !ok {
		var err error
		if theirs, mac, err = slowData(raw); err != nil {
			return link.MAC{}, err
		}
	}
	switch {
	case theirs >= 0 && theirs != int64(uint16(vni)):
		return link.MAC{}, fmt.Errorf("VNI %d is not this network's %d", theirs, uint16(vni))
	case !mac.IsUnicast():
		return link.MAC{}, fmt.Errorf("VtepMAC %s is no interface's address", mac)
	case mac == own:
		return link.MAC{}, fmt.Errorf("VtepMAC %s is this host's own: one of the two is a clone, delete its device and restart its daemon", mac)
	}
	return mac, nil
}

// slowData reads any JSON that flannel would. vni is -1 where there is none.
func slowData(raw []byte) (vni int64, mac link.MAC, err error) {
	const most = 4 << 10
	if len(raw) > most {
		return 0, mac, fmt.Errorf("BackendData of %d bytes: must be at most %d", len(raw), most)
	}
	var v struct {
		VNI     *uint32
		VtepMAC *string
	}
	if err := json.Unmarshal(raw, &v); err != nil {
		return 0, mac, fmt.Errorf("BackendData %s: must be as in {\"VNI\":1,\"VtepMAC\":\"46:0a:5c:00:00:01\"}", routed.Clip(string(raw)))
	}
	vni = -1
	if v.VNI != nil {
		vni = int64(*v.VNI)
	}
	if v.VtepMAC == nil {
		return 0, mac, errors.New("BackendData has no VtepMAC")
	}
	if mac, err = link.ParseMAC(*v.VtepMAC); err != nil {
		return 0, mac, fmt.Errorf("VtepMAC %q: must be six bytes as in 46:0a:5c:00:00:01", routed.Clip(*v.VtepMAC))
	}
	return vni, mac, nil
}

// quickData reads exactly what marshalData writes, which nearly all there is
// to read looks like; ok is false for everything else.
func quickData(raw []byte) (vni int64, mac link.MAC, ok bool) {
	const macLen = len("00:00:00:00:00:00")
	rest, ok := bytes.CutPrefix(raw, []byte(`{"VNI":`))
	if !ok {
		return 0, mac, false
	}
	number, rest, ok := bytes.Cut(rest, []byte(`,"VtepMAC":"`))
	if !ok || len(number) == 0 || len(number) > 5 || len(rest) != macLen+2 || string(rest[macLen:]) != `"}` {
		return 0, mac, false
	}
	if number[0] == '0' && len(number) > 1 {
		return 0, mac, false // not JSON
	}
	for _, c := range number {
		if c < '0' || c > '9' {
			return 0, mac, false
		}
		vni = vni*10 + int64(c-'0')
	}
	for i := range mac {
		if i > 0 && rest[3*i-1] != ':' {
			return 0, mac, false
		}
		b, err := strconv.ParseUint(string(rest[3*i:3*i+2]), 16, 8)
		if err != nil {
			return 0, mac, false
		}
		mac[i] = byte(b)
	}
	return vni, mac, true
}
