package subnet

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/flanneld/flanneld/store"
)

// maxLeaseSize is much more than any driver says about itself.
const maxLeaseSize = 64 << 10

// RecordError is a record of the store that is skipped. Its text is stable.
type RecordError struct {
	Key    string
	Field  string // "" for the value as a whole
	Value  string
	Remedy string // what it must be, or what to do about it
}

func (e *RecordError) Error() string {
	s := clipKey(e.Key)
	if e.Field != "" {
		s += ": " + e.Field
	}
	if e.Value != "" {
		s += " = " + e.Value
	}
	return s + ": " + e.Remedy
}

func clipKey(key string) string {
	const most = 200
	if len(key) > most {
		key = key[:most] + "…"
	}
	return printable(key, len(key))
}

// A lease and a host may have names as long as the DNS allows, and a few words
// about what they are.
const mostName, mostWord = 255, 64

// printable makes a name of unknown origin fit to be shown on a terminal and
// in one line of a log: other characters become '?', and it has at most most
// bytes. What it returns, it returns as it is.
func printable(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !strconv.IsGraphic(r) {
			return '?'
		}
		return r
	}, s)
	if len(s) <= most {
		return s
	}
	for !utf8.RuneStart(s[most]) {
		most--
	}
	return s[:most]
}

// attrs is flannel's value of a lease, followed by our own fields.
type attrs struct {
	PublicIP      netip.Addr
	PublicIPv6    *netip.Addr
	BackendType   string          `json:",omitempty"`
	BackendData   json.RawMessage `json:",omitempty"`
	BackendV6Data json.RawMessage `json:",omitempty"`
	Node          string          `json:",omitempty"`
	Identity      string          `json:",omitempty"`
}

// ParseLease reads a lease as the store holds it. It looks at nothing but the
// record itself; View.Leases has those that agree with the configuration and
// with each other. Errors are *RecordError; when the key was readable the
// lease then still has its Subnets, which are taken whatever the value says.
func ParseLease(prefix string, kv store.KV) (Lease, error) {
	return parseLease(SubnetsPrefix(prefix), kv)
}

// parseLease is ParseLease for many: subnets is the prefix of all their keys.
func parseLease(subnets string, kv store.KV) (Lease, error) {
	l := Lease{Key: kv.Key, Revision: kv.ModRevision, Created: kv.CreateRevision, Session: kv.Session, value: kv.Value}
	name, ok := strings.CutPrefix(kv.Key, subnets)
	if !ok {
		return l, &RecordError{Key: kv.Key, Remedy: "is not under " + subnets}
	}
	var err error
	if l.Subnets, err = parseName(name); err != nil {
		return l, &RecordError{Key: kv.Key, Remedy: "the key " + err.Error() + "; delete it"}
	}
	if len(kv.Value) > maxLeaseSize {
		return l, &RecordError{Key: kv.Key, Value: fmt.Sprintf("%d bytes", len(kv.Value)), Remedy: "the value must be at most 64 KiB; delete the key"}
	}
	var a struct {
		PublicIP, PublicIPv6       *string
		BackendType                string
		BackendData, BackendV6Data json.RawMessage
		Node, Identity             string
	}
	if err := json.Unmarshal(kv.Value, &a); err != nil {
		return l, &RecordError{Key: kv.Key, Value: clip(kv.Value), Remedy: "the value must be a lease in flannel's JSON format (" + clip([]byte(err.Error())) + "); delete the key"}
	}
	for _, f := range []struct {
		name  string
		value *string
		v6    bool
	}{{"PublicIP", a.PublicIP, false}, {"PublicIPv6", a.PublicIPv6, true}} {
		if f.value == nil {
			continue
		}
		ip, err := netip.ParseAddr(*f.value)
		if err != nil || ip.Zone() != "" || ip.Is6() != f.v6 {
			return l, &RecordError{kv.Key, f.name, clip([]byte(*f.value)), "must be an address of its family"}
		}
		if !ip.IsUnspecified() { // which is how flannel says "none"
			l.PublicIPs = append(l.PublicIPs, ip)
		}
	}
	l.Type = printable(strings.ToLower(a.BackendType), mostWord)
	l.Data = BackendData{V4: nullToNil(a.BackendData), V6: nullToNil(a.BackendV6Data)}
	l.Node, l.Identity = printable(a.Node, mostName), a.Identity
	return l, nil
}

func nullToNil(raw json.RawMessage) json.RawMessage {
	if absent(raw) {
		return nil
	}
	return raw
}

// MarshalLease is the value of l for the store: flannel's fields in flannel's
// order, then ours, then the fields that l had when it was read and that we
// do not know.
func MarshalLease(l Lease) ([]byte, error) {
	a := attrs{PublicIP: netip.IPv4Unspecified(), BackendType: l.Type,
		BackendData: l.Data.V4, BackendV6Data: l.Data.V6, Node: l.Node, Identity: l.Identity}
	for _, ip := range l.PublicIPs {
		if ip.Is4() {
			a.PublicIP = ip
		} else {
			a.PublicIPv6 = &ip
		}
	}
	b, err := json.Marshal(a)
	if err != nil {
		return nil, fmt.Errorf("lease %s: %w", l.Key, err)
	}
	return store.KeepUnknown(b, l.value, knownAttrs()), nil
}

// knownAttrs are the fields of attrs.
func knownAttrs() []string {
	return []string{"PublicIP", "PublicIPv6", "BackendType", "BackendData", "BackendV6Data", "Node", "Identity"}
}

// says tells whether a and b have the same value in the store, apart from
// fields that we do not know.
func (l Lease) says(o Lease) bool {
	return slices.Equal(l.PublicIPs, o.PublicIPs) && l.Type == o.Type &&
		sameJSON(l.Data.V4, o.Data.V4) && sameJSON(l.Data.V6, o.Data.V6) &&
		l.Node == o.Node && l.Identity == o.Identity
}

// canonical is l as it is read after it was written. Comparing anything else
// with what the store has might differ for ever.
func (l Lease) canonical() Lease {
	value, err := MarshalLease(l)
	if err != nil {
		return l
	}
	c, err := parseLease("", store.KV{Key: no4 + "&fd00::-64", Value: value})
	if err != nil {
		return l
	}
	l.PublicIPs, l.Type, l.Data, l.Node, l.Identity = c.PublicIPs, c.Type, c.Data, c.Node, c.Identity
	return l
}

// under is the lease as it counts under c: without the subnet of a family
// that is not enabled. The error says why it cannot be served, whatever the
// other leases are.
func (l Lease) under(c Config) (Lease, error) {
	if err := l.enable(c); err != nil {
		return l, err
	}
	if len(l.PublicIPs) == 0 {
		return l, &RecordError{l.Key, "PublicIP", "", "is missing: nobody can reach the host; delete the key"}
	}
	for _, ip := range l.PublicIPs {
		field := "PublicIP"
		if ip.Is6() {
			field = "PublicIPv6"
		}
		if !reachable(ip) {
			return l, &RecordError{l.Key, field, ip.String(), "must be a unicast address of the hosts' network; delete the key if no host renews it"}
		}
		for _, s := range l.Subnets {
			if s.Contains(ip) {
				return l, &RecordError{l.Key, field, ip.String(), "the host's own address is inside its subnet; delete the key"}
			}
		}
	}
	return l, nil
}

// enable drops the subnets whose family c does not have and checks the others.
func (l *Lease) enable(c Config) error {
	l.Subnets = c.enabled(l.Subnets)
	for _, s := range l.Subnets {
		for _, r := range c.Ranges {
			if r.Network.Addr().Is6() == s.Addr().Is6() && !r.holds(s) {
				return &RecordError{l.Key, "", "", fmt.Sprintf("%s is not a part of the network %s from /%d to /%d; delete the key if no host of this network holds it",
					s, r.Network, r.Network.Bits()+1, s.Addr().BitLen()-2)}
			}
		}
	}
	if len(l.Subnets) == 0 {
		return &RecordError{l.Key, "", "", "has no subnet of a family that the configuration enables; delete the key if no host of this network holds it"}
	}
	return nil
}

// reachable says whether a packet can be sent to ip as another host's.
func reachable(ip netip.Addr) bool {
	return ip.IsGlobalUnicast() && !ip.Is4In6() && ip.Zone() == "" && (!ip.Is4() || ip.As4()[0] != 0)
}
