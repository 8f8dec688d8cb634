package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/kernel/iptables"
	"github.com/flanneld/flanneld/kernel/nft"
	"github.com/flanneld/flanneld/kernel/rules"
	"github.com/flanneld/flanneld/service"
)

// report is what one helper measured of one way to program so many services.
type report struct {
	Build, Load, CPU stats // each in a namespace of its own; CPU of both
	Swap             stats // from the changed endpoint to the kernel
	After            stats // the first one after somebody else changed other rules
	Elements         []int // of nftables that a swap wrote
	Programs         int64 // that swaps ran, -1: unknown
	Kernel           []int // bytes of a load
	Heap             int   // bytes of our own for one namespace
	// Rounds of connecting: without any rules, past them, through the first and
	// through the last service.
	Alone, Apart []stats
}

// rulesHelper is "rules KIND SERVICES ROUNDS" and "spread CONNECTIONS".
func rulesHelper(ctx context.Context, args []string, out io.Writer) error {
	var n []int
	for _, a := range args[1:] {
		if v, err := strconv.Atoi(a); err == nil {
			n = append(n, v)
		}
	}
	if args[0] == "spread" && len(n) == 1 {
		return spread(ctx, n[0], out)
	}
	if len(n) != 2 {
		return errors.New("rules: KIND SERVICES ROUNDS")
	}
	r, err := load(ctx, args[1], n[0], n[1])
	if err != nil {
		return fmt.Errorf("%s, %d services: %w", args[1], n[0], err)
	}
	return json.NewEncoder(out).Encode(r)
}

// state is n services as a daemon knows them.
func state(n int) service.State {
	s := service.State{Tenant: endpoint.DefaultTenant, Host: "host1", Networks: []netip.Prefix{serviceNetwork()}, Pods: []netip.Prefix{podNetwork()},
		Subnets: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}}
	for i := range n {
		s.Services = append(s.Services, serviceAt(i))
		for c := range copies {
			s.Endpoints = append(s.Endpoints, endpointAt(n, i, c))
		}
	}
	slices.SortFunc(s.Endpoints, func(a, b *endpoint.Endpoint) int { return strings.Compare(a.ID, b.ID) })
	return s
}

// swapped is s with one endpoint at another address.
func swapped(s service.State, at int, to netip.Addr) service.State {
	e := *s.Endpoints[at]
	e.Addresses = []netip.Addr{to}
	s.Endpoints = slices.Clone(s.Endpoints)
	s.Endpoints[at] = &e
	return s
}

// subject is one way to program the kernel, in a namespace.
type subject struct {
	*world
	kernel interface {
		Sync(context.Context, rules.Services) error
	}
	table service.Table
	runs  func() int64
}

// open makes the balancer in the world's host.
func open(ctx context.Context, kind string, w *world) (*subject, error) {
	s := &subject{world: w, runs: func() int64 { return -1 }}
	err := w.host.Do(func() (err error) {
		switch kind {
		case "nft":
			s.kernel, err = nft.NewBalancer(nil)
			s.runs = func() int64 { return 0 }
		case "chains":
			s.kernel = &chains{}
		default:
			b, e := iptables.NewBalancer(ctx, iptables.Options{IPTables: kind, IP6Tables: "ip6" + strings.TrimPrefix(kind, "ip")})
			if err = e; err == nil {
				s.kernel, s.runs = b, b.Runs
			}
		}
		return err
	})
	return s, err
}

// become makes the kernel hold what follows from st.
func (s *subject) become(ctx context.Context, st service.State) (build, sync time.Duration, err error) {
	begin := time.Now()
	want, problems := s.table.Build(st)
	build = time.Since(begin)
	if len(problems) > 0 {
		return 0, 0, fmt.Errorf("%d services are not as they should be: %w", len(problems), problems[0])
	}
	err = s.host.Do(func() error {
		begin = time.Now()
		err := s.kernel.Sync(ctx, want)
		sync = time.Since(begin)
		return err
	})
	return build, sync, err
}

func load(ctx context.Context, kind string, n, rounds int) (r report, err error) {
	st := state(n)
	r.Programs = -1
	for _, make := range []func(context.Context) (*world, error){alone, apart} {
		lanes, err := r.loadIn(ctx, kind, make, st)
		if err != nil {
			return r, err
		}
		took, err := compare(lanes, rounds)
		if err != nil {
			return r, err
		}
		if r.Alone == nil {
			r.Alone = took
		} else {
			r.Apart = took
		}
		for _, l := range lanes[:2] {
			if err := l.close(); err != nil {
				return r, err
			}
		}
	}
	for kind == "nft" && len(r.Load) < rounds { // quick enough
		lanes, err := r.loadIn(ctx, kind, alone, st)
		if err != nil {
			return r, err
		}
		if err := errors.Join(lanes[0].close(), lanes[1].close()); err != nil {
			return r, err
		}
	}
	return r, nil
}

// loadIn makes a world with the rules and one without, and returns the lanes.
func (r *report) loadIn(ctx context.Context, kind string, make func(context.Context) (*world, error), st service.State) ([]lane, error) {
	bare, err := make(ctx)
	if err != nil {
		return nil, err
	}
	w, err := make(ctx)
	if err != nil {
		return nil, err
	}
	s, err := open(ctx, kind, w)
	if err != nil {
		return nil, err
	}
	if err := wait(ctx, 300*time.Millisecond); err != nil { // the kernel frees late
		return nil, err
	}
	heap, kernel, cpu := heapSize(), kernelSize(), busy()
	build, sync, err := s.become(ctx, st)
	if err != nil {
		return nil, err
	}
	r.CPU = append(r.CPU, busy()-cpu)
	r.Build, r.Load = append(r.Build, build), append(r.Load, sync)
	r.Heap = heapSize() - heap
	r.Kernel = append(r.Kernel, kernelSize()-kernel)
	if err := r.swap(ctx, kind, s, st); err != nil {
		return nil, err
	}
	if _, _, err := s.become(ctx, st); err != nil { // as it was
		return nil, err
	}
	direct := netip.AddrPortFrom(st.Endpoints[0].Addresses[0], target)
	return []lane{{bare, direct}, {w, direct}, {w, netip.AddrPortFrom(virtualIP(0), 80)}, {w, netip.AddrPortFrom(lastIP(len(st.Services)), 80)}}, nil
}

// swap moves single endpoints.
func (r *report) swap(ctx context.Context, kind string, s *subject, st service.State) error {
	times := 20
	if kind != "nft" {
		times = 3
	}
	m, err := watchElements(s.host.Do)
	if err != nil {
		return err
	}
	defer m.close()
	before := s.runs()
	for i := range times {
		st = swapped(st, (i*7919)%len(st.Endpoints), moved(i))
		build, sync, err := s.become(ctx, st)
		if err != nil {
			return err
		}
		r.Swap = append(r.Swap, build+sync)
		if kind == "nft" || kind == "chains" {
			wrote, err := m.count()
			if err != nil {
				return err
			}
			r.Elements = append(r.Elements, wrote)
		}
	}
	if kind == "nft" && r.After == nil {
		if err := wait(ctx, 8*time.Second); err != nil { // more often it does not read its own again
			return err
		}
		if err := script(ctx, s.host, "nft add table ip other"); err != nil {
			return err
		}
		build, sync, err := s.become(ctx, swapped(st, 0, moved(times)))
		if err != nil {
			return err
		}
		r.After = append(r.After, build+sync)
	}
	if now := s.runs(); now >= 0 {
		r.Programs = (now - before) / int64(times)
	}
	return nil
}

// busy is the processor time of this process and of those it waited for.
func busy() (sum time.Duration) {
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if unix.Getrusage(who, &u) == nil { // always
			sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
	}
	return sum
}

func heapSize() int {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// kernelSize is the memory that the kernel, of the whole machine, has for
// itself: what cannot be reclaimed of its slabs, and what is mapped or for each
// processor.
func kernelSize() (sum int) {
	b, _ := os.ReadFile("/proc/meminfo") // always there
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) > 1 && slices.Contains([]string{"SUnreclaim:", "VmallocUsed:", "Percpu:"}, f[0]) {
			n, _ := strconv.Atoi(f[1]) // kB
			sum += n << 10
		}
	}
	return sum
}
