package subnet

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/store"
)

// peer makes a lease: subnets, address, identity.
func peer(subnets, ip, identity string) Lease {
	l := Lease{Subnets: prefixes(subnets), PublicIPs: addrs(ip), Type: "vxlan", Identity: identity}
	l.Key = Key(testPrefix, l.Subnets)
	return l
}

func viewOf(epoch store.Epoch, leases ...Lease) View {
	v := View{Epoch: epoch}
	for _, l := range leases {
		v.Leases = append(v.Leases, &l)
	}
	slices.SortFunc(v.Leases, func(a, b *Lease) int { return strings.Compare(a.Key, b.Key) })
	return v
}

func keysOf(leases []*Lease) string {
	var s []string
	for _, l := range leases {
		s = append(s, strings.TrimPrefix(l.Key, SubnetsPrefix(testPrefix))+"="+joinAddrs(l.PublicIPs))
	}
	return strings.Join(s, " ")
}

func TestPeersAreEverybodyElse(t *testing.T) {
	own := peer("10.1.1.0/24", "192.168.7.1", "me")
	var p Peers
	got, recheck := p.Update(viewOf(1,
		own, peer("10.1.3.0/24", "192.168.7.3", "c"), peer("10.1.2.0/24", "192.168.7.2", ""),
		peer("10.1.9.0/24", "192.168.7.1", "me-before"), peer("10.1.1.128/25", "192.168.7.8", "overlap"),
	), own, time.Now())
	if keysOf(got) != "10.1.2.0-24=192.168.7.2 10.1.3.0-24=192.168.7.3" || !recheck.IsZero() {
		t.Errorf("got %s, recheck %v", keysOf(got), recheck)
	}
	if keysOf(p.Current()) != keysOf(got) {
		t.Errorf("current %s", keysOf(p.Current()))
	}
}

func TestPeersThatLeaveAreDroppedAtOnceWithinAnEpoch(t *testing.T) {
	var p Peers
	a, b := peer("10.1.1.0/24", "192.168.7.1", "a"), peer("10.1.2.0/24", "192.168.7.2", "b")
	p.Update(viewOf(1, a, b), Lease{}, time.Now())
	if got, recheck := p.Update(viewOf(1, a), Lease{}, time.Now()); keysOf(got) != "10.1.1.0-24=192.168.7.1" || !recheck.IsZero() {
		t.Errorf("got %s, recheck %v", keysOf(got), recheck)
	}
}

func TestPeersOfAFormerEpochStayForAWhile(t *testing.T) {
	own := peer("10.1.1.0/24", "192.168.7.1", "me")
	a, b, c := peer("10.1.2.0/24", "192.168.7.2", "a"), peer("10.1.3.0/24", "192.168.7.3", ""), peer("10.1.4.0/24 fd00:4::/64", "192.168.7.4", "c")
	now := time.Now()
	all := "10.1.2.0-24=192.168.7.2 10.1.3.0-24=192.168.7.3 10.1.4.0-24&fd00:4::-64=192.168.7.4"
	start := func() *Peers {
		p := &Peers{}
		p.Update(viewOf(1, own, a, b, c), own, now)
		return p
	}
	for name, tt := range map[string]struct {
		view View
		want string
	}{
		"wiped":                    {viewOf(2), all},
		"one registered again":     {viewOf(2, a), all},
		"holder of a key changed":  {viewOf(2, peer("10.1.2.0/24", "192.168.7.9", "z")), strings.Replace(all, "192.168.7.2", "192.168.7.9", 1)},
		"holder took another":      {viewOf(2, peer("10.1.8.0/24", "192.168.7.2", "a")), "10.1.3.0-24=192.168.7.3 10.1.4.0-24&fd00:4::-64=192.168.7.4 10.1.8.0-24=192.168.7.2"},
		"flannel's took another":   {viewOf(2, peer("10.1.8.0/24", "192.168.7.3", "")), "10.1.2.0-24=192.168.7.2 10.1.4.0-24&fd00:4::-64=192.168.7.4 10.1.8.0-24=192.168.7.3"},
		"moved to another address": {viewOf(2, peer("10.1.8.0/24", "192.168.7.55", "a")), "10.1.3.0-24=192.168.7.3 10.1.4.0-24&fd00:4::-64=192.168.7.4 10.1.8.0-24=192.168.7.55"},
		"a wider one":              {viewOf(2, peer("10.1.2.0/23", "192.168.7.9", "z")), "10.1.2.0-23=192.168.7.9 10.1.4.0-24&fd00:4::-64=192.168.7.4"},
		"a part in IPv6":           {viewOf(2, peer("10.1.9.0/24 fd00:4:0:0:8000::/65", "192.168.7.9", "z")), "10.1.2.0-24=192.168.7.2 10.1.3.0-24=192.168.7.3 10.1.9.0-24&fd00:4:0:0:8000::-65=192.168.7.9"},
	} {
		t.Run(name, func(t *testing.T) {
			p := start()
			got, recheck := p.Update(tt.view, own, now)
			if keysOf(got) != tt.want {
				t.Errorf("got  %s\nwant %s", keysOf(got), tt.want)
			}
			if recheck != now.Add(EpochGrace) {
				t.Errorf("recheck after %v", recheck.Sub(now))
			}
			got, recheck = p.Update(tt.view, own, now.Add(EpochGrace))
			if keysOf(got) != keysOf(tt.view.Leases) || !recheck.IsZero() {
				t.Errorf("after the grace %s, recheck %v", keysOf(got), recheck)
			}
		})
	}
}

func TestSecondEpochBeginsTheGraceAgain(t *testing.T) {
	a, b := peer("10.1.1.0/24", "192.168.7.1", "a"), peer("10.1.2.0/24", "192.168.7.2", "b")
	now := time.Now()
	var p Peers
	p.Update(viewOf(1, a, b), Lease{}, now)
	p.Update(viewOf(2, a), Lease{}, now)
	got, recheck := p.Update(viewOf(3), Lease{}, now.Add(30*time.Second))
	if keysOf(got) != "10.1.1.0-24=192.168.7.1 10.1.2.0-24=192.168.7.2" || recheck != now.Add(90*time.Second) {
		t.Errorf("got %s, recheck after %v", keysOf(got), recheck.Sub(now))
	}
}

// TestPeersAfterManyChangesAreThoseOfTheLastView compares with Peers that knew
// nothing.
func TestPeersAfterManyChangesAreThoseOfTheLastView(t *testing.T) {
	rnd := source(3)
	owns := []Lease{peer("10.1.1.0/24", "192.168.7.1", "me"), peer("10.1.1.0/24", "192.168.7.2", "me"), peer("10.1.2.0/24", "192.168.7.1", "me")}
	leases := map[int]*Lease{}
	var p Peers
	for step := range 2000 {
		n := rnd.IntN(12)
		if delete(leases, n); rnd.IntN(3) > 0 {
			l := peer(fmt.Sprintf("10.1.%d.0/24", n), fmt.Sprintf("192.168.7.%d", 1+rnd.IntN(12)), "")
			leases[n] = &l
		}
		v := View{Epoch: 1, Leases: slices.SortedFunc(maps.Values(leases), func(a, b *Lease) int { return strings.Compare(a.Key, b.Key) })}
		own := owns[rnd.IntN(60)/20]
		var fresh Peers
		got, _ := p.Update(v, own, time.Now())
		want, _ := fresh.Update(v, own, time.Now())
		if !slices.Equal(got, want) {
			t.Fatalf("step %d: got %s, want %s", step, keysOf(got), keysOf(want))
		}
	}
}
