package plugin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
)

// inProcess runs a call in a process of its own and returns its output.
func (h *host) inProcess(ctx context.Context, q request) (string, error) {
	cmd := h.process(ctx, q)
	var out bytes.Buffer
	cmd.Stdout = &out
	err := h.ns.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		err = fmt.Errorf("%s of %s: %w: %s", q.command, q.id, err, &out)
	}
	return out.String(), err
}

func TestEightParallelADDsMakeOneBridgeAndNoAddressTwice(t *testing.T) {
	h := newHost(t)
	c := h.conf()
	const n = 8
	var spaces []*netns.NS
	for range n {
		spaces = append(spaces, netnstest.New(t))
	}
	for round := range 3 {
		var mu sync.Mutex
		seen := map[string]string{}
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				id := fmtID(i)
				out, err := h.inProcess(t.Context(), request{command: "ADD", id: id, netns: spaces[i].Path(), conf: c})
				if err != nil {
					t.Error(err)
					return
				}
				r, err := parseResult("", []byte(out))
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				for _, ip := range r.IPs {
					if other := seen[ip.Address.String()]; other != "" {
						t.Errorf("%s was given to %s and %s", ip.Address.String(), other, id)
					}
					seen[ip.Address.String()] = id
				}
			})
		}
		wg.Wait()
		if len(seen) != 2*n {
			t.Errorf("round %d: %d addresses", round, len(seen))
		}
		for i := range n {
			wg.Go(func() {
				if err := h.ping(spaces[i], "10.1.2.1"); err != nil {
					t.Error(err)
				}
				if _, err := h.inProcess(t.Context(), request{command: "DEL", id: fmtID(i), conf: c}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		h.clean()
		if round == 0 { // the second round makes the bridge again
			h.run("ip", "link", "del", "cni0")
			h.run("nft", "flush", "ruleset")
		}
	}
}

func TestDELWaitsForAnADDInProgress(t *testing.T) {
	h := newHost(t)
	n := netnstest.New(t)
	c := h.conf()
	var wg sync.WaitGroup
	for i := range 20 {
		id := fmtID(i)
		wg.Go(func() {
			_, _ = h.inProcess(t.Context(), request{command: "ADD", id: id, netns: n.Path(), conf: c})
		})
		time.Sleep(time.Duration(rand.IntN(6)) * time.Millisecond)
		h.ok(request{command: "DEL", id: id, netns: n.Path(), conf: c})
		wg.Wait()
		h.ok(request{command: "DEL", id: id, netns: n.Path(), conf: c}) // if the ADD began later
	}
	h.clean()
}

// killed runs a call and kills it after a while, unless it ends before.
func (h *host) killed(t testing.TB, q request, after time.Duration) (finished bool) {
	cmd := h.process(context.Background(), q)
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := h.ns.Start(cmd); err != nil {
		t.Error(err)
		return false
	}
	timer := time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	err := cmd.Wait()
	// An ADD that was killed in its very last instant is complete.
	if e, ok := errors.AsType[*exec.ExitError](err); ok && e.Exited() && !strings.Contains(out.String(), "DEL it first") {
		t.Errorf("%s of %s: %v: %s", q.command, q.id, err, &out)
	}
	return err == nil
}

// TestKilledPluginsNeverGiveAnAddressTwiceAndLeakNothing kills ADDs and DELs
// at random points, in a range with little room.
func TestKilledPluginsNeverGiveAnAddressTwiceAndLeakNothing(t *testing.T) {
	h := newHost(t)
	c := h.small("10.1.2.10", "10.1.2.25") // 16 addresses for at most 2×4 containers and leftovers
	rounds := 75
	if testing.Short() {
		rounds = 12
	}
	const workers = 4
	deadline := time.Now().Add(25 * time.Second)
	attached := map[string]string{} // address → container, of ADDs that ended well
	var mu sync.Mutex
	var wg sync.WaitGroup
	kills, ended := 0, 0
	for w := range workers {
		n := netnstest.New(t)
		wg.Go(func() {
			r := rand.New(rand.NewPCG(7, uint64(w)))
			for i := 0; i < rounds && time.Now().Before(deadline) && !t.Failed(); i++ {
				id := fmt.Sprintf("w%d-%d", w, i)
				add := request{command: "ADD", id: id, netns: n.Path(), conf: c}
				done := h.killed(t, add, time.Duration(r.IntN(12_000))*time.Microsecond)
				if !done && r.IntN(2) == 0 { // the engine tries again without DEL
					done = h.killed(t, add, time.Minute)
				}
				mu.Lock()
				kills++
				if done {
					ended++
				}
				mu.Unlock()
				if done {
					h.claim(t, &mu, attached, n, id)
				}
				del := request{command: "DEL", id: id, conf: c}
				if r.IntN(2) == 0 {
					del.netns = n.Path()
				}
				mu.Lock()
				for a, who := range attached {
					if who == id {
						delete(attached, a)
					}
				}
				mu.Unlock()
				_ = h.killed(t, del, time.Duration(r.IntN(30_000))*time.Microsecond)
				if !h.killed(t, del, time.Minute) {
					t.Errorf("DEL of %s did not end well", id)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d ADDs, %d of them ended well", kills, ended)
	h.clean()
}

// claim notes a container's address, and fails if somebody else has it.
func (h *host) claim(t testing.TB, mu *sync.Mutex, attached map[string]string, n *netns.NS, id string) {
	out, err := n.Run(t.Context(), "ip", "-4", "-br", "addr", "show", "eth0")
	if err != nil {
		t.Error(err)
		return
	}
	for _, f := range bytes.Fields([]byte(out)) {
		p, err := netip.ParsePrefix(string(f))
		if err != nil {
			continue
		}
		mu.Lock()
		if other := attached[p.String()]; other != "" {
			t.Errorf("%s is %s's and %s's", p, other, id)
		}
		attached[p.String()] = id
		mu.Unlock()
	}
}

func TestWhatAKilledADDLeftIsCollected(t *testing.T) {
	h := newHost(t)
	c := h.small("10.1.2.10", "10.1.2.17")
	gc := request{command: "GC", conf: c.with(conf{"cni.dev/valid-attachments": []any{}})}
	for i := range 40 {
		h.killed(t, request{command: "ADD", id: fmtID(i), netns: netnstest.New(t).Path(), conf: c}, time.Duration(rand.IntN(6_000))*time.Microsecond)
		if i%5 == 4 {
			h.ok(gc)
			h.clean()
		}
	}
}

func TestFullRangeTakesBackWhatNobodyUses(t *testing.T) {
	h := newHost(t)
	c := h.small("10.1.2.10", "10.1.2.12")
	var spaces []*netns.NS
	for i := range 3 {
		spaces = append(spaces, netnstest.New(t))
		h.add(fmtID(i), spaces[i], c)
	}
	extra := netnstest.New(t)
	add := request{command: "ADD", id: "extra", netns: extra.Path(), conf: c}
	h.fails(add, codeFull, "all 3 are taken", "container-0 eth0")
	h.run("ip", "link", "del", hostLink(c, fmtID(1), "eth0")) // as when its namespace goes
	r := result(t, h.ok(add))
	if r.IPs[0].Address.IP.String() != "10.1.2.11" {
		t.Errorf("got %s", r.IPs[0].Address.IP)
	}
	for _, id := range []string{fmtID(0), fmtID(1), fmtID(2), "extra"} {
		h.ok(request{command: "DEL", id: id, conf: c})
	}
	h.clean()
}
