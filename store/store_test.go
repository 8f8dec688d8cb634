package store_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flanneld/flanneld/store"
	"github.com/flanneld/flanneld/store/mem"
)

func TestBackoffDoublesUpToItsMaximum(t *testing.T) {
	b := store.Backoff{Min: 100 * time.Millisecond, Max: time.Second}
	for range 2 {
		for _, most := range []time.Duration{100, 200, 400, 800, 1000, 1000, 1000} {
			most *= time.Millisecond
			if d := b.Next(); d < most/2 || d > most {
				t.Errorf("pause of %v, want %v to %v", d, most/2, most)
			}
		}
		b.Reset()
	}
	var zero store.Backoff
	for range 100 {
		if d := zero.Next(); d < 50*time.Millisecond || d > 10*time.Second {
			t.Errorf("pause of %v", d)
		}
	}
}

func TestBackoffDiffersBetweenHosts(t *testing.T) {
	seen := map[time.Duration]bool{}
	for range 20 {
		b := store.Backoff{Min: time.Hour, Max: time.Hour}
		seen[b.Next()] = true
	}
	if len(seen) < 10 {
		t.Errorf("%d different pauses of 20", len(seen))
	}
}

func TestBackoffEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		why := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(why) })
		b := store.Backoff{Min: time.Minute, Max: time.Hour}
		began := time.Now()
		if err := b.Wait(ctx); !errors.Is(err, why) || time.Since(began) != time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		b.Reset()
		if err := b.Wait(t.Context()); err != nil || time.Since(began) < 31*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

func TestUpdateSeesAbsence(t *testing.T) {
	s := mem.New()
	revision, err := store.Update(t.Context(), s, "/k", func(kv store.KV) (store.Txn, error) {
		if kv.Key != "/k" || kv.ModRevision != 0 {
			t.Errorf("%+v", kv)
		}
		return store.Txn{Put: []store.Put{{Key: kv.Key}}}, nil
	})
	if kv, _ := s.Get(t.Context(), "/k"); err != nil || kv.ModRevision != revision {
		t.Errorf("%v, %v, %+v", revision, err, kv)
	}
}

func TestUpdateEndsWithItsErrorsAndWithNothingToDo(t *testing.T) {
	s := mem.New()
	why := errors.New("enough")
	if _, err := store.Update(t.Context(), s, "/k", func(store.KV) (store.Txn, error) { return store.Txn{}, why }); !errors.Is(err, why) {
		t.Error(err)
	}
	if revision, err := store.UpdatePrefix(t.Context(), s, "/", func(store.Snapshot) (store.Txn, error) { return store.Txn{}, nil }); revision != 0 || err != nil {
		t.Error(revision, err)
	}
	s.Down(true)
	if _, err := store.Update(t.Context(), s, "/k", func(store.KV) (store.Txn, error) { return store.Txn{}, nil }); !errors.Is(err, mem.ErrUnreachable) {
		t.Error(err)
	}
}

func TestUpdateTriesAgainUntilTheContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := mem.New()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		tries := 0
		_, err := store.Update(ctx, s, "/k", func(kv store.KV) (store.Txn, error) {
			tries++
			x := store.Txn{Put: []store.Put{{Key: "/k"}}}
			if _, err := s.Commit(t.Context(), x); err != nil { // somebody else is always faster
				t.Fatal(err)
			}
			return x, nil
		})
		if !errors.Is(err, store.ErrConflict) || !errors.Is(err, context.DeadlineExceeded) || tries < 50 || tries > 1000 {
			t.Errorf("%v after %d tries", err, tries)
		}
	})
}
