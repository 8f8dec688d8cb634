package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/flanneld/flanneld/lab"
)

// starts measures the time from a daemon's start to its subnet.env, on a
// fresh host, etcd up, configuration there.
func (b *bench) starts(ctx context.Context) error {
	stop, err := b.etcd(ctx)
	if err != nil {
		return err
	}
	defer stop()
	host := b.lab.Hosts()[0]
	took := map[string]stats{}
	for range b.runs {
		for _, p := range b.programs() {
			d, err := b.start(ctx, p, host, endpoint)
			if err != nil {
				return err
			}
			t, err := d.joined(ctx)
			d.kill()
			if err != nil {
				return err
			}
			took[p.name] = append(took[p.name], t)
			if _, err := b.etcdctl(ctx, "del", "--prefix", "/coreos.com/network/subnets/"); err != nil {
				return err
			}
			if err := b.fresh(ctx, host); err != nil {
				return err
			}
		}
	}
	b.rows("start to subnet.env", took)
	return nil
}

// rows prints one measure of every program, with the ratio to flannel.
func (b *bench) rows(what string, took map[string]stats) {
	for _, p := range b.programs() {
		s := took[p.name]
		if len(s) == 0 {
			continue
		}
		line := fmt.Sprintf("%-8s %s: median %s (%s–%s), %d runs", p.name, what, ms(s.median()), ms(s.min()), ms(s.max()), len(s))
		if peer := took["flannel"]; p.name == "flanneld" && len(peer) > 0 {
			line += fmt.Sprintf(", %.2f of flannel", ratio(s.median(), peer.median()))
		}
		b.row("%s", line)
	}
}

// follows measures the time from a new lease in etcd to its route on another
// host.
func (b *bench) follows(ctx context.Context) error {
	took := map[string]stats{}
	for _, p := range b.programs() {
		stop, err := b.etcd(ctx)
		if err != nil {
			return err
		}
		s, err := b.followOne(ctx, p)
		stop()
		if err != nil {
			return err
		}
		took[p.name] = s
	}
	b.rows("lease put to route on another host", took)
	return nil
}

func (b *bench) followOne(ctx context.Context, p program) (stats, error) {
	host := b.lab.Hosts()[0]
	d, err := b.start(ctx, p, host, endpoint)
	if err != nil {
		return nil, err
	}
	defer func() { d.kill(); _ = b.fresh(context.WithoutCancel(ctx), host) }()
	if _, err := d.joined(ctx); err != nil {
		return nil, err
	}
	return b.follow(ctx, host, 1000, b.runs)
}

// routes counts the host's IPv4 routes.
func (d *daemon) routes() int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/fib_triestat", d.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	_, main, _ := strings.Cut(string(b), "Main:")
	_, after, _ := strings.Cut(main, "Prefixes:")
	f := strings.Fields(after)
	if len(f) == 0 {
		return 0
	}
	n, err := strconv.Atoi(f[0])
	if err != nil {
		return 0
	}
	return n
}

// idle measures a small cluster that has nothing to do.
func (b *bench) idle(ctx context.Context) error {
	const watched = time.Minute // each peer is looked at at least once
	for _, p := range b.programs() {
		stop, err := b.etcd(ctx)
		if err != nil {
			return err
		}
		var ds []*daemon
		for _, h := range b.lab.Hosts() {
			d, err := b.start(ctx, p, h, endpoint)
			if err != nil {
				return err
			}
			ds = append(ds, d)
			if _, err := d.joined(ctx); err != nil {
				return err
			}
		}
		wait(ctx, 5*time.Second)
		before, err := ds[0].cpu()
		if err != nil {
			return err
		}
		wait(ctx, watched)
		after, err := ds[0].cpu()
		if err != nil {
			return err
		}
		all, anon, err := ds[0].rss()
		if err != nil {
			return err
		}
		b.row("%-8s idle, 3 hosts: %.2f %% of a core over %v, RSS %d MiB (%d anonymous)", p.name,
			100*ratio(after-before, watched), watched, all, anon)
		for i, d := range ds {
			d.kill()
			if err := b.fresh(ctx, b.lab.Hosts()[i]); err != nil {
				return err
			}
		}
		stop()
	}
	return nil
}

// many measures the start among thousands of leases.
func (b *bench) many(ctx context.Context) error {
	for _, size := range b.sizes {
		stop, err := b.etcd(ctx)
		if err != nil {
			return err
		}
		err = b.manyOf(ctx, size)
		stop()
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) manyOf(ctx context.Context, size int) error {
	if out, err := b.helper(ctx, "fill", "--from", "1", "--count", strconv.Itoa(size)).CombinedOutput(); err != nil {
		return fmt.Errorf("fill etcd: %w: %s", err, out)
	}
	proxyCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	proxy := b.helper(proxyCtx, "proxy", "--listen", strings.TrimPrefix(delayed, "http://"), "--to", strings.TrimPrefix(endpoint, "http://"), "--delay", delay.String())
	if err := proxy.Start(); err != nil {
		return err
	}
	defer func() { cancel(); _ = proxy.Wait() }()
	for _, p := range b.programs() {
		if p.name == "flannel" && size > 5_000 {
			continue // minutes
		}
		for _, at := range []string{endpoint, delayed} {
			if err := b.manyOne(ctx, p, size, at); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bench) manyOne(ctx context.Context, p program, size int, at string) error {
	host := b.lab.Hosts()[1]
	d, err := b.start(ctx, p, host, at)
	if err != nil {
		return err
	}
	defer func() { d.kill(); _ = b.restarted(context.WithoutCancel(ctx), host) }()
	joined, err := d.joined(ctx)
	if err != nil {
		return err
	}
	for d.routes() < size {
		if err := d.sleep(ctx); err != nil {
			return fmt.Errorf("%d routes: %w", size, err)
		}
	}
	done := time.Since(d.started)
	wait(ctx, time.Second)
	cpu, err := d.cpu()
	if err != nil {
		return err
	}
	all, anon, err := d.rss()
	if err != nil {
		return err
	}
	where := "etcd near"
	if at == delayed {
		where = "etcd 2.3 ms away"
	}
	added := ""
	if at == endpoint {
		s, err := b.follow(ctx, host, 60_000+len(p.name)*100, b.runs)
		if err != nil {
			return err
		}
		added = fmt.Sprintf(", one more lease: median %s (%s–%s)", ms(s.median()), ms(s.min()), ms(s.max()))
	}
	b.row("%-8s %d leases, %s: subnet.env %s, all routes %s, CPU %s, RSS %d MiB (%d anonymous)%s", p.name, size, where,
		ms(joined), ms(done), ms(cpu), all, anon, added)
	return nil
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// helper is this program again, inside the switch.
func (b *bench) helper(ctx context.Context, args ...string) *lab.Cmd {
	return b.lab.Switch().Command(ctx, "/proc/self/exe", args...)
}
