package routed

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/flanneld/flanneld/subnet"
)

// Option is one field of the configuration's Backend as it was written. null
// leaves the default, as absent does.
type Option struct {
	Name  string // as it was written
	Value json.RawMessage
}

// ParseOptions hands the fields of the Backend object to set, by lower-case
// name: like flannel it does not care about the case of names; unlike flannel
// it refuses names that set does not know (false). known lists them for
// people. Errors are *subnet.ConfigError.
func ParseOptions(n subnet.Config, known string, set func(name string, o Option) (bool, error)) error {
	if len(n.Ranges) == 0 {
		return &subnet.ConfigError{Field: "Network", Remedy: `must be set to the pod network, e.g. "Network":"10.244.0.0/16"`}
	}
	if len(n.Backend.Raw) == 0 {
		return nil
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(n.Backend.Raw, &fields); err != nil {
		return &subnet.ConfigError{Field: "Backend", Value: Clip(string(n.Backend.Raw)), Remedy: fmt.Sprintf(`must be a JSON object such as {"Type":%q}`, n.Backend.Type)}
	}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		o := Option{name, fields[name]}
		lower := strings.ToLower(name)
		if lower == "type" || lower == "name" { // the latter is flannel's, for Windows hosts
			continue
		}
		switch ok, err := set(lower, o); {
		case err != nil:
			return err
		case !ok:
			return o.Refuse(fmt.Sprintf("unknown to %s; it knows %s: correct or remove it", n.Backend.Type, known))
		}
	}
	return nil
}

// ParseMTU reads the Backend object of a driver that adds nothing to packets
// and has no option but MTU: 0 is the interface's. Errors are
// *subnet.ConfigError.
func ParseMTU(n subnet.Config) (mtu int, err error) {
	err = ParseOptions(n, "MTU", func(name string, f Option) (bool, error) {
		if name != "mtu" {
			return false, nil
		}
		return true, f.Size(&mtu, n.Ranges, Overhead{})
	})
	return mtu, err
}

// Refuse is the error that tells what is wrong with the option.
func (o Option) Refuse(remedy string) error {
	return &subnet.ConfigError{Field: "Backend." + o.Name, Value: Clip(string(o.Value)), Remedy: remedy}
}

// Int reads a whole number.
func (o Option) Int(out *int, least, most int) error {
	var n int64
	if err := json.Unmarshal(o.Value, &n); err != nil || n < int64(least) || n > int64(most) {
		return o.Refuse(fmt.Sprintf("must be a whole number from %d to %d", least, most))
	}
	if string(o.Value) != "null" {
		*out = int(n)
	}
	return nil
}

// Port reads a port; 0 leaves the default.
func (o Option) Port(out *uint16) error {
	var n int
	err := o.Int(&n, 0, 65535)
	if err == nil && n != 0 {
		*out = uint16(n)
	}
	return err
}

// Bool reads a flag.
func (o Option) Bool(out *bool) error {
	if err := json.Unmarshal(o.Value, out); err != nil {
		return o.Refuse("must be true or false")
	}
	return nil
}

// String reads a text.
func (o Option) String(out *string) error {
	if err := json.Unmarshal(o.Value, out); err != nil {
		return o.Refuse("must be a text in quotes")
	}
	return nil
}

// Size reads the MTU of the underlay, 0 for the interface's own, and refuses
// one that leaves too little inside a tunnel.
func (o Option) Size(out *int, ranges []subnet.Range, overhead Overhead) error {
	if err := o.Int(out, 0, 65535); err != nil || *out == 0 {
		return err
	}
	for _, r := range ranges {
		if needed := leastMTU(r) + overhead.of(r); *out < needed {
			return o.Refuse(fmt.Sprintf("must be at least %d, or 0 for the interface's own", needed))
		}
	}
	return nil
}

// Overhead is what a tunnel adds to a packet, in bytes, by the family of the
// underlay.
type Overhead struct{ V4, V6 int }

func (o Overhead) of(r subnet.Range) int {
	if r.Network.Addr().Is4() {
		return o.V4
	}
	return o.V6
}

// leastMTU is what hosts of a family must be able to send (RFC 791, RFC 8200).
func leastMTU(r subnet.Range) int {
	if r.Network.Addr().Is4() {
		return 576
	}
	return 1280
}

// MTU is that inside a tunnel of r's family over the interface named link of
// MTU underlay. asked is the configuration's option, 0 for none: a cluster's
// may be more than this host's interface can.
func MTU(kind string, r subnet.Range, link string, underlay, asked int, overhead Overhead) (int, error) {
	mtu := underlay
	if asked != 0 {
		mtu = min(asked, underlay)
	}
	if mtu -= overhead.of(r); mtu < leastMTU(r) {
		needed := leastMTU(r) + overhead.of(r)
		return 0, fmt.Errorf("%s: interface %s has an MTU of %d, and a tunnel of %s needs %d: ip link set %s mtu 1500", kind, link, underlay, r.Network, needed, link)
	}
	return mtu, nil
}

// Clip keeps a value that came from elsewhere short and printable.
func Clip(s string) string {
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

// Direct reads flannel's DirectRouting: true is Always, false Never.
func (o Option) Direct(out *Direct) error {
	var on *bool
	if err := json.Unmarshal(o.Value, &on); err != nil {
		return o.Refuse("must be true or false")
	}
	switch {
	case on == nil:
	case *on:
		*out = Always
	default:
		*out = Never
	}
	return nil
}
