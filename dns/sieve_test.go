package dns

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/flanneld/flanneld/kernel/netns/netnstest"
)

// TestTheKernelDropsWhatIsThinnedOut sends packets from two addresses, one of
// which is thinned out, and counts what arrives.
func TestTheKernelDropsWhatIsThinnedOut(t *testing.T) {
	ns := netnstest.New(t)
	for i := 2; i < 6; i++ {
		ip(t, ns, fmt.Sprintf("addr add fd09::%d/128 dev lo nodad", i))
	}
	for name, c := range map[string]struct {
		listen  string
		sources []string // thinned out by as many steps as their place
		none    []string // not
	}{
		"IPv4": {"127.0.0.1:53", []string{"127.0.0.2", "127.0.0.3", "127.0.0.4"}, []string{"127.0.0.1", "127.0.0.5", "127.1.0.2"}},
		"IPv6": {"[::1]:53", []string{"fd09::2", "fd09::3", "fd09::4"}, []string{"::1", "fd09::5"}},
	} {
		t.Run(name, func(t *testing.T) {
			var conn *net.UDPConn
			within(t, ns, func() (err error) {
				conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(c.listen)))
				return err
			})
			defer conn.Close()
			s := newSieve(conn)
			defer s.close()
			for i, source := range c.sources {
				for range i + 1 {
					s.thinOut(netip.MustParseAddr(source))
				}
			}
			const sent = 3200
			arrived := func(source string) (n int) {
				within(t, ns, func() error {
					out, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(source), 0)), conn.LocalAddr().(*net.UDPAddr))
					if err != nil {
						return err
					}
					defer out.Close()
					for i := range sent {
						if _, err := out.Write([]byte("x")); err != nil {
							return err
						}
						if i%50 < 49 {
							continue
						}
						for { // the queue is short
							if err := conn.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
								return err
							}
							if _, err := conn.Read(make([]byte, 8)); err != nil {
								break
							}
							n++
						}
					}
					return nil
				})
				return n
			}
			for _, source := range c.none {
				if n := arrived(source); n != sent {
					t.Errorf("%d of %d from %s, which is not thinned out", n, sent, source)
				}
			}
			for i, source := range c.sources {
				n, want := arrived(source), sent
				for range i + 1 {
					want /= thinning
				}
				if n < want/2-1 || n > want*2+8 {
					t.Errorf("%d of %d from %s, want about %d", n, sent, source, want)
				}
			}
			for range mostSteps { // everybody's time is over
				s.mu.Lock()
				for source, th := range s.thin {
					th.until = time.Now()
					s.thin[source] = th
				}
				s.mu.Unlock()
				s.thicken()
			}
			if n := arrived(c.sources[0]); n != sent {
				t.Errorf("%d of %d from %s after its time", n, sent, c.sources[0])
			}
		})
	}
}

func TestOnlyManyDropsThinOut(t *testing.T) {
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback(), 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	s := newSieve(conn)
	defer s.close()
	a, b := netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("10.1.0.2")
	for i := range 10 * floodDrops { // not within a second
		s.drop(a, time.Duration(i)*time.Second/floodDrops*2)
	}
	for i := range floodDrops - 1 {
		s.drop(b, time.Hour+time.Duration(i))
	}
	if len(s.thin) != 0 {
		t.Errorf("thinned out: %v", s.thin)
	}
	s.drop(b, time.Hour+floodDrops)
	if len(s.thin) != 1 || s.thin[b].steps != 1 {
		t.Errorf("thinned out: %v, want %v by one step", s.thin, b)
	}
	for i := range 100 * mostCounted { // many sources take bounded memory
		s.drop(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), time.Hour)
	}
	if len(s.dropped) > mostCounted {
		t.Errorf("%d sources are counted", len(s.dropped))
	}
	for i := range 2 * mostThinned {
		s.thinOut(netip.AddrFrom4([4]byte{10, 2, 0, byte(i)}))
	}
	if len(s.thin) != mostThinned {
		t.Errorf("%d sources are thinned out", len(s.thin))
	}
}
