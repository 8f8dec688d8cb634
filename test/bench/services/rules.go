package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"slices"

	"github.com/flanneld/flanneld/kernel/rules"
)

// rules prints what rules cost, each way in a process of its own.
func (b *bench) rules(ctx context.Context) error {
	type run struct {
		kind string
		n    int
		*report
	}
	var runs []run
	for _, r := range []run{{"nft", 1_000, nil}, {"nft", 10_000, nil}, {"nft", 50_000, nil}, {"chains", 1_000, nil},
		{"iptables-legacy", 1_000, nil}, {"iptables-legacy", 10_000, nil}, {"iptables-nft", 1_000, nil}, {"iptables-nft", 10_000, nil}} {
		if program := programOf(r.kind); program != "" {
			if _, err := exec.LookPath(program); err != nil {
				b.row("%s is not installed", program)
				continue
			}
		}
		r.n, r.report = b.size(r.n), &report{}
		out, err := b.again(ctx, "rules", r.kind, fmt.Sprint(r.n), fmt.Sprint(b.rounds))
		if err == nil {
			err = json.Unmarshal(out, r.report)
		}
		if err != nil {
			return err
		}
		runs = append(runs, r)
	}
	b.row("\n### Rules\n\n| | services | loaded | CPU | one endpoint swapped | after another's change of rules | wrote | kernel memory | ours |\n|---|---|---|---|---|---|---|---|---|")
	for _, r := range runs {
		whole := slices.Clone(r.Load)
		for i := range whole {
			whole[i] += r.Build[i]
		}
		wrote := fmt.Sprintf("%d programs", r.Programs)
		if len(r.Elements) > 0 {
			wrote = fmt.Sprintf("%d elements", slices.Max(r.Elements))
		}
		b.row("| %s | %d | %s | %s | %s | %s | %s | %s | %s |", r.kind, r.n, whole, round(r.CPU.median()), r.Swap, r.After, wrote,
			mb(slices.Sorted(slices.Values(r.Kernel))[len(r.Kernel)/2]), mb(r.Heap))
	}
	for _, where := range []struct {
		title string
		took  func(run) []stats
	}{
		{"Connections on the host itself, client and endpoint in one namespace", func(r run) []stats { return r.Alone }},
		{"Connections from a container, forwarded to an endpoint elsewhere", func(r run) []stats { return r.Apart }},
	} {
		b.row("\n### %s\n\nconnect and close on one processor, medians of %d rounds\n\n"+
			"| | services | without rules | direct | first service | last | first / direct | last / direct | last − first |\n|---|---|---|---|---|---|---|---|---|", where.title, b.rounds)
		for _, r := range runs {
			t := where.took(r)
			apart := t[3].median() - t[2].median()
			b.row("| %s | %d | %s | %s | %s | %s | %s | %s | %.1f µs |", r.kind, r.n, t[0], t[1], t[2], t[3], ratios(t[2], t[1]), ratios(t[3], t[1]),
				float64(apart.Nanoseconds())/1000)
		}
	}
	return nil
}

// programOf is what a way to program the kernel runs, "" if nothing.
func programOf(kind string) string {
	switch kind {
	case "nft":
		return ""
	case "chains":
		return "nft"
	}
	return kind
}

// ratios are those within each round.
func ratios(a, b stats) (f floats) {
	for i := range a {
		f = append(f, float64(a[i])/float64(b[i]))
	}
	return f
}

// again runs this program again.
func (b *bench) again(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Stderr = os.Stderr
	return cmd.Output()
}

// balance prints how evenly connections are spread.
func (b *bench) balance(ctx context.Context) error {
	const connections = 10_000
	out, err := b.again(ctx, "spread", fmt.Sprint(connections))
	if err == nil {
		b.row("\n### Balance: %d connections over %d endpoints\n\n| | connections of each | farthest from a fifth |\n|---|---|---|\n%s", connections, copies, out)
	}
	return err
}

// spread connects through services that choose in each of the ways.
func spread(ctx context.Context, connections int, out io.Writer) error {
	w, err := apart(ctx)
	if err != nil {
		return err
	}
	s, err := open(ctx, "nft", w)
	if err != nil {
		return err
	}
	all := rules.Services{Networks: []netip.Prefix{serviceNetwork()}, Pods: []netip.Prefix{podNetwork()}}
	ways := []struct {
		name  string
		how   rules.Balance
		times int
	}{{"random", rules.Random, 1}, {"random, ten times as many", rules.Random, 10}, {"round-robin", rules.RoundRobin, 1}, {"hash, a client each", rules.Hash, 1}}
	for i, way := range ways {
		f := &rules.Frontend{Addr: virtualIP(i), Protocol: 6, Port: 80, Balance: way.how}
		for c := range copies {
			f.Slots = append(f.Slots, netip.AddrPortFrom(moved(c+1), target))
		}
		all.Frontends = append(all.Frontends, f)
	}
	if err := w.host.Do(func() error { return s.kernel.Sync(ctx, all) }); err != nil {
		return err
	}
	for i, way := range ways {
		l, had := lane{w, netip.AddrPortFrom(virtualIP(i), 80)}, map[netip.Addr]int{}
		from := clientSources().Addr()
		err := w.client.Do(func() error {
			for range connections * way.times {
				if from = from.Next(); !clientSources().Contains(from) {
					from = clientSources().Addr().Next()
				}
				_, at, err := l.connect(from)
				if err != nil {
					return err
				}
				had[at]++
			}
			return nil
		})
		if err != nil {
			return err
		}
		var counts []int
		worst := 0.0
		for c := range copies {
			n := had[moved(c+1)]
			counts = append(counts, n)
			even := float64(connections*way.times) / copies
			worst = max(worst, max(float64(n)-even, even-float64(n))/even)
		}
		fmt.Fprintf(out, "| %s | %v | %.1f %% |\n", way.name, counts, 100*worst)
	}
	return errors.Join(ctx.Err(), w.close())
}
