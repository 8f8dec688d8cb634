package subnet

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
)

// parseServices reads ServiceNetwork: where the virtual addresses of services
// are, one network or a list of one for each family.
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
	var out []netip.Prefix
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
