package nft

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/flanneld/flanneld/kernel/rules"
)

func peersOf(v4 bool) string {
	if v4 {
		return peers4
	}
	return peers6
}

func peerSets(peers []netip.Addr) []set {
	v4 := make([]uint32, 0, len(peers)) // sorts several times faster than addresses
	var v6 []netip.Addr
	for _, a := range peers {
		if a = a.Unmap(); a.Is4() {
			b := a.As4()
			v4 = append(v4, binary.BigEndian.Uint32(b[:]))
		} else if a.Is6() {
			v6 = append(v6, a.WithZone(""))
		}
	}
	slices.Sort(v4)
	v4 = slices.Compact(v4)
	b4 := make([]byte, 0, 4*len(v4))
	for _, a := range v4 {
		b4 = binary.BigEndian.AppendUint32(b4, a)
	}
	slices.SortFunc(v6, netip.Addr.Compare)
	v6 = slices.Compact(v6)
	b6 := make([]byte, 0, 16*len(v6))
	for _, a := range v6 {
		b := a.As16()
		b6 = append(b6, b[:]...)
	}
	return []set{{peers4, setType(true), setKeys(b4, 4)}, {peers6, setType(false), setKeys(b6, 16)}}
}

// setKeys cuts b into keys of n bytes, which share its one allocation.
func setKeys(b []byte, n int) []string {
	if len(b) == 0 {
		return nil
	}
	s := string(b)
	keys := make([]string, len(b)/n)
	for i := range keys {
		keys[i] = s[i*n : (i+1)*n]
	}
	return keys
}

// fewPeers is how many may differ for withPeers to be worth it.
const fewPeers = 8

// withPeers returns t with other peers, where few of them changed: one host
// among thousands comes, goes or moves. t is what was made for last, and stays
// as it is.
func (t table) withPeers(last, now []netip.Addr) (_ table, ok bool) {
	old, fresh := trim(last, now)
	if len(old)+len(fresh) > fewPeers {
		return table{}, false
	}
	t.sets = slices.Clone(t.sets)
	for i := range t.sets {
		s := &t.sets[i]
		if s.name != peers4 && s.name != peers6 {
			continue
		}
		s.keys = slices.Clone(s.keys)
		for _, a := range old {
			if at, there := s.find(a); there && !slices.ContainsFunc(now, func(b netip.Addr) bool { return rules.SameHost(a, b) }) {
				s.keys = slices.Delete(s.keys, at, at+1)
			}
		}
		for _, a := range fresh {
			if at, there := s.find(a); !there && a.IsValid() && a.Unmap().Is4() == (s.name == peers4) {
				s.keys = slices.Insert(s.keys, at, peerKey(a))
			}
		}
	}
	return t, true
}

// trim cuts off what both lists begin and end with.
func trim[T comparable](a, b []T) (_, _ []T) {
	for len(a) > 0 && len(b) > 0 && a[0] == b[0] {
		a, b = a[1:], b[1:]
	}
	for len(a) > 0 && len(b) > 0 && a[len(a)-1] == b[len(b)-1] {
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	return a, b
}

func peerKey(a netip.Addr) string { return string(a.Unmap().AsSlice()) }

func (s set) find(a netip.Addr) (at int, there bool) { return slices.BinarySearch(s.keys, peerKey(a)) }
