package dns

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
)

// keeper keeps the open sockets equal to what the views want. It belongs to
// the goroutine of Run.
type keeper struct {
	server *Server
	open   map[place]*socket
	failed map[place]error // what could not be opened
	wg     sync.WaitGroup  // all goroutines
}

// settle opens and closes sockets and gives the others their views. again: it
// tries what could not be opened before. failed: something could not be opened;
// fresh: for the first time.
func (k *keeper) settle(ctx context.Context, again bool) (failed, fresh bool) {
	s := k.server
	s.mu.Lock()
	views := s.views
	s.mu.Unlock()
	want := wants(views)
	for p, sock := range k.open {
		if want[p] == nil {
			sock.stop()
			delete(k.open, p)
		}
	}
	failing := map[place]error{}
	for p, w := range want {
		answering := s.answering(p, w)
		if sock := k.open[p]; sock != nil {
			sock.views.Store(answering)
			continue
		}
		former := k.failed[p]
		if former != nil && !again {
			failing[p] = former
			continue
		}
		sock, err := s.openSocket(p, w)
		if err != nil {
			failing[p] = err
			fresh = fresh || former == nil
			continue
		}
		if former != nil {
			s.log.Info("names are answered at an address", "listen", netip.AddrPortFrom(p.addr, s.opts.Port))
		}
		sock.views.Store(answering)
		k.open[p] = sock
		var own context.Context
		own, sock.cancel = context.WithCancel(ctx)
		k.wg.Go(func() { sock.run(own) })
	}
	former := k.failed
	k.failed = failing
	s.report(former, failing)
	s.forget(views)
	return len(failing) > 0, fresh
}

// report publishes what could not be opened. What failed the same way before
// is not looked into again: finding out who has a port takes a while.
func (s *Server) report(former, failing map[place]error) {
	news := map[place]string{}
	for p, err := range failing {
		if f := former[p]; f == nil || f.Error() != err.Error() {
			err = s.refusal(p, err)
			news[p] = err.Error()
			s.log.Warn("names are not answered at an address", "error", err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.problems, func(p place, _ string) bool { return failing[p] == nil })
	maps.Copy(s.problems, news)
}

// forget drops the counters of views that are gone.
func (s *Server) forget(views []View) {
	names := map[string]bool{}
	for i := range views {
		names[views[i].Name] = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.counters, func(c counted, _ *counters) bool { return !names[c.view] })
}

func (k *keeper) closeAll() {
	for _, sock := range k.open {
		sock.stop()
	}
}

// answering is who answers whom at a place.
func (s *Server) answering(p place, w *want) *answering {
	a := &answering{views: make([]answeringView, len(w.views)), own: &s.own}
	if w.listen != nil {
		a.own = nil
	}
	for i, v := range w.views {
		a.views[i] = answeringView{sources: v.Sources, zone: v.Zone, counters: s.countersOf(v.Name, p)}
		for _, addr := range v.Addrs {
			a.addrs = append(a.addrs, addr.Unmap())
		}
	}
	slices.SortFunc(a.addrs, func(x, y netip.Addr) int { return x.Compare(y) })
	return a
}
