package link_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/kernel/link"
)

func addrs(s ...string) (out []netip.Addr) {
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func TestChoosingTheUnderlay(t *testing.T) {
	h := newHost(t)
	for _, line := range []string{
		"link set eth0 mtu 1400",
		"addr add 192.168.7.1/24 dev eth0", "addr add 192.168.7.2/24 dev eth0", "addr add fd07::1/64 dev eth0 nodad",
		"addr add 192.168.8.1/24 dev far0", "addr add fd08::1/64 dev far0 nodad",
		"link add br0 up type bridge", "addr add 10.1.2.1/24 dev br0",
		"link add bare type bridge",
		"route add 203.0.113.0/24 via 192.168.8.9",
		"route add default via 192.168.8.9 metric 100", "route add default via 192.168.7.9",
		"-6 route add default via fd07::9",
	} {
		h.ip(t, line)
	}
	four, six, dual := link.Choice{IPv4: true}, link.Choice{IPv6: true}, link.Choice{IPv4: true, IPv6: true}
	for name, c := range map[string]struct {
		choice link.Choice
		edit   func(*link.Choice)
		link   string // "": an error
		want   []netip.Addr
		says   string
	}{
		"default route":           {choice: four, link: "eth0", want: addrs("192.168.7.1")},
		"default route, IPv6":     {choice: six, link: "eth0", want: addrs("fd07::1")},
		"default route, both":     {choice: dual, link: "eth0", want: addrs("192.168.7.1", "fd07::1")},
		"name":                    {choice: dual, edit: func(c *link.Choice) { c.Ifaces = []string{"far0"} }, link: "far0", want: addrs("192.168.8.1", "fd08::1")},
		"first name that fits":    {choice: dual, edit: func(c *link.Choice) { c.Ifaces = []string{"none", "br0", "far0", "eth0"} }, link: "far0", want: addrs("192.168.8.1", "fd08::1")},
		"address":                 {choice: four, edit: func(c *link.Choice) { c.Ifaces = []string{"192.168.7.2"} }, link: "eth0", want: addrs("192.168.7.2")},
		"address, both":           {choice: dual, edit: func(c *link.Choice) { c.Ifaces = []string{"192.168.7.2"} }, link: "eth0", want: addrs("192.168.7.2", "fd07::1")},
		"IPv6 address":            {choice: dual, edit: func(c *link.Choice) { c.Ifaces = []string{"fd08::1"} }, link: "far0", want: addrs("192.168.8.1", "fd08::1")},
		"no such name":            {choice: four, edit: func(c *link.Choice) { c.Ifaces = []string{"none"} }, says: "--iface=none: no such interface; there are: "},
		"no such address":         {choice: four, edit: func(c *link.Choice) { c.Ifaces = []string{"1.2.3.4"} }, says: "eth0 192.168.7.1 192.168.7.2 fd07::1"},
		"name without address":    {choice: four, edit: func(c *link.Choice) { c.Ifaces = []string{"bare"} }, says: "no usable IPv4 address"},
		"regex of an address":     {choice: four, edit: func(c *link.Choice) { c.Regexes = []string{`192\.168\.8\..*`} }, link: "far0", want: addrs("192.168.8.1")},
		"regex of second address": {choice: four, edit: func(c *link.Choice) { c.Regexes = []string{`\.7\.2$`} }, link: "eth0", want: addrs("192.168.7.2")},
		"regex of a name":         {choice: dual, edit: func(c *link.Choice) { c.Regexes = []string{`^f.r`} }, link: "far0", want: addrs("192.168.8.1", "fd08::1")},
		"regex skips the bare":    {choice: four, edit: func(c *link.Choice) { c.Regexes = []string{`^b`} }, link: "br0", want: addrs("10.1.2.1")},
		"regex without a match":   {choice: four, edit: func(c *link.Choice) { c.Regexes = []string{`zzz`} }, says: "--iface-regex=zzz"},
		"broken regex":            {choice: four, edit: func(c *link.Choice) { c.Regexes = []string{`(`} }, says: "--iface-regex=("},
		"name before regex":       {choice: four, edit: func(c *link.Choice) { c.Ifaces, c.Regexes = []string{"eth0"}, []string{"far"} }, link: "eth0", want: addrs("192.168.7.1")},
		"regex after name":        {choice: four, edit: func(c *link.Choice) { c.Ifaces, c.Regexes = []string{"none"}, []string{"far"} }, link: "far0", want: addrs("192.168.8.1")},
		"can reach":               {choice: four, edit: func(c *link.Choice) { c.CanReach = addrs("203.0.113.5")[0] }, link: "far0", want: addrs("192.168.8.1")},
		"can reach itself":        {choice: four, edit: func(c *link.Choice) { c.CanReach = addrs("192.168.7.1")[0] }, says: "--iface-can-reach=192.168.7.1"},
		"the pod network is avoided": {choice: four, edit: func(c *link.Choice) {
			c.Regexes, c.Avoid = []string{`^10\.|far`}, []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}
		}, link: "far0", want: addrs("192.168.8.1")},
		"no family": {says: "no address family"},
	} {
		t.Run(name, func(t *testing.T) {
			choice := c.choice
			if c.edit != nil {
				c.edit(&choice)
			}
			got, err := link.Choose(h.h, choice)
			if c.link == "" {
				if err == nil || !strings.Contains(err.Error(), c.says) {
					t.Errorf("got %+v, %v", got, err)
				}
				return
			}
			mtu := map[string]int{"eth0": 1400}[c.link]
			if err != nil || got.Link != c.link || mtu != 0 && got.MTU != mtu || got.Index == 0 || !equal(got.Addrs, c.want) || !equal(got.PublicIPs, c.want) {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
	t.Run("public IPs", func(t *testing.T) {
		choice := dual
		choice.PublicIPs = addrs("2001:db8::1")
		if got, err := link.Choose(h.h, choice); err != nil || !equal(got.PublicIPs, addrs("192.168.7.1", "2001:db8::1")) || !equal(got.Addrs, addrs("192.168.7.1", "fd07::1")) {
			t.Errorf("got %+v, %v", got, err)
		}
	})
	h.ip(t, "-6 route replace default via fd08::9")
	t.Run("default routes that disagree", func(t *testing.T) {
		if _, err := link.Choose(h.h, dual); err == nil || !strings.Contains(err.Error(), "--iface") {
			t.Errorf("got %v", err)
		}
	})
	h.ip(t, "route flush default")
	h.ip(t, "-6 route flush default")
	t.Run("no default route", func(t *testing.T) {
		if _, err := link.Choose(h.h, dual); err == nil || !strings.Contains(err.Error(), "--iface; there are: ") {
			t.Errorf("got %v", err)
		}
	})
}

func equal(a, b []netip.Addr) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}
