package embedded

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

// Thresholds, in percent of the quota. etcd itself counts the file's size
// with its holes, and at 100 refuses everything until an administrator
// comes: the guard keeps away from that.
const (
	percentTidy   = 70 // compact and defragment
	percentResume = 75 // take new things again below this
	percentRefuse = 80 // take nothing new
	percentFile   = 95 // the same, holes included
)

// slack is how much an existing value may grow while nothing new is taken.
const slack = 256

// Status is how full the server is.
type Status struct {
	Size     int64 // bytes of the database file
	InUse    int64 // bytes of it that hold something
	Quota    int64
	DiskFree uint64 // bytes on the disk under the directory
	// Refusing says why nothing new is taken; "" while everything is.
	Refusing string
}

// Status reports the present state.
func (s *Server) Status() Status { return s.guard.status() }

// guard refuses growth in time, and makes room.
type guard struct {
	dir     string
	quota   int64
	minFree uint64
	log     *slog.Logger
	closing chan struct{}
	once    sync.Once
	server  atomic.Pointer[etcdserver.EtcdServer]
	full    atomic.Bool  // refused lately, and no room was made since
	free    atomic.Int64 // bytes of disk, as of the last look
	kick    chan struct{}

	mu     sync.Mutex    // guards tidied
	tidied chan struct{} // closed when the room was looked after next

	// The keeping goroutine's own.
	compacted, defragmented time.Time
	revision                int64 // compacted up to here
	said                    bool  // that it refuses
}

func newGuard(o Options) *guard {
	return &guard{dir: o.Dir, quota: o.Quota, minFree: o.minFree, log: o.Log, closing: make(chan struct{}), kick: make(chan struct{}, 1), tidied: make(chan struct{})}
}

// watch begins to guard a server that is ready.
func (g *guard) watch(s *etcdserver.EtcdServer) {
	g.look()
	g.server.Store(s)
}

// close ends all streams: they would keep the server from stopping.
func (g *guard) close() { g.once.Do(func() { close(g.closing) }) }

// look notes the space on the disk.
func (g *guard) look() {
	var st unix.Statfs_t
	if err := unix.Statfs(g.dir, &st); err != nil {
		g.log.Warn("space under the embedded etcd unknown", "dir", g.dir, "error", err)
		return
	}
	g.free.Store(int64(st.Bavail) * st.Bsize)
}

func (g *guard) status() Status {
	st := Status{Quota: g.quota, DiskFree: uint64(g.free.Load())}
	s := g.server.Load()
	if s == nil {
		return st
	}
	be := s.Backend()
	st.Size, st.InUse = be.Size(), be.SizeInUse()
	limit := int64(percentRefuse)
	if g.full.Load() {
		limit = percentResume
	}
	switch {
	case st.DiskFree < g.minFree:
		st.Refusing = fmt.Sprintf("the disk under %s has only %d MiB left: make room", g.dir, st.DiskFree>>20)
	case st.InUse > g.quota/100*limit, st.Size > g.quota/100*percentFile:
		st.Refusing = fmt.Sprintf("the database holds %d of %d MiB: delete what is not needed", st.InUse>>20, g.quota>>20)
	}
	return st
}

// unary stands before every request of every client.
func (g *guard) unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	switch req.(type) {
	case *pb.PutRequest, *pb.TxnRequest:
		if s := g.server.Load(); s != nil && !g.admit(ctx, s, req) {
			return nil, rpctypes.ErrGRPCNoSpace
		}
	}
	return handle(ctx, req)
}

// admit decides on a write. One that grows the data while there is no room
// waits a moment for some to be made.
func (g *guard) admit(ctx context.Context, s *etcdserver.EtcdServer, req any) bool {
	st := g.status()
	if st.Size > g.quota/100*percentTidy {
		g.wake()
	}
	if st.Refusing == "" || !grows(ctx, s.KV(), req) {
		return true
	}
	g.full.Store(true)
	g.mu.Lock()
	tidied := g.tidied
	g.mu.Unlock()
	g.wake()
	wait := time.NewTimer(time.Second)
	defer wait.Stop()
	select {
	case <-tidied:
	case <-wait.C:
	case <-ctx.Done():
	}
	return g.status().Refusing == ""
}

// wake makes keep look now.
func (g *guard) wake() {
	select {
	case g.kick <- struct{}{}:
	default:
	}
}

// grows reports whether a request makes a new key, or an old one much larger.
func grows(ctx context.Context, kv mvcc.ReadView, req any) bool {
	switch r := req.(type) {
	case *pb.PutRequest:
		if r.IgnoreValue {
			return false
		}
		was, err := kv.Range(ctx, r.Key, nil, mvcc.RangeOptions{})
		return err != nil || len(was.KVs) == 0 || len(r.Value) > len(was.KVs[0].Value)+slack
	case *pb.TxnRequest:
		for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
			for _, op := range ops {
				if p := op.GetRequestPut(); p != nil && grows(ctx, kv, p) {
					return true
				}
				if t := op.GetRequestTxn(); t != nil && grows(ctx, kv, t) {
					return true
				}
			}
		}
	}
	return false
}

// stream lets a stream end when the server closes.
func (g *guard) stream(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	ctx, cancel := context.WithCancel(ss.Context())
	defer cancel()
	go func() { // ends with the stream
		select {
		case <-g.closing:
			cancel()
		case <-ctx.Done():
		}
	}()
	return handle(srv, &guardedStream{ss, ctx})
}

type guardedStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *guardedStream) Context() context.Context { return s.ctx }

// keep makes room when it is needed or worth it, until ctx ends.
func (g *guard) keep(ctx context.Context) {
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for {
		g.look()
		g.tidy(ctx)
		g.mu.Lock()
		close(g.tidied)
		g.tidied = make(chan struct{})
		g.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-g.kick:
		}
	}
}

// tidy does what the sizes ask for.
func (g *guard) tidy(ctx context.Context) {
	s := g.server.Load()
	st := g.status()
	alarm := false
	for _, a := range s.Alarms() {
		alarm = alarm || a.Alarm == pb.AlarmType_NOSPACE
	}
	pressed := alarm || st.Size > g.quota/100*percentTidy
	if pressed && (st.Refusing != "" || time.Since(g.compacted) > time.Second) {
		g.compacted = time.Now()
		g.compact(ctx, s)
		st = g.status()
	}
	holes := st.Size - st.InUse
	worth := holes > 64<<20 && holes > st.Size/2 && time.Since(g.defragmented) > time.Hour
	if worth || pressed && holes > st.Size/10 && time.Since(g.defragmented) > 5*time.Second {
		g.defragmented = time.Now()
		if err := s.Backend().Defrag(); err != nil {
			g.log.Warn("embedded etcd not defragmented", "error", err)
		}
		st = g.status()
	}
	if alarm && st.Size < g.quota/100*percentFile {
		r := pb.AlarmRequest{MemberID: uint64(s.MemberID()), Action: pb.AlarmRequest_DEACTIVATE, Alarm: pb.AlarmType_NOSPACE}
		if _, err := s.Alarm(ctx, &r); err != nil {
			g.log.Warn("alarm of the embedded etcd not disarmed", "error", err)
		}
	}
	g.tell(st)
}

// tell says once that nothing new is taken, and once that it is again.
func (g *guard) tell(st Status) {
	refusing := st.Refusing != ""
	if !refusing {
		g.full.Store(false)
	}
	if refusing == g.said {
		return
	}
	g.said = refusing
	if refusing {
		g.log.Warn("embedded etcd takes nothing new", "reason", st.Refusing)
	} else {
		g.log.Info("embedded etcd takes everything again", "in_use", st.InUse, "quota", st.Quota)
	}
}

// compact drops all history.
func (g *guard) compact(ctx context.Context, s *etcdserver.EtcdServer) {
	revision := s.KV().Rev()
	if revision <= g.revision || revision <= 1 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if _, err := s.Compact(ctx, &pb.CompactionRequest{Revision: revision, Physical: true}); err != nil && ctx.Err() == nil {
		g.log.Warn("embedded etcd not compacted", "error", err)
		return
	}
	g.revision = revision
	s.Backend().ForceCommit() // updates the sizes
}
