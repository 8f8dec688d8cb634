package mem_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/flanneld/flanneld/store"
	"github.com/flanneld/flanneld/store/mem"
	"github.com/flanneld/flanneld/store/storetest"
)

func TestContract(t *testing.T) {
	storetest.RunInBubble(t, func(t *testing.T) storetest.Subject {
		s := mem.New()
		return storetest.Subject{
			Store: s,
			Other: s.Dial(),
			Stop:  func() { s.Down(true); time.Sleep(50 * time.Millisecond) },
			Start: func() { s.Down(false) },
			Wipe:  s.Wipe,
			Save: func() func() {
				b := s.Save()
				return func() { s.Restore(b); s.Down(false) }
			},
			Compact: func(int64) {},
		}
	})
}

func TestSessionsExpireInBubbleTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := mem.New()
		other := s.Dial()
		n, err := s.Session(t.Context(), 24*time.Hour, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Commit(t.Context(), store.Txn{Put: []store.Put{{Key: "k", Session: n.ID()}}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(48 * time.Hour)
		s.Cut(true)
		time.Sleep(24*time.Hour - time.Second)
		if kv, _ := other.Get(t.Context(), "k"); kv.ModRevision == 0 {
			t.Fatal("gone too early")
		}
		select {
		case <-n.Done():
			t.Fatal("lost too early")
		default:
		}
		time.Sleep(2 * time.Second)
		if kv, _ := other.Get(t.Context(), "k"); kv.ModRevision != 0 {
			t.Fatal("a host that was cut off keeps its key")
		}
		<-n.Done()
	})
}

func TestOutageDoesNotExpireOnTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := mem.New()
		n, err := s.Session(t.Context(), 8*time.Second, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Commit(t.Context(), store.Txn{Put: []store.Put{{Key: "k", Session: n.ID()}}}); err != nil {
			t.Fatal(err)
		}
		s.Down(true)
		time.Sleep(time.Hour)
		<-n.Done()
		s.Down(false)
		if kv, _ := s.Get(t.Context(), "k"); kv.ModRevision == 0 {
			t.Fatal("a server that starts again gives every session its TTL")
		}
		time.Sleep(9 * time.Second)
		if kv, _ := s.Get(t.Context(), "k"); kv.ModRevision != 0 {
			t.Fatal("nobody renews it")
		}
	})
}
