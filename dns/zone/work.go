package zone

import (
	"hash/maphash"
	"net/netip"
	"slices"
	"strings"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/service"
)

// work is one build: it changes z, a copy of the former zone, branch by
// branch.
type work struct {
	z       *Zone
	st      *State
	edit    *edit
	picks   selectors
	moved   bool // some value is other than before
	changed bool // and of this zone's tenant
	// Made in this build and not finished.
	nodes    map[*node]bool // of several sources
	services map[*service.Service]*serviceNode
}

func newWork(z *Zone, picks selectors) *work {
	return &work{z: z, st: &z.state, edit: &edit{seed: z.seed}, picks: picks,
		nodes: map[*node]bool{}, services: map[*service.Service]*serviceNode{}}
}

func (w *work) ours(tenant string) bool {
	if tenant != w.st.Tenant {
		return false
	}
	w.changed = true
	return true
}

// alone is the node of a source that has a name or address for itself.
func (w *work) alone(s source) *node {
	if together(s) {
		return &node{of: s}
	}
	var l addresses
	l.add(w.st, s)
	return &node{of: &several{[]source{s}, l.sets()}}
}

// several returns n as a node that this build may change; if it has one source
// only, as one that may have several.
func (w *work) several(n *node) *node {
	if w.nodes[n] {
		return n
	}
	list := slices.Clone(n.sources())
	if list == nil {
		list = []source{n.of}
	}
	n = &node{of: &several{sources: list}}
	w.nodes[n] = true
	return n
}

// join adds a source to a name or address; own is its node if it is alone.
func join[K comparable](w *work, t trie[K, *node], hash uint64, k K, s source, own *node, hashOf func(K) uint64) trie[K, *node] {
	n, ok := t.get(hash, func(have K) bool { return have == k })
	if !ok {
		return t.put(w.edit, hash, k, own, hashOf)
	}
	n = w.several(n)
	list := n.of.(*several)
	list.sources = append(list.sources, s)
	return t.put(w.edit, hash, k, n, hashOf)
}

// leave takes a source from a name or address.
func leave[K comparable](w *work, t trie[K, *node], hash uint64, k K, s source, hashOf func(K) uint64) trie[K, *node] {
	n, ok := t.get(hash, func(have K) bool { return have == k })
	switch {
	case !ok:
		return t
	case n.len() == 1 && n.source(0) == s:
		return t.delete(w.edit, hash, k)
	}
	i := slices.Index(n.sources(), s)
	if i < 0 {
		return t
	}
	if n.len() == 2 {
		delete(w.nodes, n)
		return t.put(w.edit, hash, k, w.alone(n.source(1-i)), hashOf)
	}
	n = w.several(n)
	list := n.of.(*several)
	list.sources = slices.Delete(list.sources, i, i+1)
	return t.put(w.edit, hash, k, n, hashOf)
}

// touch makes a name's node anew if it has sets, as s is no longer, or again,
// an answer.
func (w *work) touch(t trie[string, *node], k string, s source) trie[string, *node] {
	hash := w.hashOf(k)
	n, ok := t.get(hash, func(have string) bool { return have == k })
	if !ok || !slices.Contains(n.sources(), s) {
		return t
	}
	return t.put(w.edit, hash, k, w.several(n), w.hashOf)
}

func (w *work) hashOf(k string) uint64 { return maphash.String(w.edit.seed, k) }

func (w *work) hashOfAddr(k [16]byte) uint64 { return maphash.Bytes(w.edit.seed, k[:]) }

// space returns the one of this name, for this build to change.
func (w *work) space(name string) *space {
	h := w.hashOf(name)
	sp, ok := w.z.spaces.get(h, func(k string) bool { return k == name })
	if ok && sp.made == w.edit {
		return sp
	}
	c := &space{}
	if ok {
		*c = *sp
	}
	c.made = w.edit
	w.z.spaces = w.z.spaces.put(w.edit, h, name, c, w.hashOf)
	return c
}

// tidy removes a space in which nothing is left.
func (w *work) tidy(name string, sp *space) {
	if sp.names.empty() && sp.deep.empty() && sp.pods == 0 {
		w.z.spaces = w.z.spaces.delete(w.edit, w.hashOf(name), name)
	}
}

// everyName calls f with each name that e has in the zone.
func (w *work) everyName(e *endpoint.Endpoint, f func(sp *space, label string)) {
	parent := w.st.parent(e)
	if parent == "" {
		return
	}
	sp := w.space(parent)
	namesOf(e, func(label string) bool {
		if !w.st.isServer(label, parent) {
			f(sp, label)
		}
		return true
	})
	w.tidy(parent, sp)
}

// addAddresses has s found by its addresses, of which own, its node, is one.
func (w *work) addAddresses(s source, own *node, list []netip.Addr) {
	for _, a := range list {
		w.z.addrs = join(w, w.z.addrs, w.hashOfAddr(key(a)), key(a), s, own, w.hashOfAddr)
	}
}

func (w *work) removeAddresses(s source, list []netip.Addr) {
	for _, a := range list {
		w.z.addrs = leave(w, w.z.addrs, w.hashOfAddr(key(a)), key(a), s, w.hashOfAddr)
	}
}

func (w *work) addEndpoint(e *endpoint.Endpoint) {
	if !w.ours(e.Tenant) {
		return
	}
	n := w.alone(e)
	w.everyName(e, func(sp *space, label string) {
		sp.names = join(w, sp.names, w.hashOf(label), label, e, n, w.hashOf)
	})
	w.addAddresses(e, n, e.Addresses)
	if len(e.Addresses) > 0 {
		w.space(w.st.podSpace(e)).pods++
	}
	w.picks.each(e, func(s *service.Service) {
		v := w.service(s)
		v.members = append(v.members, e)
	})
}

func (w *work) removeEndpoint(e *endpoint.Endpoint) {
	if !w.ours(e.Tenant) {
		return
	}
	w.everyName(e, func(sp *space, label string) {
		sp.names = leave(w, sp.names, w.hashOf(label), label, e, w.hashOf)
	})
	w.removeAddresses(e, e.Addresses)
	if len(e.Addresses) > 0 {
		name := w.st.podSpace(e)
		sp := w.space(name)
		sp.pods--
		w.tidy(name, sp)
	}
	w.picks.each(e, func(s *service.Service) {
		v := w.service(s)
		if i := slices.Index(v.members, e); i >= 0 {
			v.members = slices.Delete(v.members, i, i+1)
		}
	})
}

func (w *work) touchEndpoint(e *endpoint.Endpoint) {
	if !w.ours(e.Tenant) {
		return
	}
	w.everyName(e, func(sp *space, label string) { sp.names = w.touch(sp.names, label, e) })
	w.picks.each(e, func(s *service.Service) { w.service(s) })
}

func (w *work) addName(n *Name) {
	if !w.ours(n.Tenant) || endpoint.Reserved(n.Network) {
		return
	}
	own := w.alone(n)
	sp := w.space(n.Network)
	if !strings.Contains(n.Name, ".") {
		if !w.st.isServer(n.Name, n.Network) {
			sp.names = join(w, sp.names, w.hashOf(n.Name), n.Name, n, own, w.hashOf)
		}
	} else if wire := deepKey(n.Name); wire != "" {
		w.deep(sp, wire, func(d *deepNode) { d.node = own })
		for up := wire[1+int(wire[0]):]; up != ""; up = up[1+int(up[0]):] {
			w.deep(sp, up, func(d *deepNode) { d.below++ })
		}
	}
	w.tidy(n.Network, sp)
	w.addAddresses(n, own, n.Addresses)
}

func (w *work) removeName(n *Name) {
	if !w.ours(n.Tenant) || endpoint.Reserved(n.Network) {
		return
	}
	sp := w.space(n.Network)
	if !strings.Contains(n.Name, ".") {
		sp.names = leave(w, sp.names, w.hashOf(n.Name), n.Name, n, w.hashOf)
	} else if wire := deepKey(n.Name); wire != "" {
		w.deep(sp, wire, func(d *deepNode) { d.node = nil })
		for up := wire[1+int(wire[0]):]; up != ""; up = up[1+int(up[0]):] {
			w.deep(sp, up, func(d *deepNode) { d.below-- })
		}
	}
	w.tidy(n.Network, sp)
	w.removeAddresses(n, n.Addresses)
}

// deepKey is a name of several labels without the root; "" if it is none.
func deepKey(name string) string {
	wire, ok := Wire(name)
	if !ok || len(wire) < 2 {
		return ""
	}
	return string(wire[:len(wire)-1])
}

// deep changes what is at a name of several labels, or between.
func (w *work) deep(sp *space, wire string, change func(*deepNode)) {
	h := w.hashOf(wire)
	d, _ := sp.deep.get(h, func(k string) bool { return k == wire })
	change(&d)
	if d.node == nil && d.below == 0 {
		sp.deep = sp.deep.delete(w.edit, h, wire)
		return
	}
	sp.deep = sp.deep.put(w.edit, h, wire, d, w.hashOf)
}

// finish makes the records of what this build changed.
func (w *work) finish() {
	for n := range w.nodes {
		l := make(addresses, 0, n.len())
		for _, s := range n.sources() {
			l.add(w.st, s)
		}
		n.of.(*several).sets = l.sets()
	}
	for _, v := range w.services {
		v.finish(w.st)
	}
}
