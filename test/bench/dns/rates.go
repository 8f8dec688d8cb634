package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// copies is how many addresses each name has.
const copies = 3

// load is one kind of question.
type load struct {
	what  string
	rcode string
	name  func(n int) string
	// fresh: no name is asked for twice, so that none is cached.
	fresh bool
}

func loads() []load {
	return []load{
		{what: "A, three addresses", rcode: "NOERROR", name: func(n int) string { return label(n) + domain }},
		{what: "NXDOMAIN", rcode: "NXDOMAIN", name: func(n int) string { return "x" + label(n) + domain }},
		{what: "outside, cached", rcode: "NOERROR", name: func(n int) string { return label(n) + ".example.org" }},
		{what: "outside, a miss", rcode: "NOERROR", fresh: true, name: func(n int) string {
			return fmt.Sprintf("%x-%s.example.net", rand.Uint32(), label(n))
		}},
	}
}

// queries writes a shuffled list for dnsperf.
func (b *bench) queries(l load, count int) (file string, err error) {
	var text bytes.Buffer
	for _, n := range rand.Perm(count) {
		fmt.Fprintln(&text, l.name(n), "A")
	}
	file = filepath.Join(b.dir, "queries")
	return file, os.WriteFile(file, text.Bytes(), 0o600)
}

// result is what the runs of one server with one load add up to.
type result struct {
	completed, lost int
	took, cpu       time.Duration
	paced           []time.Duration // each answer's time at the fixed rate
}

func (r result) perSecond() float64 { return float64(r.completed) / r.took.Seconds() }
func (r result) perCPU() float64    { return float64(r.completed) / r.cpu.Seconds() }

// quantile of the paced answers.
func (r result) quantile(q float64) time.Duration {
	if len(r.paced) == 0 {
		return 0
	}
	slices.Sort(r.paced)
	return r.paced[int(float64(len(r.paced)-1)*q)]
}

// rates measures what a server's core can do, then how names behave when
// etcd does not.
func (b *bench) rates(ctx context.Context) error {
	etcd, stopEtcd, err := b.etcd(ctx)
	if err != nil {
		return err
	}
	defer stopEtcd()
	stop, err := b.started(ctx)
	if err != nil {
		return err
	}
	defer stop()
	w, err := b.writer(ctx)
	if err != nil {
		return err
	}
	defer w.stop()
	for _, s := range b.servers {
		if _, err := w.put(s.form, 0, b.names, copies); err != nil {
			return err
		}
	}
	if err := b.ready(ctx, label(b.names-1)+domain); err != nil {
		return err
	}
	b.row("| %d shuffled names | server | queries/s | per CPU-second | ratio | p50 at 5,000/s | p99 | lost |\n|---|---|---|---|---|---|---|---|", b.names)
	for _, l := range loads() {
		if !strings.Contains(l.what, b.load) {
			continue
		}
		if err := b.rate(ctx, l); err != nil {
			return fmt.Errorf("%s: %w", l.what, err)
		}
	}
	b.row("")
	if b.load != "" {
		return nil
	}
	if err := b.late(ctx, w, b.names, 10); err != nil {
		return err
	}
	return b.stalled(ctx, etcd)
}

// rate measures one load, all servers in turn.
func (b *bench) rate(ctx context.Context, l load) error {
	results := map[*server]*result{}
	order := slices.Clone(b.servers)
	for _, s := range order {
		results[s] = &result{}
		if l.fresh {
			continue
		}
		file, err := b.queries(l, b.names)
		if err != nil {
			return err
		}
		if _, err := b.dnsperf(ctx, s, l, "-d", file, "-n", "1"); err != nil { // warm up
			return err
		}
	}
	for range b.runs {
		for range 2 {
			for _, s := range order {
				if err := b.rateOnce(ctx, s, l, results[s]); err != nil {
					return err
				}
			}
			slices.Reverse(order)
		}
	}
	for _, s := range b.servers {
		r, peer := results[s], results[b.servers[len(b.servers)-1]]
		ratio := "1"
		if r != peer {
			ratio = fmt.Sprintf("%.2f", r.perCPU()/peer.perCPU())
		}
		b.row("| %s | %s | %.1fk | %.1fk | %s | %d µs | %d µs | %d |", l.what, s.name, r.perSecond()/1000, r.perCPU()/1000, ratio,
			r.quantile(.5).Microseconds(), r.quantile(.99).Microseconds(), r.lost)
	}
	return nil
}

// rateOnce asks as fast as can be, then at a fixed rate.
func (b *bench) rateOnce(ctx context.Context, s *server, l load, sum *result) error {
	count := b.names
	if l.fresh {
		count = int(b.time.Seconds() * 100_000)
	}
	seconds := strconv.FormatFloat(b.time.Seconds(), 'f', -1, 64)
	file, err := b.queries(l, count)
	if err != nil {
		return err
	}
	before, err := s.cpu()
	if err != nil {
		return err
	}
	r, err := b.dnsperf(ctx, s, l, "-d", file, "-l", seconds)
	if err != nil {
		return err
	}
	after, err := s.cpu()
	if err != nil {
		return err
	}
	sum.completed += r.completed
	sum.lost += r.lost
	sum.took += r.took
	sum.cpu += after - before
	if l.fresh {
		if file, err = b.queries(l, count); err != nil {
			return err
		}
	}
	paced, err := b.dnsperf(ctx, s, l, "-d", file, "-l", seconds, "-Q", "5000", "-v")
	if err != nil {
		return err
	}
	sum.paced = append(sum.paced, paced.paced...)
	sum.lost += paced.lost
	return nil
}

// dnsperf asks a server from its own host and reads the report. Answers with
// another code than the load's are an error.
func (b *bench) dnsperf(ctx context.Context, s *server, l load, args ...string) (result, error) {
	argv := append([]string{"-c", clientCore, "dnsperf", "-s", s.addr.String(), "-c", "10", "-T", "1", "-W"}, args...)
	out, err := s.host.Command(ctx, "taskset", argv...).CombinedOutput()
	if err != nil {
		return result{}, fmt.Errorf("dnsperf: %w: %s", err, out)
	}
	return report(out, l.rcode)
}

// report reads what dnsperf wrote.
func report(out []byte, rcode string) (result, error) {
	var r result
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		line := strings.TrimSpace(lines.Text())
		f := strings.Fields(line)
		var err error
		switch {
		case strings.HasPrefix(line, "> T "): // no answer, counted below
		case strings.HasPrefix(line, "> ") && len(f) > 3:
			var took float64
			took, err = strconv.ParseFloat(f[len(f)-1], 64)
			r.paced = append(r.paced, time.Duration(took*float64(time.Second)))
		case strings.HasPrefix(line, "Queries completed:"):
			r.completed, err = strconv.Atoi(f[2])
		case strings.HasPrefix(line, "Queries lost:"):
			r.lost, err = strconv.Atoi(f[2])
		case strings.HasPrefix(line, "Run time (s):"):
			var took float64
			took, err = strconv.ParseFloat(f[3], 64)
			r.took = time.Duration(took * float64(time.Second))
		case strings.HasPrefix(line, "Response codes:") && (f[2] != rcode || len(f) != 5):
			return r, fmt.Errorf("want only %s: %s", rcode, line)
		}
		if err != nil {
			return r, fmt.Errorf("dnsperf: %s: %w", line, err)
		}
	}
	if r.completed == 0 || r.took == 0 {
		return r, fmt.Errorf("dnsperf got no answers: %s", out)
	}
	return r, nil
}
