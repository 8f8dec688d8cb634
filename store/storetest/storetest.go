// Package storetest is the contract that every implementation of store.Store
// passes, with what it takes to make a store fail: etcd as a program, and a
// TCP proxy that goes silent.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flanneld/flanneld/store"
)

// Subject is a store under test with empty data. A hook that is nil leaves
// out the tests that need it.
type Subject struct {
	Store store.Store
	// Other is another host's connection to the same data.
	Other store.Store
	// Stop and Start take the server away and bring it back with its data.
	Stop, Start func()
	// Wipe replaces the data by none.
	Wipe func()
	// Save makes a backup; what it returns puts it back.
	Save func() (restore func())
	// Compact drops all history up to a revision.
	Compact func(revision int64)
	// Cut makes Store's established connections silent without closing them.
	Cut func()
}

// Run tests the contract; open makes a new subject for each test and cleans
// up with it.
func Run(t *testing.T, open func(t *testing.T) Subject) {
	for name, test := range contract() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, open(t))
		})
	}
}

// RunInBubble is Run for a store that needs nothing from outside: time is
// that of a testing/synctest bubble.
func RunInBubble(t *testing.T, open func(t *testing.T) Subject) {
	for name, test := range contract() {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, open(t)) })
		})
	}
}

func contract() map[string]func(*testing.T, Subject) {
	return map[string]func(*testing.T, Subject){
		"GetListCommit":                        testCommit,
		"CommitIsWholeOrNothing":               testAtomic,
		"CommitRefusesWhatIsTooLarge":          testLimits,
		"PrefixCondition":                      testPrefixCondition,
		"OneOfManyConcurrentCommitsWins":       testRace,
		"UpdateLosesNoIncrement":               testUpdate,
		"UpdatePrefixSharesNothing":            testUpdatePrefix,
		"WatchYieldsPresentAndFuture":          testWatch,
		"WatchSeesWholeTransactions":           testWatchAtomic,
		"WatchKeepsWhatWasParsed":              testWatchParsed,
		"WatchOfASlowConsumerConverges":        testSlowConsumer,
		"WatchEndsWithItsContext":              testWatchEnds,
		"SnapshotsDoNotChange":                 testImmutable,
		"SessionKeepsItsKeys":                  testSession,
		"ClosedSessionTakesItsKeys":            testSessionClose,
		"LeftSessionExpires":                   testSessionLeave,
		"SessionIsAdopted":                     testSessionAdopt,
		"RevokedSessionIsTold":                 testSessionRevoked,
		"KeysOfALostSessionAreRefused":         testSessionRefused,
		"OutageIsToldAndOver":                  testOutage,
		"SessionSurvivesAShortOutage":          testSessionOutage,
		"CompactionIsNotNoticed":               testCompaction,
		"WipeBeginsAnEpoch":                    testWipe,
		"RestoreBeginsAnEpoch":                 testRestore,
		"RestoreIsNoticedAboveTheOldRevision":  testRestoreHidden,
		"RestartIsNoNewEpoch":                  testRestart,
		"SilentConnectionIsReplacedWithin15s":  testCut,
		"SilentConnectionDoesNotEndTheSession": testCutSession,
	}
}

// patience is how long anything may take that should happen at once.
const patience = 20 * time.Second

const dir = "/contract/"

// View is a running Watch that can be asked for what it has seen.
type View struct {
	Last store.Snapshot

	t      testing.TB
	events chan event
}

// event is what a watch yielded.
type event struct {
	snap store.Snapshot
	err  error
}

// Watch runs a Watch until the test ends.
func Watch(t testing.TB, s store.Store, prefix string) *View {
	t.Helper()
	return watchParsed(t, s, prefix, nil)
}

func watchParsed(t testing.TB, s store.Store, prefix string, parse func(store.KV) any) *View {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	v := &View{t: t, events: make(chan event, 10000)}
	var g sync.WaitGroup
	g.Go(func() {
		for snap, err := range s.Watch(ctx, prefix, parse) {
			if parse != nil { // it is written to when the next is asked for
				snap.KVs = slices.Clone(snap.KVs)
			}
			v.events <- event{snap, err}
		}
	})
	t.Cleanup(g.Wait)
	t.Cleanup(cancel)
	return v
}

// next returns what was yielded next, false if nothing is for too long.
func (v *View) next() (snap store.Snapshot, more bool, err error) {
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case e := <-v.events:
		return e.snap, true, e.err
	case <-late.C:
		return store.Snapshot{}, false, nil
	}
}

// Until returns the first snapshot that ok accepts; errors are passed over.
func (v *View) Until(what string, ok func(store.Snapshot) bool) store.Snapshot {
	v.t.Helper()
	for {
		snap, more, err := v.next()
		if !more {
			v.t.Fatalf("no snapshot with %s within %v; the last one: %v", what, patience, keys(v.Last))
		}
		if err != nil {
			continue
		}
		v.check(snap)
		if v.Last = snap; ok(snap) {
			return snap
		}
	}
}

// AwaitError waits for the next error and returns its text; without one the
// test fails.
func (v *View) AwaitError() string {
	v.t.Helper()
	for {
		snap, more, err := v.next()
		if !more {
			v.t.Fatalf("no error within %v", patience)
		}
		if err != nil {
			if !slices.EqualFunc(snap.KVs, v.Last.KVs, sameKV) {
				v.t.Errorf("with the error came %v, not the last snapshot %v", keys(snap), keys(v.Last))
			}
			return err.Error()
		}
		v.Last = snap
	}
}

// Has waits for a snapshot of exactly these keys.
func (v *View) Has(names ...string) store.Snapshot {
	v.t.Helper()
	want := make([]string, len(names))
	for i, n := range names {
		want[i] = dir + n
	}
	slices.Sort(want)
	return v.Until(fmt.Sprint(names), func(s store.Snapshot) bool { return slices.Equal(keys(s), want) })
}

func (v *View) check(s store.Snapshot) {
	v.t.Helper()
	if !slices.IsSortedFunc(s.KVs, func(a, b store.KV) int { return strings.Compare(a.Key, b.Key) }) {
		v.t.Errorf("not sorted: %v", keys(s))
	}
	for _, kv := range s.KVs {
		if kv.ModRevision > s.Revision || kv.CreateRevision > kv.ModRevision || kv.CreateRevision <= 0 {
			v.t.Errorf("%s: created at %d, written at %d, in a snapshot of revision %d", kv.Key, kv.CreateRevision, kv.ModRevision, s.Revision)
		}
	}
	if v.Last.Epoch == s.Epoch && v.Last.Revision > s.Revision {
		v.t.Errorf("revision %d after %d in one epoch", s.Revision, v.Last.Revision)
	}
	if s.Fresh.IsZero() || s.Fresh.After(time.Now()) {
		v.t.Errorf("fresh since %v", s.Fresh)
	}
}

func keys(s store.Snapshot) []string {
	out := []string{}
	for _, kv := range s.KVs {
		out = append(out, kv.Key)
	}
	return out
}

func sameKV(a, b store.KV) bool {
	return a.Key == b.Key && a.ModRevision == b.ModRevision && string(a.Value) == string(b.Value)
}

func put(names ...string) store.Txn {
	var t store.Txn
	for _, n := range names {
		t.Put = append(t.Put, store.Put{Key: dir + n, Value: []byte("value of " + n)})
	}
	return t
}

// must commits, trying again while the store is away.
func must(t testing.TB, s store.Store, x store.Txn) int64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for pause := (store.Backoff{Min: 20 * time.Millisecond, Max: 200 * time.Millisecond}); ; {
		revision, err := s.Commit(ctx, x)
		if err == nil {
			return revision
		}
		if errors.Is(err, store.ErrConflict) || pause.Wait(ctx) != nil {
			t.Fatal(err)
		}
	}
}

// wins counts how many of n concurrent calls return no error; any error but
// a conflict fails the test.
func wins(t testing.TB, n int, f func(i int) error) int {
	var won atomic.Int32
	var g sync.WaitGroup
	for i := range n {
		g.Go(func() {
			switch err := f(i); {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, store.ErrConflict):
				t.Error(err)
			}
		})
	}
	g.Wait()
	return int(won.Load())
}
