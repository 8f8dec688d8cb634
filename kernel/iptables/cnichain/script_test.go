package cnichain

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/kernel/iptables/table"
	"github.com/flanneld/flanneld/kernel/nft/cnitable"
)

func attachment(network, address string) cnitable.Attachment {
	return cnitable.Attachment{
		Network: network, Link: "fl0", Masquerade: true,
		Addresses: []netip.Addr{netip.MustParseAddr(address)},
		Inside:    []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00::/64")},
	}
}

// applied is the table after a script, for what scripts consist of.
func applied(have table.Saved, script string) table.Saved {
	text := ""
	for name := range have.Policy {
		if !strings.Contains(script, ":"+name+" ") {
			text += ":" + name + " - [0:0]\n"
			for _, rule := range have.Rules[name] {
				if !strings.Contains(script, "-D "+name+" "+rule+"\n") {
					text += "-A " + name + " " + rule + "\n"
				}
			}
		}
	}
	for line := range strings.Lines(script) {
		if !strings.HasPrefix(line, "-D") {
			// iptables-save writes addresses with their length.
			text += strings.Replace(line, " -m comment --comment \"flanneld-cni podnet\"", "/32 -m comment --comment \"flanneld-cni podnet\"", 1)
		}
	}
	return table.Parse(text)
}

func TestScriptOfATableThatIsRightIsEmpty(t *testing.T) {
	all := []cnitable.Attachment{attachment("podnet", "10.1.2.3"), attachment("podnet", "10.1.2.4")}
	have := table.Parse(":POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -j OTHER\n")
	first := script(have, true, all)
	for _, want := range []string{":FLCNI-OUT -", "-A POSTROUTING -m comment --comment flanneld-cni -j FLCNI-OUT", "-s 10.1.2.4 ", "-d 224.0.0.0/4", "--random-fully"} {
		if !strings.Contains(first, want) {
			t.Errorf("no %q in\n%s", want, first)
		}
	}
	if strings.Contains(first, "fd00") {
		t.Errorf("IPv6 among IPv4:\n%s", first)
	}
	have = applied(have, first)
	if again := script(have, true, all); again != "" {
		t.Errorf("again:\n%s", again)
	}
	if again := script(have, true, all[1:]); again != "" {
		t.Errorf("one of them:\n%s", again)
	}
}

func TestScriptMendsWhatIsWrong(t *testing.T) {
	a := attachment("podnet", "10.1.2.3")
	right := applied(table.Parse(":POSTROUTING ACCEPT [0:0]\n"), script(table.Parse(":POSTROUTING ACCEPT [0:0]\n"), true, []cnitable.Attachment{a}))
	network := networkChain(a, true).name
	for name, break_ := range map[string]func(s *table.Saved){
		"a rule too many": func(s *table.Saved) { s.Rules[network] = append(s.Rules[network], "-j ACCEPT") },
		"a rule too few":  func(s *table.Saved) { s.Rules[network] = s.Rules[network][1:] },
		"another order":   func(s *table.Saved) { r := s.Rules[network]; r[0], r[2] = r[2], r[0] },
		"two jumps": func(s *table.Saved) {
			s.Rules["POSTROUTING"] = append(s.Rules["POSTROUTING"], s.Rules["POSTROUTING"][0])
		},
		"another network's":   func(s *table.Saved) { s.Rules[outgoing][0] = "-s 10.1.2.3/32 -g FLCNI-000000000000" },
		"the address is gone": func(s *table.Saved) { s.Rules[outgoing] = nil },
	} {
		broken := table.Saved{Policy: right.Policy, Rules: map[string][]string{}}
		for c, rules := range right.Rules {
			broken.Rules[c] = append([]string(nil), rules...)
		}
		break_(&broken)
		if !(Present{true: broken}).Lacks(a) {
			t.Errorf("%s: not noticed", name)
		}
		mended := applied(broken, script(broken, true, []cnitable.Attachment{a}))
		if todo := script(mended, true, []cnitable.Attachment{a}); todo != "" {
			t.Errorf("%s: not mended:\n%s", name, todo)
		}
	}
}

func FuzzScript(f *testing.F) {
	f.Add(":FLCNI-OUT - [0:0]\n-A FLCNI-OUT -s 10.1.2.3/32 -g FLCNI-x\n-A FLCNI-OUT -s x\n-A POSTROUTING -j FLCNI-OUT\n")
	f.Fuzz(func(t *testing.T, text string) {
		have := table.Parse(text)
		for _, v4 := range []bool{true, false} {
			script(have, v4, []cnitable.Attachment{attachment("podnet", "10.1.2.3"), attachment("podnet", "fd00::3")})
		}
		for _, rules := range have.Rules {
			for _, r := range rules {
				sourceOf(r)
			}
		}
	})
}
