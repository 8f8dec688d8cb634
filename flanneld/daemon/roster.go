package daemon

import (
	"cmp"
	"slices"
	"strings"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/store"
)

// roster tells which endpoints of a long list count, and whose they are. It
// looks at those that changed since the last list alone: to follow 50,000
// pointers takes longer than all else between etcd and the kernel. What the
// zero value is told first it looks at in full. Lists are sorted by
// compareEndpoints.
type roster struct {
	all    []*endpoint.Endpoint
	former []int        // where in all those are that do not count, in order
	lives  map[life]int // how many of the others there are of each
}

// life is a host's from one start of the machine to the next.
type life struct{ host, identity string }

// become follows to another list. isFormer must say the same of an endpoint as
// at the last call.
func (r *roster) become(all []*endpoint.Endpoint, isFormer func(*endpoint.Endpoint) bool) {
	if r.lives == nil {
		r.lives = map[life]int{}
	}
	front, back := store.Unchanged(r.all, all, func(a, b **endpoint.Endpoint) bool { return *a == *b })
	oldEnd, end := len(r.all)-back, len(all)-back
	first, _ := slices.BinarySearch(r.former, front)
	last, _ := slices.BinarySearch(r.former, oldEnd)
	gone := r.former[first:last]
	for i := front; i < oldEnd; i++ {
		if len(gone) > 0 && gone[0] == i {
			gone = gone[1:]
			continue
		}
		l := life{r.all[i].Host, r.all[i].Identity}
		if r.lives[l]--; r.lives[l] == 0 {
			delete(r.lives, l)
		}
	}
	var former []int
	var of life // there may be many of a host
	not, known := false, false
	for i := front; i < end; i++ {
		e := all[i]
		if l := (life{e.Host, e.Identity}); !known || l != of {
			of, not, known = l, isFormer(e), true
		}
		if not {
			former = append(former, i)
			continue
		}
		r.lives[of]++
	}
	for i := last; i < len(r.former); i++ {
		r.former[i] += end - oldEnd
	}
	r.former = slices.Replace(r.former, first, last, former...)
	r.all = all
}

// current are those that count, in the order of the list. The result must not
// be written to.
func (r *roster) current() []*endpoint.Endpoint {
	if len(r.former) == 0 {
		return r.all
	}
	out := make([]*endpoint.Endpoint, 0, len(r.all)-len(r.former))
	from := 0
	for _, i := range r.former {
		out, from = append(out, r.all[from:i]...), i+1
	}
	return append(out, r.all[from:]...)
}

// merge returns the values of two lists in their order, b's where both have a
// key. It copies what is between and looks only for where that ends.
func merge(a, b []*endpoint.Endpoint) []*endpoint.Endpoint {
	if len(b) == 0 {
		return a
	}
	out := make([]*endpoint.Endpoint, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		i, same := reach(a, b[0])
		out, a = append(out, a[:i]...), a[i:]
		if same {
			a = a[1:]
		}
		if len(a) == 0 {
			break
		}
		i, _ = reach(b, a[0])
		out, b = append(out, b[:i]...), b[i:]
	}
	return append(append(out, a...), b...)
}

// reach returns where e is or belongs in a list, in which that is near the
// front or far from it.
func reach(list []*endpoint.Endpoint, e *endpoint.Endpoint) (int, bool) {
	end := 1
	for end < len(list) && compareEndpoints(list[end-1], e) < 0 {
		end *= 2
	}
	return slices.BinarySearchFunc(list[:min(end, len(list))], e, compareEndpoints)
}

// compareEndpoints orders by key.
func compareEndpoints(a, b *endpoint.Endpoint) int {
	return cmp.Or(strings.Compare(a.Tenant, b.Tenant), strings.Compare(a.Network, b.Network), strings.Compare(a.ID, b.ID))
}
