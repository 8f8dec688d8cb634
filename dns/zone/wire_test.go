package zone

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
)

func TestNamesAreReadAndWritten(t *testing.T) {
	for name, want := range map[string]string{
		"web.default": "\x03web\x07default\x00", "WEB.": "\x03web\x00", ".": "\x00", "": "\x00",
		`a\.b.c`: "\x03a.b\x01c\x00", `\097`: "\x01a\x00", `\000`: "\x01\x00\x00", `a\\b`: "\x03a\\b\x00",
		strings.Repeat("a", 63): "\x3f" + strings.Repeat("a", 63) + "\x00",
	} {
		wire, ok := Wire(name)
		if !ok || string(wire) != want {
			t.Errorf("%q is %q, %t, want %q", name, wire, ok, want)
		}
	}
	for _, name := range []string{"a..b", "..", ".a", strings.Repeat("a", 64), strings.Repeat("a", 64) + ".b", strings.Repeat("a.", 128), `a\`, `\256`, `\12x`} {
		if wire, ok := Wire(name); ok {
			t.Errorf("%q is taken for %q", name, wire)
		}
	}
	for _, wire := range []string{"", "\x01", "\x01a", "\x01a\x00\x00", "\x40" + strings.Repeat("a", 64) + "\x00", "\xc0\x0c", strings.Repeat("\x01a", 128) + "\x00"} {
		if got := Text([]byte(wire)); got != "?" {
			t.Errorf("%q is taken for %s", wire, got)
		}
	}
}

func FuzzWire(f *testing.F) {
	f.Add("web.default.cluster.local")
	f.Add(`a\.b.\000c.`)
	f.Fuzz(func(t *testing.T, name string) {
		wire, ok := Wire(name)
		if !ok {
			return
		}
		again, ok := Wire(Text(wire))
		if !ok || !bytes.Equal(wire, again) {
			t.Fatalf("%q is %q, written %q, read %q", name, wire, Text(wire), again)
		}
	})
}

func TestAddressesAreLabels(t *testing.T) {
	for a, want := range map[string]string{
		"10.1.19.3": "10-1-19-3", "fd00:1:19::3": "fd00-1-19--3", "::1": "0--1", "fd00::": "fd00--0", "::": "0--0", "1:2:3:4:5:6:7:8": "1-2-3-4-5-6-7-8",
	} {
		addr := netip.MustParseAddr(a)
		if got := dashed(addr); got != want {
			t.Errorf("%s is %s, want %s", a, got, want)
		}
		if got, ok := parseDashed([]byte(want)); !ok || got != addr {
			t.Errorf("%s is %s, %t", want, got, ok)
		}
	}
	for l, want := range map[string]string{"--1": "::1", "fd00--": "fd00::", "--": "::", "fd00-0-0-0-0-0-0-1": "fd00::1", "0fd0--1": "fd0::1"} {
		if got, ok := parseDashed([]byte(l)); !ok || got != netip.MustParseAddr(want) {
			t.Errorf("%s is %s, %t", l, got, ok)
		}
	}
	for _, l := range []string{"", "-", "---", "10-1-19", "10-1-19-3-4", "10-1-19-256", "10-1-19-", "-1-19-3", "01-1-1-1", "1--2--3", "1-2-3-4-5-6-7--8", "1-2-3-4-5-6-7-8-9",
		"fffff--1", "g--1", "fd00---1", "-fd00--1", "fd00--1-", "--ffff-a01-1303", "10.1.19.3", "1-2-3-4-5-6-7-", "a-b-c-d"} {
		if got, ok := parseDashed([]byte(l)); ok {
			t.Errorf("%s is taken for %s", l, got)
		}
	}
}

func FuzzDashed(f *testing.F) {
	f.Add([]byte("10-1-19-3"))
	f.Add([]byte("fd00-1--3"))
	f.Fuzz(func(t *testing.T, l []byte) {
		if len(l) > maxLabel {
			return
		}
		a, ok := parseDashed(l)
		as := strings.ReplaceAll(string(l), "-", ":")
		if strings.Count(as, ":") == 3 && !strings.Contains(as, "::") {
			as = strings.ReplaceAll(as, ":", ".")
		}
		want, err := netip.ParseAddr(as)
		valid := err == nil && !want.Is4In6() && !strings.ContainsAny(string(l), "ABCDEF.:%")
		if ok != valid || ok && a != want {
			t.Fatalf("%q is %s, %t, want %s, %t", l, a, ok, want, valid)
		}
		if again, ok2 := parseDashed([]byte(dashed(a))); ok && (!ok2 || again != a) {
			t.Fatalf("%s is %s, which is %s", a, dashed(a), again)
		}
	})
}

func TestDomainsAreChecked(t *testing.T) {
	for domain, want := range map[string]string{"cluster.local": "cluster.local", "Cluster.LOCAL.": "cluster.local", "x": "x", "a-b.c1": "a-b.c1"} {
		if got, err := ParseDomain(domain); err != nil || got != want {
			t.Errorf("%s is %s, %v", domain, got, err)
		}
	}
	for _, domain := range []string{"", ".", "a..b", "-a.b", "a-.b", "a_b", "a b", "ä.de", strings.Repeat("a", 64), strings.Repeat("a.", 60) + "a", "arpa", "10.in-addr.arpa"} {
		if got, err := ParseDomain(domain); err == nil {
			t.Errorf("%q is taken for %s", domain, got)
		}
	}
}

// FuzzLookup asks arbitrary bytes. What is found in front of a label is found
// only as itself.
func FuzzLookup(f *testing.F) {
	s := example()
	z := new(Builder).Build(s)
	s.Tenant = "blue"
	blue := new(Builder).Build(s)
	for q := range questions() {
		name, _, _ := strings.Cut(q, " ")
		if wire, ok := Wire(name); ok {
			f.Add(wire, uint16(typeA))
			f.Add(wire[:len(wire)-1], uint16(typeANY))
		}
	}
	f.Add([]byte{}, uint16(typeSRV))
	f.Add([]byte{0xc0, 0x0c}, uint16(typePTR))
	f.Fuzz(func(t *testing.T, name []byte, qtype uint16) {
		name = lower(name)
		for _, z := range []*Zone{z, blue} {
			a, ours := z.Lookup(name, qtype)
			if !ours {
				continue
			}
			if !bytes.HasSuffix(name, a.Apex) {
				t.Fatalf("%q is in %q", name, a.Apex)
			}
			if a.NameError && a.Set.Type > 0 {
				t.Fatalf("%q has records and does not exist", name)
			}
			x := z.Explain(Text(name), qtype)
			if (x.Rcode == "NXDOMAIN") != a.NameError {
				t.Fatalf("%q is explained as %+v", name, x)
			}
		}
	})
}

// lower is what who asks does before.
func lower(name []byte) []byte {
	name = bytes.Clone(name)
	for i, c := range name {
		if c >= 'A' && c <= 'Z' {
			name[i] += 'a' - 'A'
		}
	}
	return name
}

func TestTriesHoldWhatWasPut(t *testing.T) {
	// Hashes of few values: most keys collide, in some or in all bits.
	for _, mask := range []uint64{0, 1 << 63, 0xf << 60, 0x3f, ^uint64(0)} {
		r := rand.New(rand.NewPCG(1, mask))
		hash := func(k int) uint64 { return uint64(k) * 0x9e3779b97f4a7c15 & mask }
		want := map[int]int{}
		var m trie[int, int]
		type version struct {
			t    trie[int, int]
			want map[int]int
		}
		var old []version
		check := func(v version) {
			t.Helper()
			for k := range 300 {
				got, ok := v.t.get(hash(k), func(have int) bool { return have == k })
				if w, there := v.want[k]; ok != there || got != w {
					t.Fatalf("mask %x: %d is %d, %t, want %d, %t", mask, k, got, ok, w, there)
				}
			}
			if v.t.empty() != (len(v.want) == 0) {
				t.Fatalf("mask %x: empty with %d keys", mask, len(v.want))
			}
		}
		for round := range 60 {
			e := &edit{}
			for range 40 {
				k := r.IntN(300)
				if r.IntN(3) == 0 || round > 40 {
					delete(want, k)
					m = m.delete(e, hash(k), k)
				} else {
					want[k] = r.Int()
					m = m.put(e, hash(k), k, want[k], hash)
				}
			}
			c := map[int]int{}
			for k, v := range want {
				c[k] = v
			}
			old = append(old, version{m, c})
		}
		for _, v := range old { // none was changed by what came after
			check(v)
		}
		e := &edit{}
		for k := range 300 {
			m = m.delete(e, hash(k), k)
		}
		if !m.empty() {
			t.Fatalf("mask %x: something is left", mask)
		}
	}
}
