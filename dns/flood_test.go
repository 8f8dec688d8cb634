package dns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/miekg/dns"
)

const floodVariable = "FLANNELD_TEST_FLOOD"

// TestMain is also the other program of the test below.
func TestMain(m *testing.M) {
	if at := os.Getenv(floodVariable); at != "" {
		fmt.Println(flood(at))
		return
	}
	os.Exit(m.Run())
}

// flood asks for three seconds as fast as it can.
func flood(at string) string {
	c, err := net.Dial("udp", at)
	if err != nil {
		return err.Error()
	}
	var m dns.Msg
	msg, err := m.SetQuestion("web.default.cluster.local.", dns.TypeA).Pack()
	if err != nil {
		return err.Error()
	}
	n := 0
	for end := time.Now().Add(3 * time.Second); n%1000 != 0 || time.Now().Before(end); n++ {
		_, _ = c.Write(msg) // a full queue, a closed port
	}
	return fmt.Sprintf("%d queries in 3 s", n)
}

func TestFloodOfOneContainerDoesNotStarveAnother(t *testing.T) {
	b := newBridge(t, 2)
	at := netip.MustParseAddrPort(gateway + ":53")
	s := serve(t, Options{Port: 53}, View{
		Name: "default", Addrs: []netip.Addr{at.Addr()}, Sources: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24")}, Zone: names(t), Listen: b.host.Do,
	})
	msg := pack(t, ask("web.default.cluster.local.", dns.TypeA))
	within(t, b.containers[1], func() error {
		eventually(t, func() error {
			_, err := askUDPFor(at, msg, 100*time.Millisecond)
			return err
		})
		return nil
	})
	flood := exec.Command(os.Args[0])
	flood.Env = append(os.Environ(), floodVariable+"="+at.String())
	var out []byte
	done := make(chan error, 1)
	within(t, b.containers[0], func() error {
		go func() {
			done <- b.containers[0].Do(func() (err error) {
				out, err = flood.CombinedOutput()
				return err
			})
		}()
		return nil
	})
	asked, lost, slowest := 0, 0, time.Duration(0)
	within(t, b.containers[1], func() error {
		for end := time.Now().Add(2500 * time.Millisecond); time.Now().Before(end); time.Sleep(3 * time.Millisecond) {
			asked++
			start := time.Now()
			_, err := askUDPFor(at, msg, 500*time.Millisecond)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				lost++
			} else if err != nil {
				return err
			}
			slowest = max(slowest, time.Since(start))
		}
		return nil
	})
	if err := <-done; err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Logf("asked %d, lost %d, slowest answer %v; dropped for their rate %d; %s", asked, lost, slowest, dropped(s, "rate"), out)
	if lost > asked/50 {
		t.Errorf("%d of %d queries were lost", lost, asked)
	}
}
