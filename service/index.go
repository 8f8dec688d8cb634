package service

import (
	"hash/maphash"
	"iter"
	"slices"
	"strings"

	"github.com/flanneld/flanneld/endpoint"
)

// index finds the endpoints that may be a taker's and the takers that an
// endpoint may be of, by hashes of what the one has and the other asks for.
// What is found must be looked at: hashes collide.
type index struct {
	endpoints map[uint64][]*endpoint.Endpoint // by network and ID
	takers    map[uint64][]*taker
}

func newIndex() index {
	return index{endpoints: map[uint64][]*endpoint.Endpoint{}, takers: map[uint64][]*taker{}}
}

// pair is what endpoints are found by: a label, or with key "", which no label
// has, the beginning of a name or of a container's id.
type pair struct{ network, key, value string }

func (p pair) hash(seed maphash.Seed) uint64 { return maphash.Comparable(seed, p) }

// handle is the pair for names and ids: publications ask for a name, or for an
// id by its beginning.
func handle(network, text string) pair { return pair{network, "", text[:min(len(text), shortID)]} }

func compareInside(a, b *endpoint.Endpoint) int {
	if c := strings.Compare(a.Network, b.Network); c != 0 {
		return c
	}
	return strings.Compare(a.ID, b.ID)
}

// join puts e where it is not yet.
func (x *index) join(at uint64, e *endpoint.Endpoint) {
	list := x.endpoints[at]
	if n := len(list); n == 0 || compareInside(list[n-1], e) < 0 { // as they come, mostly
		x.endpoints[at] = append(list, e)
		return
	}
	if i, there := slices.BinarySearchFunc(list, e, compareInside); !there {
		x.endpoints[at] = slices.Insert(list, i, e)
	}
}

// leave takes e away if it is there.
func (x *index) leave(at uint64, e *endpoint.Endpoint) {
	list := x.endpoints[at]
	i, there := slices.BinarySearchFunc(list, e, compareInside)
	switch {
	case !there:
	case len(list) == 1:
		delete(x.endpoints, at)
	default:
		x.endpoints[at] = slices.Delete(list, i, i+1)
	}
}

// stand puts k where endpoints find it.
func (x *index) stand(at uint64, k *taker) {
	k.at = at
	x.takers[at] = append(x.takers[at], k)
}

// enter puts e into the indexes.
func (t *Table) enter(e *endpoint.Endpoint) {
	for key, value := range e.Labels {
		t.labels.join(pair{e.Network, key, value}.hash(t.seed), e)
	}
	for at := range t.handled(e) {
		t.handles.join(at, e)
	}
}

// exit takes e out of the indexes.
func (t *Table) exit(e *endpoint.Endpoint) {
	for key, value := range e.Labels {
		t.labels.leave(pair{e.Network, key, value}.hash(t.seed), e)
	}
	for at := range t.handled(e) {
		t.handles.leave(at, e)
	}
}

// handled are the handles of e that a publication stands at; no others are
// kept. One may come twice.
func (t *Table) handled(e *endpoint.Endpoint) iter.Seq[uint64] {
	return func(yield func(uint64) bool) {
		if len(t.handles.takers) == 0 {
			return
		}
		asked := func(text string) bool {
			at := handle(e.Network, text).hash(t.seed)
			return len(t.handles.takers[at]) == 0 || yield(at)
		}
		if !asked(e.Container) {
			return
		}
		for _, name := range e.Names {
			if !asked(name) {
				return
			}
		}
	}
}

// touch notes the takers that e is of.
func (t *Table) touch(e *endpoint.Endpoint) {
	if len(t.labels.takers) > 0 {
		for key, value := range e.Labels {
			t.touchAt(&t.labels, pair{e.Network, key, value}.hash(t.seed), e)
		}
	}
	for at := range t.handled(e) {
		t.touchAt(&t.handles, at, e)
	}
}

func (t *Table) touchAt(x *index, at uint64, e *endpoint.Endpoint) {
	for _, k := range x.takers[at] {
		if !k.dirty && k.selects(e) {
			k.dirty = true
			t.dirty = append(t.dirty, k)
		}
	}
}

// standService puts k at the label of its selector that the fewest others
// stand at.
func (t *Table) standService(k *taker) {
	var at uint64
	least := -1
	for key, value := range k.service.Selector {
		h := pair{k.service.Network, key, value}.hash(t.seed)
		if n := len(t.labels.takers[h]); least < 0 || n < least {
			at, least = h, n
		}
	}
	if least >= 0 {
		t.labels.stand(at, k)
	}
}

// standPublications puts each at its handle. Where none stood before, the
// endpoints of the handle are looked for, all at once.
func (t *Table) standPublications(list []*taker) {
	fresh := map[uint64]bool{}
	for _, k := range list {
		at := handle(k.published.Network, k.published.Target).hash(t.seed)
		if len(t.handles.takers[at]) == 0 {
			fresh[at] = true
		}
		t.handles.stand(at, k)
	}
	if len(fresh) == 0 {
		return
	}
	for _, e := range t.state.Endpoints {
		if e.Tenant != t.state.Tenant {
			continue
		}
		for at := range t.handled(e) {
			if fresh[at] {
				t.handles.join(at, e)
			}
		}
	}
}

// depart undoes what stand did.
func (t *Table) depart(k *taker) {
	x := &t.labels
	if k.published != nil {
		x = &t.handles
	} else if len(k.service.Selector) == 0 {
		return
	}
	list := x.takers[k.at]
	if len(list) > 1 {
		i := slices.Index(list, k)
		x.takers[k.at] = slices.Delete(list, i, i+1)
		return
	}
	delete(x.takers, k.at)
	if k.published != nil {
		delete(x.endpoints, k.at)
	}
}

// chosen are the endpoints that k selects, by ID. They are good until the next
// call.
func (t *Table) chosen(k *taker) []*endpoint.Endpoint {
	var list []*endpoint.Endpoint
	if k.published != nil {
		list = t.handles.endpoints[k.at]
	} else {
		first := true
		for key, value := range k.service.Selector {
			l := t.labels.endpoints[pair{k.service.Network, key, value}.hash(t.seed)]
			if first || len(l) < len(list) {
				list, first = l, false
			}
		}
	}
	t.members = t.members[:0]
	for _, e := range list {
		if k.selects(e) {
			t.members = append(t.members, e)
		}
	}
	return t.members
}
