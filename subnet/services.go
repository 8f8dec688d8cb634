package subnet

import (
	"encoding/json"
	"fmt"
	"iter"
	"net/netip"
	"slices"

	"github.com/flanneld/flanneld/store"
)

// parseServices reads ServiceNetwork: where the virtual addresses of services
// are, one network or a list of one for each family. It is nil if the field is
// absent, and not if it is an empty list, which asks for no services.
func parseServices(raw json.RawMessage, pods []Range) ([]netip.Prefix, error) {
	if absent(raw) {
		return nil, nil
	}
	const remedy = `must be a network of its own for services, with at least 16 addresses; write e.g. "ServiceNetwork":"10.0.0.0/16" or ["10.0.0.0/16","fd00:10::/112"]`
	var texts []string
	var text string
	if json.Unmarshal(raw, &text) == nil {
		texts = []string{text}
	} else if json.Unmarshal(raw, &texts) != nil {
		return nil, &ConfigError{"ServiceNetwork", clip(raw), remedy}
	}
	out := []netip.Prefix{}
	for _, t := range texts {
		p, err := netip.ParsePrefix(t)
		if err != nil || p != p.Masked() || p.Addr().Is4In6() || p.Bits() < 8 || p.Bits() > p.Addr().BitLen()-4 || !p.Addr().IsGlobalUnicast() {
			return nil, &ConfigError{"ServiceNetwork", clip([]byte(t)), remedy}
		}
		if slices.ContainsFunc(out, func(o netip.Prefix) bool { return o.Addr().Is4() == p.Addr().Is4() }) {
			return nil, &ConfigError{"ServiceNetwork", clip(raw), "has two networks of one family: leave one out"}
		}
		for _, r := range pods {
			if r.Network.Overlaps(p) {
				return nil, &ConfigError{"ServiceNetwork", p.String(), fmt.Sprintf("overlaps the pod network %v: choose one that nothing else uses", r.Network)}
			}
		}
		out = append(out, p)
	}
	slices.SortFunc(out, netip.Prefix.Compare) // IPv4 first
	return out, nil
}

// ClusterDNS is the address of a service network at which every host answers
// names for itself: the tenth, as Kubernetes has it.
func ClusterDNS(services netip.Prefix) netip.Addr {
	a := services.Masked().Addr()
	for range 10 {
		a = a.Next()
	}
	return a
}

// ServicesKey is where the networks of virtual addresses are if the
// configuration has none: the first daemon that sees neither creates it, and
// nobody changes it. It is watched along with the configuration.
func ServicesKey(prefix string) string { return ConfigKey(prefix) + "-servicenetwork" }

// MarshalServices is the value of ServicesKey.
func MarshalServices(networks []netip.Prefix) ([]byte, error) {
	b, err := json.Marshal(struct{ ServiceNetwork []netip.Prefix }{networks})
	if err != nil {
		return nil, fmt.Errorf("encode service networks: %w", err)
	}
	return b, nil
}

// servicesAt reads the value of ServicesKey for a pod network. It is never nil.
func servicesAt(kv store.KV, pods []Range) ([]netip.Prefix, error) {
	var v struct{ ServiceNetwork json.RawMessage }
	if len(kv.Value) > maxConfigSize || json.Unmarshal(kv.Value, &v) != nil || absent(v.ServiceNetwork) {
		return []netip.Prefix{}, &RecordError{Key: kv.Key, Value: clip(kv.Value),
			Remedy: `must be like {"ServiceNetwork":"10.0.0.0/16"}; delete the key, and a daemon writes a new one`}
	}
	out, err := parseServices(v.ServiceNetwork, pods)
	if err != nil {
		return []netip.Prefix{}, fmt.Errorf(`%s: %w; name a network for services in the key config ("ServiceNetwork":"10.0.0.0/16")`, kv.Key, err)
	}
	return out, nil
}

// ChooseServices is a network of virtual addresses for each family of c: the
// first private one that overlaps neither c's nor avoid.
func ChooseServices(c Config, avoid []netip.Prefix) []netip.Prefix {
	for _, r := range c.Ranges {
		avoid = append(avoid[:len(avoid):len(avoid)], r.Network)
	}
	out := []netip.Prefix{}
	for _, r := range c.Ranges {
		for p := range privateNetworks(r.Network.Addr().Is4()) {
			if !slices.ContainsFunc(avoid, p.Overlaps) {
				out = append(out, p)
				break
			}
		}
	}
	return out
}

// privateNetworks yields those of RFC 1918 as /16, and 256 of RFC 4193 as /112.
func privateNetworks(v4 bool) iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		if !v4 {
			for i := range 256 {
				if !yield(netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 3: 0x10, 5: byte(i)}), 112)) {
					return
				}
			}
			return
		}
		for _, first := range []struct{ a, from, to int }{{10, 0, 255}, {172, 16, 31}, {192, 168, 168}} {
			for b := first.from; b <= first.to; b++ {
				if !yield(netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(first.a), byte(b)}), 16)) {
					return
				}
			}
		}
	}
}
