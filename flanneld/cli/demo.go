package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/flanneld/flanneld/lab"
)

// demoNetwork is the pod network of labs that are told no other.
const demoNetwork = "10.1.0.0/16,fd00:10:1::/48"

// labDemo is "flanneld lab demo", which make demo runs.
func labDemo(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	fs, name := labFlags("demo", "[--once]", `Make three hosts on this machine, start flanneld on each and the embedded etcd on host1, plug a container
into each, and show that they reach each other. Stays until Ctrl-C and leaves nothing behind.`,
		"flanneld lab demo", "flanneld lab demo --once")
	fs.Lookup("name").DefValue = "demo"
	*name = "demo"
	once := fs.Bool("once", false, "end as soon as everything was shown")
	network := fs.String("network", demoNetwork, "pod network `CIDRS`")
	if code, done := parse(fs, args, stdout, stderr); done {
		return code
	}
	// An abstract socket is a lock that goes with the process and leaves nothing.
	lock, err := net.Listen("unix", "@flanneld-lab-demo-"+*name)
	if err != nil {
		fmt.Fprintf(stderr, "flanneld lab demo: a demo %q runs already: end it with Ctrl-C where it was started, or give this one another --name\n", *name)
		return exitFailure
	}
	defer lock.Close()
	// A closed terminal or pipe must not leave the lab behind.
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGHUP)
	defer stop()
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	err = demo(ctx, *name, *network, *once, stdout)
	if removeErr := lab.Remove(context.WithoutCancel(ctx), *name); removeErr != nil {
		err = errors.Join(err, removeErr)
	} else if err == nil {
		fmt.Fprintf(stdout, "lab %s is gone.\n", *name)
	}
	if errors.Is(err, context.Canceled) {
		fmt.Fprintln(stderr, "interrupted; nothing is left")
		return exitFailure
	}
	return labExit(stderr, err)
}

// demo makes the lab, shows it and, unless once, waits for ctx to end. The
// caller removes the lab.
func demo(ctx context.Context, name, network string, once bool, stdout io.Writer) error {
	start := time.Now()
	setup, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("waited 30 s"))
	defer cancel()
	l, err := lab.Up(setup, lab.Options{Name: name, Replace: true})
	if err != nil {
		return err
	}
	if err := l.StartCluster(setup, network, "--ip-masq"); err != nil {
		return cmpCanceled(ctx, err)
	}
	containers, err := demoContainers(setup, l)
	if err != nil {
		return cmpCanceled(ctx, err)
	}
	fmt.Fprintf(stdout, "Three hosts, flanneld on each, etcd inside host1's, one container per host: %.1f s.\n\n", time.Since(start).Seconds())
	if err := showHosts(stdout, l); err != nil {
		return err
	}
	failed := showPings(setup, stdout, containers)
	if failed > 0 {
		return cmpCanceled(ctx, fmt.Errorf("%d pings were not answered", failed))
	}
	if once {
		return nil
	}
	fmt.Fprintf(stdout, "\nTry, in another terminal: sudo bin/flanneld lab exec --name %s host1/c1 -- ping %s\nCtrl-C takes it all down.\n",
		name, containers[len(containers)-1].Addrs[0].Addr())
	<-ctx.Done()
	fmt.Fprintln(stdout)
	return nil
}

// cmpCanceled prefers the interruption over what it made go wrong.
func cmpCanceled(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// demoContainers plugs container cN into hostN.
func demoContainers(ctx context.Context, l *lab.Lab) ([]*lab.Container, error) {
	hosts := l.Hosts()
	containers, errs := make([]*lab.Container, len(hosts)), make([]error, len(hosts))
	var wg sync.WaitGroup
	for i, h := range hosts {
		wg.Go(func() { containers[i], errs[i] = h.Attach(ctx, fmt.Sprintf("c%d", i+1), "") })
	}
	wg.Wait()
	return containers, errors.Join(errs...)
}

// showPings prints a matrix of round-trip times for each family and returns
// how many pings were not answered.
func showPings(ctx context.Context, w io.Writer, containers []*lab.Container) (failed int) {
	for family := range containers[0].Addrs {
		name := map[bool]string{true: "IPv4", false: "IPv6"}[containers[0].Addrs[family].Addr().Is4()]
		fmt.Fprintf(w, "\n%-20s", "ping, ms, "+name)
		for i := range containers {
			fmt.Fprintf(w, "%9s", fmt.Sprintf("to c%d", i+1))
		}
		for i, from := range containers {
			fmt.Fprintf(w, "\n%-20s", fmt.Sprintf("  c%d on host%d", i+1, i+1))
			for j, to := range containers {
				cell := "-"
				if i != j {
					rtt, err := pingBriefly(ctx, from, to.Addrs[family].Addr())
					cell = fmt.Sprintf("%.3f", float64(rtt.Nanoseconds())/1e6)
					if err != nil {
						failed++
						cell = "none"
					}
				}
				fmt.Fprintf(w, "%9s", cell)
			}
		}
		fmt.Fprintln(w)
	}
	return failed
}

// pingBriefly gives an answer 3 s.
func pingBriefly(ctx context.Context, from *lab.Container, to netip.Addr) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	return lab.PingUntil(ctx, from, to)
}
