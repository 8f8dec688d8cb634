package subnet

import (
	"cmp"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/flanneld/flanneld/store"
)

// all is every lease whose key could be read, usable or not.
func (v View) all() iter.Seq[*Lease] {
	return func(yield func(*Lease) bool) {
		for _, list := range [][]*Lease{v.Leases, v.skipped} {
			for _, l := range list {
				if !yield(l) {
					return
				}
			}
		}
	}
}

func (v View) find(key string) (Lease, bool) {
	for l := range v.all() {
		if l.Key == key {
			return *l, true
		}
	}
	return Lease{}, false
}

// related are the leases that stand in this relation to s.
func (v View) related(s Self, r relation) []Lease {
	var out []Lease
	for l := range v.all() {
		if relate(l, s) == r {
			out = append(out, *l)
		}
	}
	return out
}

// usable says whether s could hold l as it is, as far as the configuration
// and the other leases are concerned.
func (v View) usable(l Lease, s Self) bool {
	l.Subnets = v.Config.enabled(l.Subnets)
	if !v.Config.Fits(l.Subnets) || containsAny(l.Subnets, s.Host.PublicIPs) {
		return false
	}
	_, overlapped := v.holderOver(l, s)
	return !overlapped
}

// holderOver returns somebody else's usable lease that overlaps l.
func (v View) holderOver(l Lease, s Self) (Lease, bool) {
	for _, o := range v.Leases {
		if o.Key != l.Key && overlapsAny(o.Subnets, l.Subnets) && relate(o, s) != mine {
			return *o, true
		}
	}
	return Lease{}, false
}

// taken is every prefix that a new subnet must not overlap: the subnets of
// all leases, usable or not, and the addresses of the hosts themselves.
func (v View) taken(except func(*Lease) bool) []netip.Prefix {
	out := make([]netip.Prefix, 0, 2*(len(v.Leases)+len(v.skipped)))
	for l := range v.all() {
		out = appendHosts(out, l.PublicIPs)
		if !except(l) {
			out = append(out, l.Subnets...)
		}
	}
	for _, h := range v.Hosts {
		out = appendHosts(out, h.PublicIPs)
	}
	return out
}

func appendHosts(out []netip.Prefix, ips []netip.Addr) []netip.Prefix {
	for _, ip := range ips {
		if ip.IsValid() {
			out = append(out, netip.PrefixFrom(ip, ip.BitLen()))
		}
	}
	return out
}

// hostsOf are the records of live hosts with this identity, other than s
// itself: at other addresses and at the same as s.
func (v View) hostsOf(identity string, s Self) (elsewhere, here []hostRecord) {
	if identity == "" {
		return nil, nil
	}
	for _, name := range slices.Sorted(maps.Keys(v.Hosts)) {
		h := v.Hosts[name]
		switch {
		case h.Identity != identity || h.Instance == s.Host.Instance:
		case sharesAddress(h.PublicIPs, s.Host.PublicIPs):
			here = append(here, v.hostRecs[name])
		default:
			elsewhere = append(elsewhere, v.hostRecs[name])
		}
	}
	return elsewhere, here
}

// hostsUnchanged: no host has come to life since v.
func (v View) hostsUnchanged(prefix string) store.Cond {
	return store.Cond{Key: HostsPrefix(prefix), Prefix: true, ModRevision: v.hostsRevision}
}

// others is leases without that with l's key.
func others(leases []Lease, l Lease) []Lease {
	return slices.DeleteFunc(slices.Clone(leases), func(o Lease) bool { return o.Key == l.Key })
}

func keys(leases []Lease) []string {
	var out []string
	for _, l := range leases {
		out = append(out, l.Key)
	}
	return out
}

func containsAny(prefixes []netip.Prefix, ips []netip.Addr) bool {
	for _, p := range prefixes {
		if slices.ContainsFunc(ips, p.Contains) {
			return true
		}
	}
	return false
}

// describe names the holder of a lease for people.
func describe(l Lease) string {
	node := cmp.Or(clip([]byte(l.Node)), "a host without name")
	return node + " at " + cmp.Or(joinAddrs(l.PublicIPs), "an unknown address")
}

func joinAddrs(ips []netip.Addr) string {
	var s []string
	for _, ip := range ips {
		s = append(s, ip.String())
	}
	return strings.Join(s, ", ")
}
