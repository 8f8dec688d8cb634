package rulestest

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/rules"
)

// tunnels are the ways to cross the underlay that rules know, by name.
func tunnels() map[string]rules.Tunnel {
	return map[string]rules.Tunnel{
		"GRE":            {Protocol: unix.IPPROTO_GRE},
		"IP in IP":       {Protocol: unix.IPPROTO_IPIP},
		"UDP, two ports": {Protocol: unix.IPPROTO_UDP, Ports: []uint16{51820, 51821}},
	}
}

// as returns r with the protocol and ports of t.
func as(r rules.Rules, t rules.Tunnel) rules.Rules {
	r.Tunnel.Protocol, r.Tunnel.Ports = t.Protocol, t.Ports
	return r
}

// parcel is a packet of a tunnel, sent through an ordinary socket.
type parcel struct {
	from, at *netns.NS
	to       netip.Addr
	protocol uint8
	port     uint16 // of UDP
}

// parcels is one parcel as each packet that a tunnel has over its family.
func (p parcel) parcels(t rules.Tunnel) []parcel {
	p.protocol = t.Over(p.to.Is4())
	if len(t.Ports) == 0 {
		return []parcel{p}
	}
	var out []parcel
	for _, p.port = range t.Ports {
		out = append(out, p)
	}
	return out
}

func (p parcel) String() string {
	return fmt.Sprintf("protocol %d, port %d, to %v", p.protocol, p.port, p.to)
}

// listen is who gets the packet. Where the kernel has no such tunnel, a raw
// socket gets what the input hook let pass.
func (p parcel) listen(t *testing.T) *Victim {
	t.Helper()
	if p.protocol == unix.IPPROTO_UDP {
		return Listen(t, p.at, p.port)
	}
	return ListenRaw(t, p.at, p.protocol, p.to.Is4())
}

// send sends it and returns its payload, which no other packet has.
func (p parcel) send(t *testing.T) string {
	t.Helper()
	network, to := rawNetwork(p.protocol, p.to.Is4()), p.to.String()
	if p.protocol == unix.IPPROTO_UDP {
		network, to = "udp", at(p.to, p.port).String()
	}
	payload := fmt.Sprintf("a packet of %d", time.Now().UnixNano())
	err := p.from.Do(func() error {
		c, err := net.Dial(network, to)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write(p.content(payload))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return payload
}

// content is what the packet carries; it ends with the payload.
func (p parcel) content(payload string) []byte {
	inner, key := UDP(at(p.to, 1), at(p.to, 1), []byte(payload)), uint32(7)
	switch p.protocol {
	case unix.IPPROTO_UDP:
		return []byte(payload)
	case unix.IPPROTO_GRE:
		return GRE(&key, inner)
	}
	return inner
}

// expect tells whether a packet must arrive.
func (p parcel) expect(t *testing.T, what string, want bool) {
	t.Helper()
	expectAll(t, what, map[string]parcel{"": p}, func(string) bool { return want })
}

// expectAll sends packets to one victim and compares which arrive.
func expectAll(t *testing.T, what string, all map[string]parcel, want func(name string) bool) {
	t.Helper()
	left := slices.Collect(maps.Keys(all))
	v := all[left[0]].listen(t)
	defer v.Close()
	for range 5 {
		payloads := map[string]string{}
		for _, name := range left {
			payloads[name] = all[name].send(t)
		}
		got := v.Gets(slices.Collect(maps.Values(payloads))...)
		left = slices.DeleteFunc(left, func(name string) bool {
			arrived := got[payloads[name]]
			if arrived && !want(name) {
				t.Errorf("%s: %s (%v) arrives", what, name, all[name])
			}
			return arrived || !want(name)
		})
		if len(left) == 0 {
			return
		}
	}
	t.Errorf("%s: %q do not arrive", what, left)
}

// testProtocols is about who may send packets of tunnels other than VXLAN to
// this host.
func testProtocols(t *testing.T, w *world, s Subject) {
	flt := open(t, w, s)
	for name, tun := range tunnels() {
		for _, withRules := range []bool{false, true} {
			flt.sync(rules.Rules{})
			if withRules {
				flt.sync(as(wanted(), tun))
			}
			for _, f := range both() {
				senders := map[string]parcel{
					"a peer":                             {from: w.b, at: w.a, to: f.a},
					"a stranger":                         {from: w.stranger, at: w.a, to: f.a},
					"a stranger, to the gateway address": {from: w.stranger, at: w.a, to: f.gatewayA},
					"a container, to its gateway":        {from: w.a1, at: w.a, to: f.gatewayA},
					"a container, to the underlay":       {from: w.a1, at: w.a, to: f.a},
				}
				for i := range max(1, len(tun.Ports)) {
					all := map[string]parcel{}
					for who, p := range senders {
						all[who] = p.parcels(tun)[i]
					}
					expectAll(t, fmt.Sprintf("%s, rules %v, %s", name, withRules, f.name), all,
						func(who string) bool { return !withRules || who == "a peer" })
				}
			}
		}
		for _, f := range both() {
			for _, other := range []uint8{unix.IPPROTO_GRE, unix.IPPROTO_IPIP, unix.IPPROTO_IPV6} {
				if other == as(wanted(), tun).Tunnel.Over(f.a.Is4()) {
					continue
				}
				parcel{from: w.stranger, at: w.a, to: f.a, protocol: other}.expect(t, "another's tunnel beside "+name, true)
			}
		}
	}
}

// testForwardedProtocols is about containers that forge packets of such
// tunnels, and about what hosts send through this host.
func testForwardedProtocols(t *testing.T, w *world, s Subject) {
	throughB(t, w)
	flt := openOn(t, w, w.b, s)
	for name, tun := range tunnels() {
		for _, withRules := range []bool{false, true} {
			flt.sync(rules.Rules{})
			if withRules {
				flt.sync(as(wantedOnB(), tun))
			}
			for _, f := range both() {
				for what, c := range map[string]struct {
					parcel
					want bool
				}{
					"a container to a peer":       {parcel{from: w.b1, at: w.a, to: f.a}, !withRules},
					"a container to the world":    {parcel{from: w.b1, at: w.stranger, to: f.stranger}, true},
					"a host to a peer through us": {parcel{from: w.stranger, at: w.a, to: f.a}, true},
				} {
					for _, p := range c.parcels(tun) {
						p.expect(t, fmt.Sprintf("%s of %s, rules %v, %s", name, what, withRules, f.name), c.want)
					}
				}
			}
		}
	}
}

// throughB makes the stranger send to host A through host B.
func throughB(t *testing.T, w *world) {
	t.Helper()
	for _, f := range both() {
		host := netip.PrefixFrom(f.a, f.a.BitLen()).String()
		change(t, w.stranger, "route add "+host+" via "+f.b.String(), "route del "+host)
	}
}
