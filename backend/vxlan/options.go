package vxlan

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/flanneld/flanneld/subnet"
)

const (
	defaultVNI  = 1
	defaultPort = 8472 // the kernel's, which flannel leaves it to

	// What the tunnel adds to a packet: outer IP header, UDP, VXLAN, inner
	// Ethernet header.
	overhead4, overhead6 = 50, 70
	// The least MTU of a packet inside, by family.
	least4, least6 = 576, 1280

	// Interface names have at most 15 characters, "flannel." and
	// "flannel-v6." included.
	mostVNI4, mostVNI6 = 9999999, 9999
)

// options are the VXLAN options of the configuration's Backend.
type options struct {
	VNI           uint32
	Port          uint16
	MTU           int // of the underlay, as flannel's; 0: the interface's
	GBP           bool
	DirectRouting bool
}

// parseOptions reads the Backend object. Like flannel it does not care about
// the case of names; unlike flannel it refuses names it does not know. Errors
// are *subnet.ConfigError.
func parseOptions(n subnet.Config) (options, error) {
	o := options{VNI: defaultVNI, Port: defaultPort}
	if len(n.Ranges) == 0 {
		return o, &subnet.ConfigError{Field: "Network", Remedy: `must be set to the pod network, e.g. "Network":"10.244.0.0/16"`}
	}
	if len(n.Backend.Raw) == 0 {
		return o, nil
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(n.Backend.Raw, &fields); err != nil {
		return o, &subnet.ConfigError{Field: "Backend", Value: clip(string(n.Backend.Raw)), Remedy: `must be a JSON object such as {"Type":"vxlan"}`}
	}
	mostVNI := int64(mostVNI4)
	for _, r := range n.Ranges {
		if r.Network.Addr().Is6() {
			mostVNI = mostVNI6
		}
	}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		f := field{"Backend." + name, fields[name]}
		var number int64
		var err error
		switch strings.ToLower(name) {
		case "type":
		case "name", "macprefix": // flannel's, for Windows hosts only
		case "learning": // flannel's; peers are known, there is nothing to learn
			err = f.flag(new(bool))
		case "vni":
			err = f.number(&number, 0, mostVNI)
			o.VNI = uint32(number)
		case "port":
			err = f.number(&number, 0, 65535)
			o.Port = uint16(number)
		case "mtu":
			err = f.number(&number, 0, 65535)
			if o.MTU = int(number); err == nil {
				err = f.enoughMTU(o.MTU, n.Ranges)
			}
		case "gbp":
			err = f.flag(&o.GBP)
		case "directrouting":
			err = f.flag(&o.DirectRouting)
		default:
			err = &subnet.ConfigError{Field: f.path, Value: clip(string(f.value)),
				Remedy: "unknown to vxlan; it knows VNI, Port, MTU, GBP, Learning, DirectRouting: correct or remove it"}
		}
		if err != nil {
			return o, err
		}
	}
	if o.Port == 0 {
		o.Port = defaultPort
	}
	return o, nil
}

// field is one option as it was written. null leaves the default, as absent
// does.
type field struct {
	path  string
	value json.RawMessage
}

func (f field) number(out *int64, least, most int64) error {
	if err := json.Unmarshal(f.value, out); err != nil || *out < least || *out > most {
		return &subnet.ConfigError{Field: f.path, Value: clip(string(f.value)), Remedy: fmt.Sprintf("must be a whole number from %d to %d", least, most)}
	}
	return nil
}

// enoughMTU refuses an MTU that leaves too little inside the tunnel, whatever
// the interface.
func (f field) enoughMTU(mtu int, ranges []subnet.Range) error {
	needed := 0
	for _, r := range ranges {
		least, overhead := sizes(r)
		needed = max(needed, least+overhead)
	}
	if mtu != 0 && mtu < needed {
		return &subnet.ConfigError{Field: f.path, Value: fmt.Sprint(mtu), Remedy: fmt.Sprintf("must be at least %d, or 0 for the interface's own", needed)}
	}
	return nil
}

// sizes are the least MTU inside a tunnel of a range's family, and what the
// tunnel adds.
func sizes(r subnet.Range) (least, overhead int) {
	if r.Network.Addr().Is4() {
		return least4, overhead4
	}
	return least6, overhead6
}

func (f field) flag(out *bool) error {
	if err := json.Unmarshal(f.value, out); err != nil {
		return &subnet.ConfigError{Field: f.path, Value: clip(string(f.value)), Remedy: "must be true or false"}
	}
	return nil
}

// clip keeps a value that came from elsewhere short and printable.
func clip(s string) string {
	const most = 64
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\uFFFD' {
			return '?'
		}
		return r
	}, s)
}
