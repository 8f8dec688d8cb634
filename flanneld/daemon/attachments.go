package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/flanneld/flanneld/cni/hostside"
	"github.com/flanneld/flanneld/kernel/iptables"
	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/kernel/nft"
	"github.com/flanneld/flanneld/kernel/rules"
	"github.com/flanneld/flanneld/store"
)

// attachments keeps what the CNI plugins made on this host as the records tell:
// bridges, ports, masquerading and guard. While nobody changes anything a beat
// is one small question to the kernel. It belongs to the network's goroutine.
type attachments struct {
	dir        string // of the records
	log        *slog.Logger
	monitor    *link.Monitor
	watch      *nft.Watch         // nil: the kernel has no nf_tables
	nat        *iptables.NATWatch // nil: it has
	generation uint64             // of the packet filter, when all was as it should be
	looked     time.Time          // when both were looked at
	again      bool               // something is left to be done
	bridges    []string           // that are watched
	err        error
	logged     string // of err
}

// openAttachments is to be called in the host's network namespace.
func openAttachments(dir string, monitor *link.Monitor, log *slog.Logger) (*attachments, error) {
	a := &attachments{dir: dir, log: log, monitor: monitor, bridges: []string{bridgeName}}
	if err := monitor.WatchBridges(a.bridges); err != nil {
		return nil, fmt.Errorf("watch bridge %s: %w", bridgeName, err)
	}
	var err error
	if a.watch, err = nft.OpenWatch(); errors.Is(err, rules.ErrNotSupported) {
		a.nat, err = iptables.WatchNAT()
	}
	return a, err
}

func (a *attachments) close() {
	if a != nil && a.watch != nil {
		_ = a.watch.Close() // a socket
	}
	if a != nil && a.nat != nil {
		_ = a.nat.Close() // sockets
	}
}

// changes is a number that changes with every change of the packet filter.
func (a *attachments) changes() (uint64, error) {
	if a.watch == nil {
		return a.nat.Digest()
	}
	g, err := a.watch.Generation()
	return uint64(g), err
}

// trouble is why containers may not be served as they should be; nil if they
// are.
func (a *attachments) trouble() error {
	if a == nil {
		return nil
	}
	return a.err
}

// beat repairs what somebody else changed since the last beat.
func (a *attachments) beat() {
	a.err = a.repair()
	switch {
	case !store.Turned(&a.logged, a.err):
	case a.err != nil:
		a.log.Error("containers not served as they should be, trying again", "error", a.err)
	default:
		a.log.Info("containers served as they should be again")
	}
}

func (a *attachments) repair() error {
	all := a.again || time.Since(a.looked) >= audit
	look := hostside.Look{Dir: a.dir, Links: all, Filter: all}
	select {
	case <-a.monitor.Unplugged:
		look.Links = true
	default:
	}
	generation, err := a.changes()
	if err != nil {
		return err
	}
	look.Filter = look.Filter || generation != a.generation
	if !look.Links && !look.Filter {
		return nil
	}
	a.again = true
	report, err := hostside.Repair(look)
	for _, what := range report.Repaired {
		a.log.Warn("containers' connection repaired", "change", what)
	}
	// What was repaired is a change too: the next beat sees that it holds.
	a.generation = generation
	a.again = report.Again || err != nil
	if err == nil {
		err = a.follow(report.Bridges)
	}
	if all && !a.again {
		a.looked = time.Now()
	}
	return err
}

// follow watches the bridges that the attachments use.
func (a *attachments) follow(used []string) error {
	want := slices.Clone(used)
	if !slices.Contains(want, bridgeName) {
		want = append(want, bridgeName)
		slices.Sort(want)
	}
	if slices.Equal(want, a.bridges) {
		return nil
	}
	a.again = true // how they are now nobody told
	if err := a.monitor.WatchBridges(want); err != nil {
		return fmt.Errorf("watch bridges %v: %w", want, err)
	}
	a.bridges = want
	return nil
}
