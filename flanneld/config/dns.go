package config

import (
	"errors"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// DNS is how names are answered on this host.
type DNS struct {
	Off    bool   // answer none
	Domain string // of the cluster's names: lower case, no dot at the end
	// Upstreams are asked for all other names, in this order; empty: those of
	// the host's resolv.conf.
	Upstreams   []netip.AddrPort
	TTL         time.Duration // whole seconds
	PreferLocal bool          // this host's containers first
}

const (
	// longestDomain leaves room for the names in front of it: a name has at
	// most 253 characters (RFC 1035, section 2.3.4).
	longestDomain = 100
	longestTTL    = time.Hour
	dnsPort       = 53
)

func (c *Config) setDNS(r *raw) error {
	c.DNS = DNS{Off: r.noDNS, PreferLocal: r.preferLocal}
	var errs []error
	c.DNS.Domain = strings.ToLower(strings.TrimSuffix(strings.TrimSpace(r.dnsDomain), "."))
	if why := domainProblem(c.DNS.Domain); why != "" {
		errs = append(errs, usagef("--dns-domain=%q: %s", r.dnsDomain, why))
	}
	ttl, err := parseSeconds(r.dnsTTL)
	if err != nil || ttl < 0 || ttl > longestTTL || ttl%time.Second != 0 {
		errs = append(errs, usagef("--dns-ttl=%q: give whole seconds from 0s to 1h, such as 5s", r.dnsTTL))
	}
	c.DNS.TTL = ttl
	for _, text := range splitList(r.dnsUpstream) {
		a, why := parseUpstream(text)
		if why != "" {
			errs = append(errs, usagef("--dns-upstream: %q: %s", text, why))
			continue
		}
		c.DNS.Upstreams = append(c.DNS.Upstreams, a)
	}
	return errors.Join(errs...)
}

// domainProblem says why a domain in lower case cannot be the cluster's, and
// what would do; "" if it can.
func domainProblem(domain string) string {
	if domain == "" {
		return "the cluster's names need a domain of their own, such as cluster.local"
	}
	if len(domain) > longestDomain {
		return "longer than 100 characters, which leaves too little for the names in front of it"
	}
	labels := strings.Split(domain, ".")
	for _, l := range labels {
		if !isLabel(l) {
			return "not a DNS name: use letters, digits and dashes between dots, such as cluster.local"
		}
	}
	switch last := labels[len(labels)-1]; {
	case strings.Trim(last, "0123456789") == "":
		return "looks like an address: give a name, such as cluster.local"
	case last == "arpa":
		return "arpa holds the names of addresses, which are answered anyway: choose another, such as cluster.local"
	}
	return ""
}

// isLabel: a host name's label (RFC 1123, section 2.1), in lower case.
func isLabel(l string) bool {
	ok := len(l) > 0 && len(l) <= 63 && l[0] != '-' && l[len(l)-1] != '-'
	for i := 0; i < len(l) && ok; i++ {
		c := l[i]
		ok = c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-'
	}
	return ok
}

// parseSeconds reads 5s, 1m or, as seconds, 5.
func parseSeconds(s string) (time.Duration, error) {
	if n, err := strconv.ParseUint(s, 10, 32); err == nil {
		return time.Duration(n) * time.Second, nil
	}
	return time.ParseDuration(s)
}

// parseUpstream says why not, and what would do.
func parseUpstream(s string) (at netip.AddrPort, why string) {
	at, err := netip.ParseAddrPort(s)
	if err != nil {
		a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"))
		if err != nil {
			return at, "give a server's address, with a port if it is not 53, such as 192.0.2.1 or [2001:db8::1]:5353"
		}
		at = netip.AddrPortFrom(a, dnsPort)
	}
	at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	switch a := at.Addr(); {
	case at.Port() == 0:
		return at, "port 0 is none: leave it out for 53"
	case a.IsUnspecified() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return at, "no server has such an address: give one that answers, or leave the flag out for those of /etc/resolv.conf"
	}
	return at, ""
}
