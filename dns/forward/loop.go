package forward

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"sync"
	"time"
)

const (
	typeHINFO = 13
	loopTime  = 2 * time.Second // for a question to come back
	loopRest  = time.Minute     // until an upstream that leads back here is looked at again
)

// loops finds upstreams that ask this daemon in turn: a resolver of this host
// that was told to. Each new one is asked once for a name that nobody else
// knows. The names have two labels: resolvers keep single ones to themselves.
type loops struct {
	mu  sync.Mutex        // guards out
	out map[string]*trial // by name
}

// trial is a question of ours to see where it goes.
type trial struct {
	up   *upstream
	came bool // back; guarded by loops.mu
}

// returned reports whether k is a question of ours that came back, and takes
// note of who sent it.
func (f *Forwarder) returned(k key) bool {
	if k.kind != typeHINFO {
		return false
	}
	f.loops.mu.Lock()
	tr := f.loops.out[k.name]
	if tr != nil {
		tr.came = true
	}
	f.loops.mu.Unlock()
	if tr != nil {
		f.setLoops(tr.up, true)
	}
	return tr != nil
}

// setLoops takes note whether u asks this daemon in turn.
func (f *Forwarder) setLoops(u *upstream, does bool) {
	u.mu.Lock()
	did := u.loops
	u.loops = does
	u.mu.Unlock()
	if did == does {
		return
	}
	if does {
		f.log.Error("upstream for outside names asks this daemon in turn; it is not used", "upstream", u.addr)
	} else {
		f.log.Info("upstream for outside names no longer asks this daemon", "upstream", u.addr)
	}
	f.judge()
}

// findLoops asks upstreams that were not asked yet, and at times those that
// led back here.
func (f *Forwarder) findLoops(ctx context.Context) {
	again := time.NewTicker(loopRest)
	defer again.Stop()
	for {
		var wg sync.WaitGroup
		for _, u := range f.ups.Load().list {
			u.mu.Lock()
			due := (!u.looked || u.loops) && !f.opts.Own(u.addr)
			u.looked = true
			u.mu.Unlock()
			if due {
				wg.Go(func() { f.findLoop(ctx, u) })
			}
		}
		wg.Wait()
		select {
		case <-ctx.Done():
			return
		case <-f.changed:
		case <-again.C:
		}
	}
}

func (f *Forwarder) findLoop(parent context.Context, u *upstream) {
	ctx, cancel := context.WithTimeout(parent, loopTime)
	defer cancel()
	var b [16]byte
	_, _ = rand.Read(b[:]) // never returns an error
	name := "\x10" + hex.EncodeToString(b[:8]) + "\x10" + hex.EncodeToString(b[8:]) + "\x00"
	tr := &trial{up: u}
	f.loops.mu.Lock()
	f.loops.out[name] = tr
	f.loops.mu.Unlock()
	_, err := f.ask(ctx, u, key{name: name, kind: typeHINFO, class: classIN})
	f.loops.mu.Lock()
	delete(f.loops.out, name)
	came := tr.came
	f.loops.mu.Unlock()
	switch {
	case came || parent.Err() != nil:
	case err == nil:
		f.setLoops(u, false)
	default: // tells nothing of loops; but whether it is there is known then before a container has to wait for it
		f.doubt(u)
	}
}
