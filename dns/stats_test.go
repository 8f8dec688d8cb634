package dns

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestStatsCountWhatWasAnswered(t *testing.T) {
	addr := loopback()
	at := netip.AddrPortFrom(addr, testPort)
	s := serve(t, Options{Forward: &outsiders{}}, View{Name: "v", Addrs: []netip.Addr{addr}, Zone: names(t)})
	awaitListening(t, at)
	const before = 1 // the question that waited for the socket
	for _, q := range []struct {
		name string
		kind uint16
		tcp  bool
	}{
		{"web.default.cluster.local.", dns.TypeA, false},
		{"nobody.default.cluster.local.", dns.TypeA, false},
		{"web.default.cluster.local.", dns.TypeAAAA, false},
		{"web.default.cluster.local.", 4711, false},
		{"web.default.cluster.local.", dns.TypeANY, true},
		{"1.2.1.10.in-addr.arpa.", dns.TypePTR, true},
		{"cached.example.", dns.TypeHTTPS, false},
		{"slow.example.", dns.TypeA, false},
		{"slow.example.", dns.TypeA, true},
		{"cluster.local.", dns.TypeAXFR, true},
	} {
		send := askUDP
		if q.tcp {
			send = askTCP
		}
		if _, err := send(at, pack(t, ask(q.name, q.kind))); err != nil {
			t.Fatal(err)
		}
	}
	_, _ = askUDPFor(at, message(0x8000, [4]uint16{}), 50*time.Millisecond)
	want := Stats{
		Requests: []RequestCount{
			{"v", ".", "tcp", 1, dns.TypeA, 1},
			{"v", ".", "udp", 1, dns.TypeA, 1},
			{"v", ".", "udp", 1, dns.TypeHTTPS, 1},
			{"v", "1.10.in-addr.arpa.", "tcp", 1, dns.TypePTR, 1},
			{"v", "cluster.local.", "tcp", 1, dns.TypeANY, 1},
			{"v", "cluster.local.", "udp", 1, 0, 1},
			{"v", "cluster.local.", "udp", 1, dns.TypeA, 2 + before},
			{"v", "cluster.local.", "udp", 1, dns.TypeAAAA, 1},
			{"v", "dropped", "tcp", 1, 0, 1},
		},
		Responses: []ResponseCount{
			{"v", ".", 0, 3},
			{"v", "1.10.in-addr.arpa.", 0, 1},
			{"v", "cluster.local.", 0, 4 + before},
			{"v", "cluster.local.", 3, 1},
			{"v", "dropped", 5, 1},
		},
		Dropped: []DropCount{{"v", "malformed", 1}},
	}
	var got Stats
	eventually(t, func() error { // an answer is counted after it was sent
		got = s.Stats()
		n := uint64(0)
		for _, d := range got.Durations {
			for _, c := range d.Histogram.Counts {
				n += c
			}
			if d.Histogram.Sum <= 0 || len(d.Histogram.Bounds)+1 != len(d.Histogram.Counts) {
				return fmt.Errorf("histogram %v", d)
			}
		}
		got.Durations = nil
		if !reflect.DeepEqual(got, want) {
			return fmt.Errorf("%+v\nwant\n%+v", got, want)
		}
		if n != 10+before {
			return fmt.Errorf("%d durations, want %d", n, 10+before)
		}
		return nil
	})

	s.Serve([]View{{Name: "w", Addrs: []netip.Addr{addr}, Zone: names(t)}})
	eventually(t, func() error {
		if n := len(s.Stats().Requests); n != 0 {
			return errors.New("a view that is gone is counted")
		}
		return nil
	})
}

func TestDurationsFallIntoTheirBuckets(t *testing.T) {
	for took, want := range map[time.Duration]int{
		0:                        0,
		1:                        0,
		31250:                    0,
		31251:                    1,
		62500:                    1,
		62501:                    2,
		250 * time.Microsecond:   3,
		250*time.Microsecond + 1: 4,
		500 * time.Microsecond:   4,
		8192 * time.Millisecond:  18,
		8193 * time.Millisecond:  19,
		time.Hour:                19,
	} {
		if got := bucket(took); got != want {
			t.Errorf("%v: bucket %d, want %d", took, got, want)
		}
	}
}

func TestZonesOfASocketAreBounded(t *testing.T) {
	c := newCounters("v", "udp", 1)
	for i := range 1000 {
		c.zone(fmt.Appendf(nil, "\x06zone%02d\x00", i%100)).count(1, 0, 0)
	}
	zones := *c.zones.Load()
	n := uint64(0)
	for _, z := range zones {
		n += z.types[1].Load()
	}
	if len(zones) != mostZones || n != 1000 {
		t.Errorf("%d zones, %d counted", len(zones), n)
	}
}
