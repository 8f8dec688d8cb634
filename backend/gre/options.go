package gre

import (
	"encoding/json"
	"math"
	"strings"

	"github.com/flanneld/flanneld/backend/routed"
	"github.com/flanneld/flanneld/subnet"
)

// header is the optional fields of the GRE header. Both ends of a tunnel must
// agree on all but Sequence, which nobody demands.
type header struct {
	Key      uint32
	Keyed    bool // whether there is a Key on the wire
	Checksum bool
	Sequence bool
}

// options are the GRE options of the configuration's Backend.
type options struct {
	header
	MTU    int  // of the underlay; 0: the interface's
	Mesh   bool // a device for each peer
	Direct routed.Direct
}

// What the outer headers take: IP, four bytes of GRE and four for each
// optional field.
const (
	ip4Len, ip6Len   = 20, 40
	greLen, fieldLen = 4, 4
)

func (h header) len() int {
	n := greLen
	for _, has := range []bool{h.Keyed, h.Checksum, h.Sequence} {
		if has {
			n += fieldLen
		}
	}
	return n
}

func (h header) overhead() routed.Overhead {
	return routed.Overhead{V4: ip4Len + h.len(), V6: ip6Len + h.len()}
}

// parseOptions reads the Backend object. Errors are *subnet.ConfigError.
func parseOptions(n subnet.Config) (options, error) {
	var o options
	var mtu routed.Option
	direct := routed.Direct(math.MaxUint8) // not set
	err := routed.ParseOptions(n, "Key, Checksum, Sequence, Mode, MTU, DirectRouting", func(name string, f routed.Option) (bool, error) {
		switch name {
		case "key":
			return true, o.setKey(f)
		case "checksum":
			return true, f.Bool(&o.Checksum)
		case "sequence":
			return true, f.Bool(&o.Sequence)
		case "mode":
			return true, o.setMode(f)
		case "mtu": // what is enough depends on the others
			mtu = f
			return true, nil
		case "directrouting":
			return true, f.Direct(&direct)
		}
		return false, nil
	})
	if err != nil {
		return o, err
	}
	switch o.Direct = direct; {
	case direct != math.MaxUint8:
	case o.Mesh: // somebody between the hosts wants to see tunnels
		o.Direct = routed.Never
	default:
		o.Direct = routed.ByWay
	}
	if mtu.Name != "" {
		err = mtu.Size(&o.MTU, n.Ranges, o.overhead())
	}
	return o, err
}

func (o *options) setKey(f routed.Option) error {
	var key *uint32
	if err := json.Unmarshal(f.Value, &key); err != nil {
		return f.Refuse("must be a whole number from 0 to 4294967295, or absent for tunnels without a key")
	}
	if key != nil {
		o.Key, o.Keyed = *key, true
	}
	return nil
}

func (o *options) setMode(f routed.Option) error {
	var mode string
	if json.Unmarshal(f.Value, &mode) == nil {
		switch strings.ToLower(mode) {
		case "", "external":
			return nil
		case "mesh":
			o.Mesh = true
			return nil
		}
	}
	return f.Refuse(`must be "mesh" for a device for each peer, or "external" for one for all`)
}
