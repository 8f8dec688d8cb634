// The program cni times ADD and DEL of flanneld-bridge against the reference
// plugins bridge and host-local, by running them as a container engine does,
// both in one interleaved run, and prints medians and ratios.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/netns"
)

// reference is the release of the reference plugins that is measured.
const reference = "v1.9.1"

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, out, errs io.Writer) int {
	fs := flag.NewFlagSet("cni", flag.ContinueOnError)
	fs.SetOutput(errs)
	rounds := fs.Int("rounds", 40, "ADDs and DELs of each plugin in each case")
	if fs.Parse(args) != nil {
		return 2
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(errs, "needs root, to make network namespaces")
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	dir, err := os.MkdirTemp("", "flanneld-bench-cni-")
	if err != nil {
		fmt.Fprintln(errs, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := bench(ctx, dir, *rounds, out); err != nil {
		fmt.Fprintln(errs, err)
		return 1
	}
	return 0
}

// plugin is one of the two that are compared.
type plugin struct {
	name, ipam string
	dir        string // binaries and data
	host       *netns.NS
	targets    []*netns.NS
	serial     int
}

const parallel = 8

// build builds both, stripped and without cgo, as they are shipped.
func build(ctx context.Context, dir string) error {
	for _, cmd := range [][]string{
		{"go", "build", "-trimpath", "-ldflags=-s -w", "-o", dir, "github.com/flanneld/flanneld/cni/flanneld-bridge", "github.com/flanneld/flanneld/cni/flanneld-ipam"},
		{
			"go", "install", "-trimpath", "-ldflags=-s -w", "github.com/containernetworking/plugins/plugins/main/bridge@" + reference,
			"github.com/containernetworking/plugins/plugins/ipam/host-local@" + reference,
		},
	} {
		c := exec.CommandContext(ctx, cmd[0], cmd[1:]...)
		c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOBIN="+dir)
		if b, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(cmd, " "), err, b)
		}
	}
	return nil
}

func newPlugin(dir, name, ipam string) (*plugin, error) {
	p := &plugin{name: name, ipam: ipam, dir: dir}
	for i := range parallel + 1 {
		n, err := netns.NewAnonymous()
		if err == nil {
			err = n.LoopbackUp()
		}
		if err != nil {
			return nil, err
		}
		if i == 0 {
			p.host = n
		} else {
			p.targets = append(p.targets, n)
		}
	}
	return p, nil
}

func (p *plugin) close() {
	for _, n := range append(p.targets, p.host) {
		n.Delete()
	}
}

// conf is the same network for both plugins.
func (p *plugin) conf(network string, masquerade bool) []byte {
	b, _ := json.Marshal(map[string]any{
		"cniVersion": "1.0.0", "name": network, "type": p.name, "bridge": "cni0",
		"isGateway": true, "ipMasq": masquerade, "hairpinMode": true, "mtu": 1450,
		"ipam": map[string]any{
			"type": p.ipam, "dataDir": filepath.Join(p.dir, "data-"+p.name), "routes": []any{map[string]any{"dst": "0.0.0.0/0"}},
			"ranges": []any{[]any{map[string]any{"subnet": "10.77.0.0/16"}}},
		},
	})
	return b
}

// call runs a plugin as an engine does and returns wall and CPU time.
func (p *plugin) call(ctx context.Context, program, command, id string, target *netns.NS, conf []byte) (wall, cpu time.Duration, err error) {
	cmd := exec.CommandContext(ctx, filepath.Join(p.dir, program))
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "CNI_COMMAND=" + command, "CNI_CONTAINERID=" + id, "CNI_IFNAME=eth0",
		"CNI_NETNS=" + target.Path(), "CNI_PATH=" + p.dir,
	}
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(conf), &out, &errs
	err = p.host.Do(func() error {
		begin := time.Now()
		err := cmd.Run()
		wall = time.Since(begin)
		return err
	})
	if err != nil {
		return 0, 0, fmt.Errorf("%s %s: %w: %s%s", program, command, err, &out, &errs)
	}
	return wall, cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), nil
}

// fill takes n addresses of a network and leaves them taken.
func (p *plugin) fill(ctx context.Context, n int, conf []byte) error {
	for i := range n {
		if _, _, err := p.call(ctx, p.ipam, "ADD", fmt.Sprintf("taken%d", i), p.targets[0], conf); err != nil {
			return err
		}
	}
	return nil
}

// sample is the times of one command.
type sample struct{ wall, cpu []time.Duration }

func (s sample) median() time.Duration {
	w := slices.Sorted(slices.Values(s.wall))
	return w[len(w)/2]
}

func (s sample) p99() time.Duration {
	w := slices.Sorted(slices.Values(s.wall))
	return w[len(w)*99/100]
}

func (s sample) medianCPU() time.Duration {
	c := slices.Sorted(slices.Values(s.cpu))
	return c[len(c)/2]
}

// round adds and deletes width containers at once.
func (p *plugin) round(ctx context.Context, width int, conf []byte, add, del *sample) error {
	p.serial++
	for _, step := range []struct {
		command string
		to      *sample
	}{{"ADD", add}, {"DEL", del}} {
		walls, cpus := make([]time.Duration, width), make([]time.Duration, width)
		g, ctx := errgroup.WithContext(ctx)
		for i := range width {
			g.Go(func() (err error) {
				id := fmt.Sprintf("c%d-%d", p.serial, i)
				walls[i], cpus[i], err = p.call(ctx, p.name, step.command, id, p.targets[i], conf)
				return err
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		step.to.wall, step.to.cpu = append(step.to.wall, walls...), append(step.to.cpu, cpus...)
	}
	return nil
}

func bench(ctx context.Context, dir string, rounds int, out io.Writer) error {
	if err := build(ctx, dir); err != nil {
		return err
	}
	ours, err := newPlugin(dir, "flanneld-bridge", "flanneld-ipam")
	if err != nil {
		return err
	}
	defer ours.close()
	ref, err := newPlugin(dir, "bridge", "host-local")
	if err != nil {
		return err
	}
	defer ref.close()
	fmt.Fprintf(out, "CNI plugins, median of %d (99th percentile; CPU), ours / reference %s\n\n", rounds, reference)
	fmt.Fprintln(out, "| case | ADD ours | ADD reference | ratio | DEL ours | DEL reference | ratio |")
	fmt.Fprintln(out, "|---|---|---|---|---|---|---|")
	for _, masquerade := range []bool{false, true} {
		for _, taken := range []int{0, 200} {
			network := fmt.Sprintf("net%t%d", masquerade, taken)
			confs := map[*plugin][]byte{ours: ours.conf(network, masquerade), ref: ref.conf(network, masquerade)}
			for _, p := range []*plugin{ours, ref} {
				if err := p.fill(ctx, taken, confs[p]); err != nil {
					return err
				}
			}
			for _, width := range []int{1, parallel} {
				adds, dels := map[*plugin]*sample{ours: {}, ref: {}}, map[*plugin]*sample{ours: {}, ref: {}}
				n := rounds
				if width > 1 {
					n = max(rounds/4, 2)
				}
				for i := range n {
					order := []*plugin{ours, ref} // A B B A
					if i%2 == 1 {
						slices.Reverse(order)
					}
					for _, p := range order {
						if err := p.round(ctx, width, confs[p], adds[p], dels[p]); err != nil {
							return err
						}
					}
				}
				fmt.Fprintf(out, "| %s | %s | %s | %.2f | %s | %s | %.2f |\n", title(masquerade, taken, width),
					cell(adds[ours]), cell(adds[ref]), ratio(adds[ours], adds[ref]),
					cell(dels[ours]), cell(dels[ref]), ratio(dels[ours], dels[ref]))
			}
		}
	}
	return nil
}

func title(masquerade bool, taken, width int) string {
	s := fmt.Sprintf("%d taken", taken)
	if masquerade {
		s += ", ipMasq"
	}
	if width > 1 {
		s += fmt.Sprintf(", %d parallel", width)
	}
	return s
}

func cell(s *sample) string {
	ms := func(d time.Duration) float64 { return d.Seconds() * 1000 }
	return fmt.Sprintf("%.1f ms (%.0f; %.1f)", ms(s.median()), ms(s.p99()), ms(s.medianCPU()))
}

func ratio(a, b *sample) float64 { return a.median().Seconds() / b.median().Seconds() }
