package iptables_test

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/nft"
	"github.com/flanneld/flanneld/kernel/rules"
)

// answer has the router answer UDP and TCP at a port.
func (w router) answer(t *testing.T, port int) {
	t.Helper()
	var u net.PacketConn
	var l net.Listener
	err := w.r.Do(func() (err error) {
		if u, err = net.ListenPacket("udp", fmt.Sprintf(":%d", port)); err == nil {
			l, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.Close(); l.Close() })
	go func() {
		b := make([]byte, 64)
		for {
			n, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = u.WriteTo(b[:n], from)
		}
	}()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("!"))
			c.Close()
		}
	}()
}

// hears tells which of the router's names answer n by UDP and by TCP: "" is
// none, "4u 4t 6u 6t" is all.
func (w router) hears(t *testing.T, n *netns.NS, port uint16) string {
	t.Helper()
	var out []string
	for i, a := range podNames() {
		for _, network := range []string{"udp", "tcp"} {
			err := n.Do(func() error {
				for range 2 { // the first packet may wait for a neighbour
					c, err := net.DialTimeout(network, netip.AddrPortFrom(a, port).String(), 300*time.Millisecond)
					if err != nil {
						continue
					}
					_ = c.SetDeadline(time.Now().Add(300 * time.Millisecond))
					_, _ = c.Write([]byte("?"))
					k, _ := c.Read(make([]byte, 8))
					c.Close()
					if k > 0 {
						out = append(out, []string{"4", "6"}[i]+network[:1])
						break
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	return strings.Join(out, " ")
}

const all = "4u 4t 6u 6t"

// untracked adds the rules that leave DNS untracked.
func (w router) untracked(t *testing.T) {
	t.Helper()
	err := w.r.Do(func() error {
		f, err := nft.New(nil)
		if err != nil {
			return err
		}
		defer f.Close()
		return f.Sync(t.Context(), rules.Rules{Networks: podNetworks(), Names: podNames()})
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestPodsReachNamesThroughAnInputChainThatDropsAndNothingElse(t *testing.T) {
	firewalls := map[string]string{
		"policy":            "$i -P INPUT DROP; $i -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
		"reject at the end": "$i -A INPUT -p tcp --dport 22 -j ACCEPT; $i -A INPUT -j REJECT",
		"ufw":               "$i -P INPUT DROP; $i -N ufw-before-input; $i -A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; $i -A INPUT -j ufw-before-input",
	}
	for _, kind := range kinds() {
		for name, script := range firewalls {
			t.Run(kind+" "+name, func(t *testing.T) {
				t.Parallel()
				w := newRouter(t)
				for _, port := range []int{53, 54} {
					w.answer(t, port)
				}
				// Of IPv6 itself a firewall must let this pass.
				w.sh(t, variant(kind, "for i in ipt ip6t; do "+script+"; done; ip6t -I INPUT -p ipv6-icmp -j ACCEPT"))
				w.untracked(t)
				before := w.sh(t, variant(kind, dump))
				if got := w.hears(t, w.pod, 53); got != "" {
					t.Fatalf("the firewall lets pass %s: the test proves nothing", got)
				}
				f, sync := w.forward(t, "")
				sync()
				if got := w.hears(t, w.pod, 53); got != all {
					t.Errorf("pods hear %q", got)
				}
				if got := w.hears(t, w.pod, 54) + w.hears(t, w.other, 53); got != "" {
					t.Errorf("pods at another port, or others, hear %q", got)
				}
				sync()
				ran := f.Runs()
				sync()
				if n := f.Runs() - ran; n != 0 {
					t.Errorf("%d programs run by an idle sync, want none", n)
				}
				w.sh(t, variant(kind, "ipt -D INPUT -m comment --comment 'flanneld jump' -j FLANNELD-DNS; ip6t -F FLANNELD-DNS"))
				sync()
				if got := w.hears(t, w.pod, 53); got != all {
					t.Errorf("after somebody changed it pods hear %q", got)
				}
				if err := w.r.Do(func() error { return f.Remove(t.Context()) }); err != nil {
					t.Fatal(err)
				}
				if after := w.sh(t, variant(kind, dump)); after != before {
					t.Errorf("after removal:\n%s\nwant:\n%s", after, before)
				}
			})
		}
	}
}

func TestPodsReachNamesBehindFirewalld(t *testing.T) {
	w := newRouter(t)
	startFirewalld(t, w)
	w.answer(t, 53)
	w.untracked(t)
	if got := w.hears(t, w.pod, 53); got != "" {
		t.Fatalf("firewalld lets pass %s: the test proves nothing", got)
	}
	_, sync := w.forward(t, "")
	sync()
	if got := w.hears(t, w.pod, 53); got != all {
		t.Errorf("pods hear %q", got)
	}
	if got := w.hears(t, w.other, 53); got != "" {
		t.Errorf("others hear %q", got)
	}
}
