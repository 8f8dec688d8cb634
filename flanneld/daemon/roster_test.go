package daemon

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/flanneld/flanneld/endpoint"
)

// someEndpoints are a random part of a cluster, sorted; what is in each keeps
// its pointer.
func someEndpoints(r *rand.Rand, pool []*endpoint.Endpoint) (list []*endpoint.Endpoint) {
	for _, e := range pool {
		if r.IntN(4) > 0 {
			list = append(list, e)
		}
	}
	return list
}

func TestARosterThatFollowsIsOneMadeAfresh(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var pool []*endpoint.Endpoint
	for i := range 24 {
		pool = append(pool, at(fmt.Sprintf("host%d", i/6), fmt.Sprintf("id%d", i/3), fmt.Sprintf("c%02d", i), "10.1.2.3"))
	}
	slices.SortFunc(pool, compareEndpoints)
	isFormer := func(e *endpoint.Endpoint) bool {
		return e.Identity == "id2" || e.Identity == "id5" || e.Identity == "id6"
	}
	var follows roster
	for range 3000 {
		if r.IntN(2) == 0 { // written again
			i := r.IntN(len(pool))
			again := *pool[i]
			pool[i] = &again
		}
		list := slices.Clone(follows.all)
		if r.IntN(4) == 0 {
			list = someEndpoints(r, pool)
		} else if i := r.IntN(24); i < len(list) {
			list = slices.Delete(list, i, i+1)
		}
		before := slices.Clone(list)
		follows.become(list, isFormer)
		var fresh roster
		fresh.become(list, isFormer)
		want := slices.DeleteFunc(slices.Clone(list), isFormer)
		if got := follows.current(); !slices.Equal(got, want) || !slices.Equal(fresh.current(), want) {
			t.Fatalf("%v, afresh %v, want %v", ids(got), ids(fresh.current()), ids(want))
		}
		if !maps.Equal(follows.lives, fresh.lives) {
			t.Fatalf("lives %v, afresh %v", follows.lives, fresh.lives)
		}
		if !slices.Equal(list, before) {
			t.Fatal("the list was written to")
		}
	}
}

func TestAMergeHasEachKeyOnceAndTheSecondListsValues(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	var pools [2][]*endpoint.Endpoint
	for i := range 40 {
		for p := range pools {
			pools[p] = append(pools[p], at("host1", "id1", fmt.Sprintf("c%02d", i), "10.1.2.3"))
		}
	}
	for range 2000 {
		a, b := someEndpoints(r, pools[0][r.IntN(40):]), someEndpoints(r, pools[1][r.IntN(40):])
		if r.IntN(2) == 0 {
			a, b = b, a
		}
		byID := map[string]*endpoint.Endpoint{}
		for _, e := range slices.Concat(a, b) {
			byID[e.ID] = e
		}
		want := slices.SortedFunc(maps.Values(byID), compareEndpoints)
		if got := merge(a, b); !slices.Equal(got, want) {
			t.Fatalf("%v and %v: %v", ids(a), ids(b), ids(got))
		}
	}
}
