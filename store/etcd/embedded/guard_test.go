package embedded

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/flanneld/flanneld/store"
)

const small = 8 << 20

// fill writes large keys until the store refuses one, and returns how many it
// took.
func fill(t *testing.T, c store.Store) int {
	t.Helper()
	value := make([]byte, 64<<10)
	for i := range 1000 {
		_, err := c.Commit(t.Context(), store.Txn{Put: []store.Put{{Key: fmt.Sprintf("/fill/%04d", i), Value: value}}})
		if errors.Is(err, store.ErrFull) {
			return i
		}
		if err != nil {
			t.Fatal(err)
		}
		if i%10 == 0 {
			time.Sleep(110 * time.Millisecond) // etcd counts after each batch
		}
	}
	t.Fatal("a full store refused nothing")
	return 0
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

func (s *Server) alarmed() bool { return len(s.etcd.Server.Alarms()) > 0 }

func TestGrowthIsRefusedBeforeEtcdFreezes(t *testing.T) {
	t.Parallel()
	var log logs
	s := serve(t, Options{Dir: t.TempDir(), Quota: small, Log: slog.New(slog.NewTextHandler(&log, nil))})
	c := open(t, s.Client())
	n, err := c.Session(t.Context(), 2*time.Second, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Commit(t.Context(), store.Txn{Put: []store.Put{{Key: "/own", Value: []byte("value"), Session: n.ID()}}}); err != nil {
		t.Fatal(err)
	}
	took := fill(t, c)
	if got := took * 64 << 10; got < small/2 || got > small*9/10 {
		t.Errorf("full after %d bytes of %d", got, small)
	}
	eventually(t, "it is said", func() bool { return strings.Contains(log.String(), "takes nothing new") })
	if st := s.Status(); st.Refusing == "" || st.Quota != small || st.Size > small {
		t.Errorf("%+v", st)
	}

	// What is there goes on.
	end := time.Now().Add(2 * time.Second)
	for i := 0; time.Now().Before(end); i++ {
		if _, err := c.Commit(t.Context(), store.Txn{Put: []store.Put{{Key: "/own", Value: fmt.Append(nil, "value ", i), Session: n.ID()}}}); err != nil {
			t.Fatalf("update %d of an existing key: %v", i, err)
		}
	}
	if _, err := c.Commit(t.Context(), store.Txn{Put: []store.Put{{Key: "/own", Value: make([]byte, 4096)}}}); !errors.Is(err, store.ErrFull) {
		t.Errorf("an existing key that grows: %v", err)
	}
	select {
	case <-n.Done():
		t.Error("the session was lost")
	default:
	}
	if s.alarmed() {
		t.Error("etcd has raised its alarm")
	}

	// Room is made, and it goes on by itself.
	for i := range took {
		if _, err := c.Commit(t.Context(), store.Txn{Delete: []string{fmt.Sprintf("/fill/%04d", i)}}); err != nil {
			t.Fatalf("delete: %v", err)
		}
	}
	eventually(t, "new keys are taken", func() bool {
		_, err := c.Commit(t.Context(), store.Txn{Put: []store.Put{{Key: "/new"}}})
		return err == nil
	})
	// Which deletions the last defragmentation saw is chance: what is promised
	// is a file that needs none.
	eventually(t, "the file is small again", func() bool { return s.Status().Size <= small/100*percentTidy })
	eventually(t, "it is said", func() bool { return strings.Contains(log.String(), "takes everything again") })
}

func TestHistoryDoesNotFillIt(t *testing.T) {
	t.Parallel()
	s := serve(t, Options{Dir: t.TempDir(), Quota: small})
	c := open(t, s.Client())
	value := make([]byte, 32<<10)
	for i := range 600 { // more than twice the quota
		_, err := c.Commit(t.Context(), store.Txn{Put: []store.Put{{Key: fmt.Sprint("/k", i%5), Value: value}}})
		if err != nil {
			t.Fatalf("write %d: %v, %+v", i, err, s.Status())
		}
		time.Sleep(3 * time.Millisecond)
	}
}

func TestAlarmIsDisarmedWhenThereIsRoom(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := serve(t, Options{Dir: dir})
	r := pb.AlarmRequest{MemberID: uint64(s.etcd.Server.MemberID()), Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_NOSPACE}
	if _, err := s.etcd.Server.Alarm(t.Context(), &r); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = serve(t, Options{Dir: dir})
	eventually(t, "the alarm is off", func() bool { return !s.alarmed() })
	commit(t, open(t, s.Client()), "/a", "1")
}

func TestDiskNearlyFullRefusesGrowth(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := serve(t, Options{Dir: dir})
	commit(t, open(t, s.Client()), "/own", "1")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = serve(t, Options{Dir: dir, minFree: 1 << 60})
	c := open(t, s.Client())
	if _, err := c.Commit(t.Context(), store.Txn{Put: []store.Put{{Key: "/new"}}}); !errors.Is(err, store.ErrFull) {
		t.Errorf("a new key: %v", err)
	}
	commit(t, c, "/own", "2")
	if st := s.Status(); !strings.Contains(st.Refusing, dir) {
		t.Errorf("%+v", st)
	}
}

func TestHolesAreGivenBackAtStart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := serve(t, Options{Dir: dir})
	c := open(t, s.Client())
	for i := range 40 {
		commit(t, c, fmt.Sprint("/k", i), strings.Repeat("x", 1<<20))
	}
	for i := range 40 {
		if _, err := c.Commit(t.Context(), store.Txn{Delete: []string{fmt.Sprint("/k", i)}}); err != nil {
			t.Fatal(err)
		}
	}
	s.guard.compact(t.Context(), s.etcd.Server)
	before := s.Status()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = serve(t, Options{Dir: dir})
	if st := s.Status(); before.Size < 40<<20 || st.Size > 8<<20 {
		t.Errorf("%d MiB before, %d after", before.Size>>20, st.Size>>20)
	}
}

// logs is a log that can be read while it is written.
type logs struct {
	mu sync.Mutex // guards b
	b  strings.Builder
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
