package api

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// String is a port as the command line takes it: [name=]port[:target]/protocol.
// The node port is none of it.
func (p Port) String() string {
	s := strconv.Itoa(int(p.Port))
	if p.Name != "" {
		s = p.Name + "=" + s
	}
	switch {
	case p.TargetName != "":
		s += ":" + p.TargetName
	case p.Target != 0 && p.Target != p.Port:
		s += ":" + strconv.Itoa(int(p.Target))
	}
	return s + "/" + cmp.Or(p.Protocol, "tcp")
}

// NodePortText is the node port with what leads to it: [name=]number/protocol.
func (p Port) NodePortText() string {
	s := strconv.Itoa(int(p.NodePort))
	if p.NodePortAuto {
		s = "auto"
	}
	if p.Name != "" {
		s = p.Name + "=" + s
	}
	return s + "/" + cmp.Or(p.Protocol, "tcp")
}

// AffinityText is the affinity as the command line takes it; "": none.
func (s Service) AffinityText() string {
	if s.Affinity == 0 {
		return ""
	}
	return "client-ip=" + span(s.Affinity)
}

// String is the check with what of it is not as usual; "" of nil.
func (h *Health) String() string {
	if h == nil {
		return ""
	}
	s := h.Type
	if h.Path != "" {
		s += ":" + h.Path
	}
	for _, part := range []struct {
		name    string
		seconds int
	}{{"every ", h.Interval}, {"timeout ", h.Timeout}} {
		if part.seconds != 0 {
			s += ", " + part.name + span(part.seconds)
		}
	}
	if h.Threshold != 0 {
		s += ", " + strconv.Itoa(h.Threshold) + " in a row"
	}
	return s
}

// span is a time without its zeroes: 3h, 1h30m, 90s is 1m30s.
func span(seconds int) string {
	s := (time.Duration(seconds) * time.Second).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// Labels are labels as the command line takes them, sorted: k=v,k=v.
func Labels(m map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+"="+m[k])
	}
	return strings.Join(out, ",")
}

// types of DNS records by mnemonic: those that people ask for (the registry of
// IANA has them all).
func types() map[string]uint16 {
	return map[string]uint16{
		"A": 1, "NS": 2, "CNAME": 5, "SOA": 6, "PTR": 12, "HINFO": 13, "MX": 15, "TXT": 16, "AAAA": 28, "LOC": 29, "SRV": 33,
		"NAPTR": 35, "DNAME": 39, "OPT": 41, "DS": 43, "SSHFP": 44, "RRSIG": 46, "NSEC": 47, "DNSKEY": 48, "NSEC3": 50, "TLSA": 52,
		"CDS": 59, "CDNSKEY": 60, "SVCB": 64, "HTTPS": 65, "SPF": 99, "IXFR": 251, "AXFR": 252, "ANY": 255, "URI": 256, "CAA": 257,
	}
}

// ParseType reads a type of DNS records: a mnemonic in any case, TYPE65
// (RFC 3597, section 5), or a number.
func ParseType(s string) (t uint16, err error) {
	s = strings.ToUpper(s)
	if t, ok := types()[s]; ok {
		return t, nil
	}
	n, err := strconv.ParseUint(strings.TrimPrefix(s, "TYPE"), 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("there is no type of records %q: use A, AAAA, SRV, PTR, TXT, … or TYPE65", s)
	}
	return uint16(n), nil
}

// TypeName is the mnemonic of a type of DNS records, or TYPE and its number.
func TypeName(t uint16) string {
	for name, n := range types() {
		if n == t {
			return name
		}
	}
	return "TYPE" + strconv.Itoa(int(t))
}

// RcodeName is the mnemonic of a response code.
func RcodeName(rcode int) string {
	names := []string{"NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "YXDOMAIN", "YXRRSET", "NXRRSET", "NOTAUTH", "NOTZONE"}
	switch {
	case rcode >= 0 && rcode < len(names):
		return names[rcode]
	case rcode == 16:
		return "BADVERS"
	case rcode == 23:
		return "BADCOOKIE"
	}
	return "RCODE" + strconv.Itoa(rcode)
}
