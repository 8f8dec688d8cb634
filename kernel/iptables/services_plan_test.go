package iptables

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/iptables/table"
	"github.com/flanneld/flanneld/kernel/rules"
)

// run is what a program of -m bpf returns for a packet.
func run(t *testing.T, match string, packet []byte) uint32 {
	t.Helper()
	text := regexp.MustCompile(`--bytecode "([^"]*)"`).FindStringSubmatch(match)[1]
	lines := strings.Split(text, ",")[1:]
	var a, x uint32
	for pc := 0; pc < len(lines); pc++ {
		var op, yes, no int
		var k uint32
		if _, err := fmt.Sscanf(lines[pc], "%d %d %d %d", &op, &yes, &no, &k); err != nil {
			t.Fatal(err)
		}
		switch op {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			a = 0
			for _, b := range packet[k : k+4] {
				a = a<<8 | uint32(b)
			}
		case unix.BPF_ALU | unix.BPF_MUL:
			a *= k
		case unix.BPF_ALU | unix.BPF_RSH:
			a >>= k
		case unix.BPF_MISC | unix.BPF_TAX:
			x = a
		case unix.BPF_ALU | unix.BPF_XOR | unix.BPF_X:
			a ^= x
		case unix.BPF_ALU | unix.BPF_MOD:
			a %= k
		case unix.BPF_JMP | unix.BPF_JEQ:
			if a == k {
				pc += yes
			} else {
				pc += no
			}
		case unix.BPF_RET:
			return k
		default:
			t.Fatalf("operation %#x", op)
		}
	}
	t.Fatal("the program does not end")
	return 0
}

func TestEachClientHasOneSlotAndSlotsTheirPart(t *testing.T) {
	for _, first := range []string{"10.1.0.2", "fd00:1::2"} {
		a := netip.MustParseAddr(first)
		at := map[bool]int{true: 12, false: 8}[a.Is4()]
		for _, n := range []int{2, 3, 5, 32, 100} {
			got := make([]int, n)
			const clients = 400
			for c, client := 0, a; c < clients; c, client = c+1, client.Next() {
				packet := append(make([]byte, at), client.AsSlice()...)
				of := -1
				for i := range n {
					if run(t, hashed(a.Is4(), i, n), packet) != 0 {
						if of >= 0 {
							t.Fatalf("%v is a client of slots %d and %d of %d", client, of, i, n)
						}
						of = i
					}
				}
				if of < 0 {
					t.Fatalf("%v is a client of none of %d slots", client, n)
				}
				got[of]++
			}
			if want := clients / n; n <= 5 && (slices.Min(got) < want*3/4 || slices.Max(got) > want*5/4) {
				t.Errorf("%d slots have %v of %d neighbours", n, got, clients)
			}
		}
	}
}

func TestWithoutBPFAHashIsRemembered(t *testing.T) {
	f := &rules.Frontend{Addr: netip.MustParseAddr("10.0.0.1"), Protocol: unix.IPPROTO_TCP, Port: 80, Balance: rules.Hash,
		Slots: []netip.AddrPort{netip.MustParseAddrPort("10.1.0.2:80"), netip.MustParseAddrPort("10.1.0.3:80")}}
	for _, r := range frontend(f, false).rules {
		if strings.Contains(r.match, "bpf") || strings.Contains(r.match, "--seconds") || !strings.Contains(r.match, "-m recent") {
			t.Errorf("rule %+v", r)
		}
	}
}

func TestChanceOfEachSlotIsTheSame(t *testing.T) {
	for n := range 12 {
		f := &rules.Frontend{Addr: netip.MustParseAddr("10.0.0.1"), Protocol: unix.IPPROTO_TCP, Port: 80}
		for i := range n + 1 {
			f.Slots = append(f.Slots, netip.AddrPortFrom(netip.MustParseAddr("10.1.0.2"), uint16(i)))
		}
		left := 1.0
		for i, r := range frontend(f, true).rules {
			p := 1.0
			if _, text, ok := strings.Cut(r.match, "--probability "); ok {
				var err error
				if p, err = strconv.ParseFloat(text, 64); err != nil {
					t.Fatal(err)
				}
			}
			if got := left * p * float64(n+1); got < 0.999999 || got > 1.000001 {
				t.Errorf("slot %d of %d has %f of its part", i, n+1, got)
			}
			left -= left * p
		}
	}
}

// Names of chains have up to 28 letters, those of lists of clients too.
func TestNamesOfServicesFit(t *testing.T) {
	f := &rules.Frontend{Addr: netip.MustParseAddr("fd00::ffff:1"), Protocol: unix.IPPROTO_SCTP, Port: 65535, Affinity: 1,
		Slots: []netip.AddrPort{netip.MustParseAddrPort("[fd00:1::2]:65535")}}
	s := rules.Services{Networks: []netip.Prefix{netip.MustParsePrefix("fd00::/64")}, Frontends: []*rules.Frontend{f}}
	seen := map[string]bool{}
	for _, chains := range servicesOf(s, map[*rules.Frontend]chain{f: frontend(f, true)}, false, true) {
		for _, c := range chains {
			if len(c.name) > 28 || !ofServices(c.name) || seen[c.name] {
				t.Errorf("chain %s", c.name)
			}
			seen[c.name] = true
		}
	}
}

// The jumps of services stand in front of those of the filter; neither minds.
func TestOwnersDoNotMindEachOther(t *testing.T) {
	a := chain{table: "nat", name: prefix + "POST", parent: "POSTROUTING", rules: []rule{{"-s 10.1.0.0/16", "RETURN"}}}
	s := chain{table: "nat", name: sourceChain, parent: "POSTROUTING", rules: []rule{{"-s 10.1.0.0/16", "RETURN"}}}
	text := func(order ...chain) table.Saved {
		out := "*nat\n:POSTROUTING ACCEPT [0:0]\n:" + a.name + " - [0:0]\n:" + s.name + " - [0:0]\n"
		for _, c := range order {
			out += fmt.Sprintf("-A POSTROUTING -m comment --comment %q -j %s\n", jumpTag, c.name)
		}
		out += "-A POSTROUTING -j MINE\n"
		for _, c := range []chain{a, s} {
			out += "-A " + c.name + " " + c.rules[0].text() + "\n"
		}
		return table.Parse(out + "COMMIT\n")
	}
	for name, c := range map[string]struct {
		have table.Saved
		mine owner
		want chain
		says string // of the script
	}{
		"the filter, as it must be":     {text(s, a), ofOthers, a, ""},
		"services, as they must be":     {text(s, a), ofServices, s, ""},
		"the filter, without its jump":  {text(s), ofOthers, a, "-I POSTROUTING 2 "},
		"services, without their jump":  {text(a), ofServices, s, "-I POSTROUTING 1 "},
		"services behind":               {text(a, s), ofServices, s, "-I POSTROUTING 1 "},
		"the filter, services behind":   {text(a, s), ofOthers, a, ""},
		"the filter, with a second one": {text(s, a, a), ofOthers, a, "-I POSTROUTING 2 "},
	} {
		got := script("nat", c.mine, []chain{c.want}, c.have)
		if c.says == "" && got != "" || !strings.Contains(got, c.says) || strings.Contains(got, ":") {
			t.Errorf("%s: %s", name, got)
		}
	}
	gone := script("nat", ofServices, nil, text(s, a))
	if strings.Contains(gone, a.name) || !strings.Contains(gone, "-X "+s.name) {
		t.Errorf("removal of services: %s", gone)
	}
}
