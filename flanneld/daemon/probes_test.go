package daemon

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/probe"
	"github.com/flanneld/flanneld/subnet"
)

func probeLease(n int) *subnet.Lease {
	s := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(n), 0}), 24)
	return &subnet.Lease{
		Key: fmt.Sprintf("10.1.%03d.0-24", n), Node: fmt.Sprintf("host%d", n), Identity: fmt.Sprint(n), Type: "vxlan",
		Subnets: []netip.Prefix{s}, PublicIPs: []netip.Addr{netip.AddrFrom4([4]byte{192, 168, 77, byte(n)})},
	}
}

func everybody(*subnet.Lease) (facts, bool) { return facts{service: 1, plain: true}, true }

func TestProberIsToldOnlyWhatChanged(t *testing.T) {
	p := newProbes(slog.New(slog.DiscardHandler))
	leases := []*subnet.Lease{probeLease(1), probeLease(2), probeLease(4)}
	if !p.update(leases, true, everybody) || len(p.list) != 3 {
		t.Fatalf("%d peers", len(p.list))
	}
	first := p.list[0].peer
	renewed := *leases[0]
	renewed.Revision++
	leases[0] = &renewed
	if p.update(leases, true, everybody) || p.list[0].peer != first {
		t.Error("a renewal is news")
	}
	if n := testing.AllocsPerRun(10, func() { p.update(leases, true, everybody) }); n > 1 {
		t.Errorf("%v allocations where nothing changed", n)
	}
	for name, f := range map[string]func(*subnet.Lease) (facts, bool){
		"one has no responder any more": func(l *subnet.Lease) (facts, bool) { return facts{plain: true}, true },
		"one is not to be probed":       func(l *subnet.Lease) (facts, bool) { return facts{plain: true}, l.Node != "host4" },
	} {
		if !p.update(leases, true, f) {
			t.Errorf("%s: no news", name)
		}
	}
	if !p.update(leases[1:2], true, everybody) || len(p.list) != 1 || p.of(leases[1].Key) == nil || p.of(leases[0].Key) != nil {
		t.Errorf("%d peers left", len(p.list))
	}
}

func TestPacketsGoTheWayThatProbesFound(t *testing.T) {
	var log bytes.Buffer
	p := newProbes(slog.New(slog.NewTextHandler(&log, nil)))
	p.said.Plain = true
	leases := []*subnet.Lease{probeLease(1), probeLease(2), probeLease(3)}
	p.update(leases[1:], true, everybody)
	way := func() (out []backend.Way) {
		for i, x := range p.ways(nil, leases) {
			if x.Lease != leases[i] {
				t.Fatalf("lease %s in place %d", x.Lease.Key, i)
			}
			out = append(out, x.Way)
		}
		return out
	}
	passes := probe.Result{Key: leases[2].Key, Name: "host3", Paths: []probe.Path{{Verdict: probe.OK, Plain: probe.PlainPasses}}}
	if !p.take(passes, time.Now()) || p.take(passes, time.Now()) {
		t.Error("the way changes once")
	}
	if got := way(); got[0] != backend.WayUnknown || got[1] != backend.WayUnknown || got[2] != backend.WayPlain {
		t.Errorf("ways %v", got)
	}
	passes.Paths[0].Plain = probe.PlainFails
	if !p.take(passes, time.Now()) || way()[2] != backend.WayTunnel {
		t.Errorf("ways %v", way())
	}
	passes.Paths[0].Plain = probe.PlainPasses
	p.take(passes, time.Now())
	p.take(passes, time.Now())
	for _, line := range []string{"host is reached through the tunnel again\" peer=host3", "host is reached without the tunnel\" peer=host3"} {
		if strings.Count(log.String(), "level=INFO") != 2 || strings.Count(log.String(), line) != 1 {
			t.Errorf("log %q", &log)
		}
	}
	if p.take(probe.Result{Key: "gone", Paths: passes.Paths}, time.Now()) {
		t.Error("a peer that is gone changes something")
	}
}

func TestTroubleWithTunnelsIsSaidBriefly(t *testing.T) {
	var log bytes.Buffer
	p := newProbes(slog.New(slog.NewTextHandler(&log, nil)))
	var leases []*subnet.Lease
	for n := range 50 {
		leases = append(leases, probeLease(n))
	}
	well := probeLease(50)
	p.update(append(leases, well), false, everybody)
	now := time.Now()
	p.take(probe.Result{Key: well.Key, Name: well.Node, Paths: []probe.Path{{Verdict: probe.OK}}}, now)
	for _, l := range leases {
		p.take(probe.Result{Key: l.Key, Name: l.Node, Paths: []probe.Path{{Verdict: probe.Unreachable, Message: l.Node + ": a firewall?"}}}, now)
	}
	if n := strings.Count(log.String(), "\n"); n != 10 {
		t.Errorf("%d lines in the log:\n%s", n, &log)
	}
	got := p.problems()
	if len(got) != 4 || got[0] != "host0: a firewall?" || !strings.Contains(got[3], "47 more peers") {
		t.Errorf("problems %q", got)
	}
	log.Reset()
	p.take(probe.Result{Key: leases[0].Key, Name: "host0", Paths: []probe.Path{{Verdict: probe.OK}}}, now.Add(2*time.Minute))
	if !strings.Contains(log.String(), "no longer in trouble") {
		t.Errorf("log %q", &log)
	}
}

func TestWhereNoPeerAnswersOneReasonSaysItForAll(t *testing.T) {
	var log bytes.Buffer
	p := newProbes(slog.New(slog.NewTextHandler(&log, nil)))
	p.said = probe.State{Tunnel: probe.Tunnel{Name: "VXLAN", Protocol: 17, Ports: []uint16{8472}}}
	leases := []*subnet.Lease{probeLease(1), probeLease(2), probeLease(3)}
	p.update(leases, false, everybody)
	now := time.Now()
	look := func(l *subnet.Lease, v probe.Verdict) {
		p.take(probe.Result{Key: l.Key, Name: l.Node, Paths: []probe.Path{{Addr: l.Subnets[0].Addr(), Verdict: v, Underlay: true, Message: l.Node + ": a firewall?"}}}, now)
	}
	look(leases[0], probe.Unreachable)
	look(leases[1], probe.Unreachable)
	if got := p.problems(); len(got) != 2 || got[0] != "host1: a firewall?" {
		t.Errorf("before the third is known: problems %q", got)
	}
	log.Reset()
	for range 2 {
		look(leases[2], probe.Unreachable)
		look(leases[0], probe.Unreachable)
	}
	const why = "no peer answers through the tunnel: does this host's own firewall drop VXLAN packets (8472/udp)?"
	if got := p.problems(); len(got) != 1 || got[0] != why {
		t.Errorf("problems %q", got)
	}
	if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, why) {
		t.Errorf("log %q", text)
	}
	log.Reset()
	look(leases[1], probe.OK)
	if got := p.problems(); len(got) != 2 || got[1] != "host3: a firewall?" {
		t.Errorf("once one answers: problems %q", got)
	}
	if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "no longer in trouble") {
		t.Errorf("log %q", text)
	}
}

func TestWhoIsProbedAndHow(t *testing.T) {
	alive := subnet.Host{Name: "host1", Identity: "1", Probe: 8475, Plain: true}
	n := &network{view: subnet.View{Hosts: map[string]subnet.Host{"host1": alive}}, unserved: map[string]string{probeLease(5).Key: "another backend"}}
	flannel, hostGW := probeLease(3), probeLease(4)
	flannel.Identity, hostGW.Identity, hostGW.Type = "", "", "host-gw"
	for name, c := range map[string]struct {
		lease *subnet.Lease
		sure  bool
		want  facts
		ok    bool
	}{
		"a live host":                     {probeLease(1), true, facts{service: 8475, plain: true}, true},
		"one without a record":            {probeLease(2), true, facts{down: true}, true},
		"one whose record nobody sees":    {probeLease(2), false, facts{}, true},
		"flannel gets pings":              {flannel, true, facts{}, true},
		"flannel's host-gw cannot answer": {hostGW, true, facts{}, false},
		"one that is not served":          {probeLease(5), true, facts{}, false},
	} {
		if got, ok := n.factsOf(c.lease, c.sure); got != c.want || ok != c.ok {
			t.Errorf("%s: %+v %v", name, got, ok)
		}
	}
}

func TestAskedMTU(t *testing.T) {
	for raw, want := range map[string]int{`{"Type":"vxlan","MTU":1400}`: 1400, `{"mtu":1300}`: 1300, `{"Type":"vxlan"}`: 0, ``: 0, `{"MTU":"x"}`: 0} {
		if got := askedMTU([]byte(raw)); got != want {
			t.Errorf("%s: %d, want %d", raw, got, want)
		}
	}
}
