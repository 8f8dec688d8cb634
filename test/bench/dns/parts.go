package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/flanneld/flanneld/lab"
	"github.com/flanneld/flanneld/test/dnswire"
)

// late asks for names before they exist and measures how long it takes from
// etcd until they are answered. They are numbered from a number on.
func (b *bench) late(ctx context.Context, w *writer, from, count int) error {
	for _, s := range b.servers {
		// CoreDNS's negative answers live for 30 s: all names at once.
		took := make([]time.Duration, count)
		errs := make([]error, count)
		put := make([]time.Time, count)
		var wg sync.WaitGroup
		for i := range count {
			c, err := dial(s)
			if err != nil {
				return err
			}
			defer c.close()
			name := label(from+i) + domain
			if r, err := c.ask(name, 10*time.Second); err != nil || r.RCode != dnswire.NameError {
				return fmt.Errorf("%s: %s must not exist yet: code %d, %w", s.name, name, r.RCode, err)
			}
			if put[i], err = w.put(s.form, from+i, from+i+1, 1); err != nil {
				return err
			}
			wg.Go(func() {
				var at time.Time
				at, errs[i] = c.until(ctx, name, time.Millisecond, time.Minute)
				took[i] = at.Sub(put[i])
			})
			if err := wait(ctx, 100*time.Millisecond); err != nil { // one change at a time
				return err
			}
		}
		wg.Wait()
		for _, err := range errs {
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
		}
		slices.Sort(took)
		b.row("%-8s asked for before it existed, among %d: median %s, slowest %s from etcd to the answer, %d names",
			s.name, from, round(took[count/2]), round(took[count-1]), count)
	}
	return nil
}

func round(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }

// stalled asks while etcd does not answer. Servers are new, and have been
// asked for half of the names.
func (b *bench) stalled(ctx context.Context, etcd *lab.Cmd) error {
	const count = 400
	for _, s := range b.servers {
		s.stop()
		if err := b.start(ctx, s); err != nil {
			return err
		}
	}
	if err := b.ready(ctx, label(0)+domain); err != nil {
		return err
	}
	type figures struct {
		failed  int
		slowest time.Duration
	}
	before := map[*server]figures{}
	for _, s := range b.servers {
		failed, slowest, err := b.askMany(s, 0, count/2)
		if err != nil {
			return err
		}
		before[s] = figures{failed, slowest}
	}
	if err := etcd.Process.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	defer func() { _ = etcd.Process.Signal(syscall.SIGCONT) }() // it is about to be killed
	if err := wait(ctx, time.Second); err != nil {
		return err
	}
	for _, s := range b.servers {
		failed, slowest, err := b.askMany(s, 0, count)
		if err != nil {
			return err
		}
		b.row("%-8s etcd stalled, %d names of which half had been asked for: %d failed, slowest answer %s (before: %d failed, slowest %s)",
			s.name, count, failed, round(slowest), before[s].failed, round(before[s].slowest))
	}
	b.row("")
	return nil
}

// askMany asks for each name once, from as many sockets, a millisecond apart.
func (b *bench) askMany(s *server, from, to int) (failed int, slowest time.Duration, err error) {
	var wg sync.WaitGroup
	var mu sync.Mutex // guards the results
	for n := from; n < to; n++ {
		c, err := dial(s)
		if err != nil {
			return 0, 0, err
		}
		wg.Go(func() {
			defer c.close()
			start := time.Now()
			r, err := c.ask(label(n)+domain, 10*time.Second)
			took := time.Since(start)
			mu.Lock()
			defer mu.Unlock()
			slowest = max(slowest, took)
			if err != nil || len(r.Addrs) != copies {
				failed++
			}
		})
		<-time.After(time.Millisecond)
	}
	wg.Wait()
	return failed, slowest, nil
}

// memory measures servers that were started with so many names of one address
// in etcd, and were then asked for each.
func (b *bench) memory(ctx context.Context) error {
	_, stopEtcd, err := b.etcd(ctx)
	if err != nil {
		return err
	}
	defer stopEtcd()
	w, err := b.writer(ctx)
	if err != nil {
		return err
	}
	defer w.stop()
	b.row("| names | server | RSS | over none | ratio | started to the last name's answer |\n|---|---|---|---|---|---|")
	none := map[*server]float64{} // in truth one name, to know when it is ready
	had := 0
	for _, size := range b.sizes {
		size = max(size, 1)
		for _, s := range b.servers {
			if _, err := w.put(s.form, had, size, 1); err != nil {
				return err
			}
		}
		had = size
		rss := map[*server]float64{}
		took := map[*server]time.Duration{}
		for _, s := range b.servers {
			if rss[s], took[s], err = b.memoryOf(ctx, s, size); err != nil {
				return fmt.Errorf("%s with %d names: %w", s.name, size, err)
			}
			if size == 1 {
				none[s] = rss[s]
			}
		}
		for _, s := range b.servers {
			peer := b.servers[len(b.servers)-1]
			b.row("| %d | %s | %.1f MB | %.1f MB | %.2f | %s |", size, s.name, rss[s], rss[s]-none[s], rss[s]/rss[peer], round(took[s]))
		}
	}
	b.row("")
	stop, err := b.started(ctx)
	if err != nil {
		return err
	}
	defer stop()
	if err := b.ready(ctx, label(had-1)+domain); err != nil {
		return err
	}
	return b.late(ctx, w, had, 10)
}

// memoryOf runs one server alone.
func (b *bench) memoryOf(ctx context.Context, s *server, size int) (rss float64, took time.Duration, err error) {
	file, err := b.queries(loads()[0], size)
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	if err := b.start(ctx, s); err != nil {
		return 0, 0, err
	}
	defer s.stop()
	c, err := dial(s)
	if err != nil {
		return 0, 0, err
	}
	defer c.close()
	at, err := c.until(ctx, label(size-1)+domain, 5*time.Millisecond, 2*time.Minute)
	if err != nil {
		return 0, 0, err
	}
	if _, err := b.dnsperf(ctx, s, loads()[0], "-d", file, "-n", "1"); err != nil {
		return 0, 0, err
	}
	if err := wait(ctx, 5*time.Second); err != nil {
		return 0, 0, err
	}
	rss, err = s.rss()
	return rss, at.Sub(began), err
}
