package iptables

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/kernel/iptables/table"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"github.com/flanneld/flanneld/kernel/rules"
)

func TestJumpStandsBeforeWhatDropsAndBehindWhatDecides(t *testing.T) {
	for name, c := range map[string]struct {
		rules []string
		want  int
	}{
		"empty":                 {nil, 0},
		"policy alone":          {[]string{"-i a -j ACCEPT", "-s 10.9.9.9/32 -j DROP"}, 2},
		"docker":                {[]string{"-j DOCKER-USER", "-j DOCKER-ISOLATION-STAGE-1", "-o docker0 -j DOCKER"}, 1},
		"network policy":        {[]string{"-j KUBE-ROUTER-FORWARD", "-j cali-FORWARD", "-j DOCKER-FORWARD"}, 2},
		"red hat":               {[]string{"-m state --state ESTABLISHED -j ACCEPT", "-j REJECT --reject-with icmp-host-prohibited"}, 1},
		"reject with a comment": {[]string{`-m comment --comment "all the rest" -j REJECT --reject-with icmp-port-unreachable`}, 0},
		"conditional drop":      {[]string{`-m comment --comment x -s 10.0.0.1/32 -j DROP`}, 1},
		"ufw":                   {[]string{"-j ufw-before-logging-forward"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			if got := beforeDroppers(c.rules); got != c.want {
				t.Errorf("place %d, want %d", got, c.want)
			}
		})
	}
}

func TestScriptOfATableThatIsRightIsEmpty(t *testing.T) {
	c := chain{table: "nat", name: prefix + "POST", parent: "POSTROUTING", rules: []rule{{"-s 10.1.0.0/16", "MASQUERADE"}}}
	right := ":POSTROUTING ACCEPT [0:0]\n:FLANNELD-POST - [0:0]\n-A POSTROUTING -m comment --comment \"flanneld jump\" -j FLANNELD-POST\n" +
		"-A POSTROUTING -j OTHER\n-A FLANNELD-POST " + c.rules[0].text() + "\nCOMMIT\n"
	if s := script("nat", ofOthers, []chain{c}, table.Parse(right)); s != "" {
		t.Errorf("script:\n%s", s)
	}
	for name, wrong := range map[string]string{
		"no jump":        strings.Replace(right, "-m comment --comment \"flanneld jump\" -j FLANNELD-POST", "-j ACCEPT", 1),
		"another rule":   strings.ReplaceAll(right, c.rules[0].digest(), "0000000000000000"),
		"chain missing":  strings.Replace(right, ":FLANNELD-POST - [0:0]\n", "", 1),
		"an older chain": right + ":FLANNELD-OLD - [0:0]\n",
	} {
		if s := script("nat", ofOthers, []chain{c}, table.Parse(wrong)); s == "" {
			t.Errorf("%s: nothing to do", name)
		}
	}
}

func TestLegacyDigestChangesWithTheRulesAndNotWithTheCounters(t *testing.T) {
	n := netnstest.New(t)
	for v4, program := range map[bool]string{true: "iptables-legacy", false: "ip6tables-legacy"} {
		var l *legacy
		err := n.Do(func() (err error) {
			l, err = openLegacy(v4)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		digest := func() uint64 {
			var d uint64
			err := n.Do(func() (err error) {
				d, err = l.digest("filter")
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
		if d := digest(); d != 0 {
			t.Errorf("%s: digest %d of a table that is not there", program, d)
		}
		seen := map[uint64]string{0: "nothing"}
		for _, step := range []string{"-P FORWARD ACCEPT", "-P FORWARD DROP", "-A OUTPUT -j ACCEPT", "-R OUTPUT 1 -j DROP", "-R OUTPUT 1 -p udp -j ACCEPT"} {
			netnstest.Run(t, n, program, strings.Fields(step)...)
			d := digest()
			if before, ok := seen[d]; ok {
				t.Errorf("%s: same digest after %q and %q", program, step, before)
			}
			seen[d] = step
		}
		d := digest()
		_, _ = n.Run(t.Context(), "ping", "-c1", "-W1", "127.0.0.1")
		_, _ = n.Run(t.Context(), "ping", "-c1", "-W1", "::1")
		if digest() != d {
			t.Errorf("%s: counters changed the digest", program)
		}
		if ok, err := l.mentions("filter", "FLANNELD-"); ok || err != nil {
			t.Errorf("%s: mentions us: %v, %v", program, ok, err)
		}
		netnstest.Run(t, n, program, "-N", "FLANNELD-X")
		if ok, err := l.mentions("filter", "FLANNELD-"); !ok || err != nil {
			t.Errorf("%s: does not mention us: %v, %v", program, ok, err)
		}
	}
}

func TestPlanNamesNoPeerTwice(t *testing.T) {
	r := rules.Rules{Tunnel: rules.Tunnel{Protocol: 17, Ports: []uint16{1}, Peers: []netip.Addr{
		netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("::ffff:10.0.0.1"), netip.MustParseAddr("fd00::1"), {}}}}
	plan := planOf(r, true, true, false, nil)
	var got []string
	for _, c := range plan["mangle"] {
		if c.name == prefix+"TUNNEL" {
			for _, r := range c.rules {
				got = append(got, r.match+">"+r.target)
			}
		}
	}
	if want := "-s 10.0.0.1>RETURN >DROP"; strings.Join(got, " ") != want {
		t.Errorf("rules %q, want %q", got, want)
	}
}

func FuzzParseSaved(f *testing.F) {
	f.Add(":FORWARD DROP [0:0]\n-A FORWARD -j DOCKER\n")
	f.Add(":\n-A \n-A x")
	f.Fuzz(func(t *testing.T, text string) {
		have := table.Parse(text)
		script("filter", ofOthers, filterChains([]netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}, []netip.Addr{netip.MustParseAddr("10.1.1.1")}, true, have), have)
	})
}
