package rulestest

import (
	"net/netip"
	"testing"

	"github.com/flanneld/flanneld/kernel/netns/netnstest"
)

// others are rules as Docker (a published port, masquerade), kube-proxy (a
// cluster IP) and firewalld make them.
const others = `
ipt -w -t nat -N DOCKER
ipt -w -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
ipt -w -t nat -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
ipt -w -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
ipt -w -t nat -A DOCKER ! -i docker0 -p tcp -m tcp --dport 8099 -j DNAT --to-destination 10.1.1.3:8083
ipt -w -N DOCKER-USER
ipt -w -A FORWARD -j DOCKER-USER
ipt -w -A DOCKER-USER -j RETURN
for i in ipt ip6t; do
	case $i in
	*6*) ip=fd96::1 to=[fd00:1:0:2::2]:8084;;
	*) ip=10.96.0.1 to=10.1.2.2:8084;;
	esac
	for chain in KUBE-SERVICES KUBE-SVC-A KUBE-SEP-A KUBE-POSTROUTING KUBE-MARK-MASQ; do $i -w -t nat -N $chain; done
	$i -w -t nat -I PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
	$i -w -t nat -I OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
	$i -w -t nat -I POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
	$i -w -t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
	$i -w -t nat -A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
	$i -w -t nat -A KUBE-POSTROUTING -j MASQUERADE
	$i -w -t nat -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
	$i -w -t nat -A KUBE-SERVICES -d $ip -p tcp -m tcp --dport 443 -j KUBE-SVC-A
	$i -w -t nat -A KUBE-SVC-A -j KUBE-MARK-MASQ
	$i -w -t nat -A KUBE-SVC-A -m statistic --mode random --probability 0.5 -j KUBE-SEP-A
	$i -w -t nat -A KUBE-SVC-A -j KUBE-SEP-A
	$i -w -t nat -A KUBE-SEP-A -p tcp -m tcp -j DNAT --to-destination $to
done
nft -f - <<EOF
table inet firewalld {
	chain filter_INPUT {
		type filter hook input priority 10; policy accept;
		ct state established,related accept
		ct status dnat accept
		ct state invalid drop
	}
	chain filter_FORWARD {
		type filter hook forward priority 10; policy accept;
		ct state established,related accept
		ct status dnat accept
		ct state invalid drop
	}
	chain nat_PREROUTING { type nat hook prerouting priority -90; policy accept; }
	chain nat_POSTROUTING { type nat hook postrouting priority 110; policy accept; }
}
EOF`

// dumpOthers prints other people's rules, without counters and built-in chains.
const dumpOthers = `nft -s list table inet firewalld
for i in ipt ip6t; do $i-save; done 2>/dev/null | sed -e 's/\[[0-9:]*\]//' | grep -v FLANNELD | grep -e '^[*]' -e '^-A' -e '^:.* - ' |
	awk '/^[*]/ { table = $0; next } { print table, $0 }'`

const undoOthers = `nft delete table inet firewalld
for i in ipt ip6t; do for t in nat filter; do $i -w -t $t -F; $i -w -t $t -X; done; done`

func testOthers(t *testing.T, w *world, s ServicesSubject) {
	finally(t, w.a, "sh", "-c", s.ipt(undoOthers))
	netnstest.Run(t, w.a, "sh", "-ec", s.ipt(others))
	change(t, w.a, "route add 10.96.0.0/16 dev eth0\n-6 route add fd96::/64 dev eth0", "route del 10.96.0.0/16 dev eth0\n-6 route del fd96::/64 dev eth0")
	dump := func() string { return netnstest.Run(t, w.a, "sh", "-ec", s.ipt(dumpOthers)) }
	works := func(when string) {
		t.Helper()
		for name, c := range map[string]struct {
			road
			want string
		}{
			"Docker's published port":                {road{w.stranger, at(both()[0].a, 8099)}, server("a2", 3)},
			"Docker's published port from the host":  {road{w.a, at(both()[0].a, 8099)}, server("a2", 3)},
			"Kubernetes' cluster IP":                 {road{w.a1, at(netip.MustParseAddr("10.96.0.1"), 443)}, server("b1", 4)},
			"Kubernetes' cluster IP from the host":   {road{w.a, at(netip.MustParseAddr("10.96.0.1"), 443)}, server("b1", 4)},
			"Kubernetes' IPv6 cluster IP":            {road{w.a1, at(netip.MustParseAddr("fd96::1"), 443)}, server("b1", 4)},
			"Kubernetes' IPv6 cluster IP, from host": {road{w.a, at(netip.MustParseAddr("fd96::1"), 443)}, server("b1", 4)},
		} {
			who, _, err := call(c.from, "tcp", netip.Addr{}, c.dest)
			if err != nil || who != c.want {
				t.Errorf("%s: %s: %q answers (%v)", when, name, who, err)
			}
		}
	}
	before, whole := dump(), s.dump(t, w.a)
	works("before")
	b := openBalancer(t, w, w.a, s)
	b.sync(all(w))
	if after := dump(); after != before {
		t.Errorf("other people's rules changed:\n%s", difference(before, after))
	}
	works("beside ours")
	worksAll(t, w)
	for range 2 {
		b.do(func() error { return b.b.Remove(t.Context()) })
		s.expectDump(t, "after removal", w.a, whole)
	}
	works("after removal")
}

// testBesideFilter has both at work: neither undoes what the other did.
func testBesideFilter(t *testing.T, w *world, s ServicesSubject) {
	f := open(t, w, Subject{Open: s.OpenFilter})
	b := openBalancer(t, w, w.a, s)
	r := wanted()
	r.Names, r.OffLink = nil, nil
	f.sync(r)
	filtered := s.dump(t, w.a)
	b.sync(all(w))
	f.sync(r)
	b.sync(all(w))
	before := s.dump(t, w.a)
	writes := CountWrites(t, w.a)
	wrote := s.writes(b)
	for range 3 {
		f.sync(r)
		b.sync(all(w))
	}
	if n := writes(); n != 0 {
		t.Errorf("%d notifications of nf_tables, want none", n)
	}
	if n := s.writes(b) - wrote; n != 0 {
		t.Errorf("%d programs wrote, want none", n)
	}
	s.expectDump(t, "rules changed", w.a, before)
	worksAll(t, w)
	for _, f := range both() {
		expectCall(t, "a container to the world's node port", w.stranger, at(f.a, nodePort), server("b1", 0), f.tunnelA)
		expectSeen(t, f.name+" pod to the world", w.a1, netip.Addr{}, f.stranger, f.a.String())
		expectCall(t, "a container", w.a1, at(f.virtual(1), port), server("a2", 0), f.a1)
		if strangerGetsIn(t, w, f) {
			t.Errorf("%s: packets of a stranger are accepted", f.name)
		}
	}
	b.do(func() error { return b.b.Remove(t.Context()) })
	s.expectDump(t, "after removal of services", w.a, filtered)
	b.sync(all(w))
	f.do(func() error { return f.f.Remove(t.Context()) })
	b.sync(all(w))
	worksAll(t, w)
}
