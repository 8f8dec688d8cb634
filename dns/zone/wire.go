package zone

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Limits of RFC 1035, section 2.3.4, and what follows from them.
const (
	maxWire   = 255 // bytes of a name with its root
	maxLabel  = 63
	maxLabels = 128
)

// split finds the labels of a name in wire format: the i-th begins, with its
// length, at at[i]. False: name is not one, or has something behind it.
func split(name []byte, at *[maxLabels]uint8) (n int, ok bool) {
	if len(name) == 0 || len(name) > maxWire {
		return 0, false
	}
	for i := 0; ; {
		l := int(name[i])
		if l == 0 {
			return n, i == len(name)-1
		}
		if l > maxLabel || i+1+l >= len(name) {
			return 0, false
		}
		at[n] = uint8(i)
		n++
		i += 1 + l
	}
}

// compose puts labels in front of a name in wire format. It is nil if that
// makes no name: it would be too long, or a label is empty or too long.
func compose(suffix []byte, labels ...string) []byte {
	size := len(suffix)
	for _, l := range labels {
		size += 1 + len(l)
		if l == "" || len(l) > maxLabel {
			return nil
		}
	}
	if size > maxWire {
		return nil
	}
	b := make([]byte, 0, size)
	for _, l := range labels {
		b = append(b, byte(len(l)))
		b = append(b, l...)
	}
	return append(b, suffix...)
}

// ParseDomain checks that names can be below domain: DNS labels in any case,
// with or without the dot at the end. It returns it as State has it.
func ParseDomain(domain string) (string, error) {
	const most = 100 // so that services' names with their ports fit in front
	d := strings.ToLower(strings.TrimSuffix(domain, "."))
	for label := range strings.SplitSeq(d, ".") {
		ok := label != "" && len(label) <= maxLabel && label[0] != '-' && label[len(label)-1] != '-'
		for _, c := range []byte(label) {
			ok = ok && (c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-')
		}
		if !ok {
			return "", fmt.Errorf("domain %.120q: must be DNS labels (up to 63 letters, digits, and - within) with dots between, like cluster.local", domain)
		}
	}
	switch {
	case len(d) > most:
		return "", fmt.Errorf("domain %.120q: must be at most %d bytes long", domain, most)
	case d == "arpa" || strings.HasSuffix(d, ".arpa"):
		return "", fmt.Errorf("domain %.120q: must not be in arpa, where addresses have their names", domain)
	}
	return d, nil
}

// Wire is the wire format of a name that is written with dots, in lower case.
// A backslash stands before a dot within a label, and before three digits of
// a byte (RFC 4343, section 2.1). False: it is not a name.
func Wire(name string) (wire []byte, ok bool) {
	if name == "." || name == "" {
		return []byte{0}, true
	}
	wire = make([]byte, 1, len(name)+2)
	start := 0 // of the label's length
	for i := 0; i < len(name); i++ {
		c := name[i]
		switch {
		case c == '.':
			if wire[start] = byte(len(wire) - start - 1); wire[start] == 0 || len(wire)-start-1 > maxLabel {
				return nil, false
			}
			start = len(wire)
			c = 0
		case c != '\\':
		case i+1 == len(name):
			return nil, false
		case i+3 < len(name) && name[i+1] >= '0' && name[i+1] <= '9':
			v, err := strconv.ParseUint(name[i+1:i+4], 10, 8)
			if err != nil {
				return nil, false
			}
			c = byte(v)
			i += 3
		default:
			i++
			c = name[i]
		}
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		wire = append(wire, c)
	}
	if l := len(wire) - start - 1; l > maxLabel {
		return nil, false
	} else if l > 0 { // no dot at the end
		wire[start] = byte(l)
		wire = append(wire, 0)
	}
	return wire, len(wire) <= maxWire
}

// Text is the reverse of Wire, with the dot at the end. What is not a name
// gives "?".
func Text(wire []byte) string {
	var at [maxLabels]uint8
	n, ok := split(wire, &at)
	if !ok {
		return "?"
	}
	if n == 0 {
		return "."
	}
	var b strings.Builder
	for i := range n {
		for _, c := range label(wire, at[i]) {
			switch {
			case c == '.' || c == '\\':
				b.WriteByte('\\')
				b.WriteByte(c)
			case c <= ' ' || c > '~':
				fmt.Fprintf(&b, "\\%03d", c)
			default:
				b.WriteByte(c)
			}
		}
		b.WriteByte('.')
	}
	return b.String()
}

// label is the one whose length is at i.
func label(name []byte, i uint8) []byte {
	return name[int(i)+1 : int(i)+1+int(name[i])]
}

// dashed is an address as a label, as Kubernetes spells it: 10-1-19-3,
// fd00-1-19--3. A label cannot begin or end with a dash, so zeros that would
// be left out there are written.
func dashed(a netip.Addr) string {
	if a.Is4() {
		return strings.ReplaceAll(a.String(), ".", "-")
	}
	s := strings.ReplaceAll(a.String(), ":", "-")
	if s[0] == '-' {
		s = "0" + s
	}
	if s[len(s)-1] == '-' {
		s += "0"
	}
	return s
}

// parseDashed is the reverse of dashed. Of IPv6 it takes other spellings, too.
func parseDashed(l []byte) (netip.Addr, bool) {
	dashes, double := 0, false
	for i, c := range l {
		if c == '-' {
			dashes++
			double = double || i > 0 && l[i-1] == '-'
		}
	}
	if dashes == 3 && !double {
		var a [4]byte
		for i := range a {
			end := 0
			for end < len(l) && l[end] != '-' {
				end++
			}
			octet, ok := parseOctet(l[:end])
			if !ok {
				return netip.Addr{}, false
			}
			a[i] = octet
			l = l[min(end+1, len(l)):]
		}
		return netip.AddrFrom4(a), true
	}
	return parseDashed6(l)
}

func parseDashed6(l []byte) (netip.Addr, bool) {
	var a [16]byte
	n, gap := 0, -1 // groups, and how many of them stand before the double dash
	if len(l) > 1 && l[0] == '-' && l[1] == '-' {
		gap, l = 0, l[2:]
	}
	for len(l) > 0 {
		v, digits := 0, 0
		for digits < len(l) && digits < 4 {
			d, ok := hex(l[digits])
			if !ok {
				break
			}
			v = v<<4 | int(d)
			digits++
		}
		if digits == 0 || n == 8 {
			return netip.Addr{}, false
		}
		a[2*n], a[2*n+1] = byte(v>>8), byte(v)
		n++
		if l = l[digits:]; len(l) == 0 {
			break
		}
		if l[0] != '-' || len(l) == 1 {
			return netip.Addr{}, false
		}
		if l = l[1:]; l[0] == '-' {
			if gap >= 0 {
				return netip.Addr{}, false
			}
			gap, l = n, l[1:]
		}
	}
	if (gap < 0) != (n == 8) {
		return netip.Addr{}, false
	}
	if gap >= 0 {
		after := 2 * (n - gap)
		copy(a[16-after:], a[2*gap:2*n])
		clear(a[2*gap : 16-after])
	}
	ip := netip.AddrFrom16(a)
	return ip, !ip.Is4In6()
}

// parseOctet reads a decimal number from 0 to 255 in its one spelling.
func parseOctet(l []byte) (byte, bool) {
	if len(l) == 0 || len(l) > 3 || l[0] == '0' && len(l) > 1 {
		return 0, false
	}
	v := 0
	for _, c := range l {
		if c < '0' || c > '9' {
			return 0, false
		}
		v = 10*v + int(c-'0')
	}
	return byte(v), v <= 255
}

func hex(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	}
	return 0, false
}
