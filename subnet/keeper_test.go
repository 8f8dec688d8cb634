package subnet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flanneld/flanneld/store"
	"github.com/flanneld/flanneld/store/mem"
)

// testHost is one host with what survives a daemon on it, and the daemon.
type testHost struct {
	t        *testing.T
	st       *mem.Store // its connection
	self     Self
	selves   chan Self
	instance int
	stop     func() // ends the daemon and waits for it; nil: not running

	mu    sync.Mutex // guards state
	state progress
}

// progress is what a test wants to know of a daemon.
type progress struct {
	held    []Lease // every call of held
	reports []string
	ended   bool
	err     error // of Run
}

// now returns what came of the daemon up to now.
func (h *testHost) now() progress {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.state
}

func (h *testHost) note(change func(*progress)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change(&h.state)
}

func newHost(t *testing.T, st *mem.Store, name, ips string) *testHost {
	return &testHost{t: t, st: st.Dial(), self: Self{
		Host: Host{Name: name, Identity: "id-of-" + name, PublicIPs: addrs(ips), Version: "1"},
		Type: "vxlan", Data: BackendData{V4: json.RawMessage(`{"VNI":1,"VtepMAC":"46:5d:1c:8a:6b:01"}`)},
	}}
}

// latest is a channel of one element, which is replaced.
func latest[T any](c chan T, v T) {
	for {
		select {
		case c <- v:
			return
		case <-c:
		}
	}
}

// start begins a daemon.
func (h *testHost) start() {
	h.instance++
	h.self.Host.Instance = fmt.Sprintf("%s-%s-%d", h.self.Host.Identity, h.self.Host.PublicIPs[0], h.instance)
	ctx, cancel := context.WithCancel(h.t.Context())
	views := make(chan View, 1)
	h.selves = make(chan Self, 1)
	h.selves <- h.self
	watched, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		for v, err := range Watch(ctx, h.st, testPrefix, nil) {
			if err == nil {
				latest(views, v)
			}
		}
	}()
	h.note(func(p *progress) { p.ended, p.err = false, nil })
	k := &Keeper{Store: h.st, Prefix: testPrefix, Report: func(err error) {
		h.note(func(p *progress) { p.reports = append(p.reports, fmt.Sprint(err)) })
	}}
	go func() {
		defer close(done)
		err := k.Run(ctx, h.selves, views, func(l Lease) {
			h.note(func(p *progress) { p.held = append(p.held, l) })
		})
		h.note(func(p *progress) { p.ended, p.err = true, err })
	}()
	h.stop = func() {
		cancel()
		<-watched
		<-done
		h.stop = nil
	}
	h.t.Cleanup(func() {
		if h.stop != nil {
			h.stop()
		}
	})
}

// kill ends the daemon as SIGKILL does: nothing is said to the store.
func (h *testHost) kill() {
	st := h.st
	st.Cut(true)
	h.stop()
	h.st = st.Dial()
}

// say gives the daemon another Self.
func (h *testHost) say(change func(*Self)) {
	change(&h.self)
	latest(h.selves, h.self)
}

// lease is the lease held now.
func (h *testHost) lease() Lease {
	h.t.Helper()
	if len(h.now().held) == 0 {
		h.t.Fatalf("%s holds nothing; ended %v: %v; reports %q", h.self.Host.Name, h.now().ended, h.now().err, h.now().reports)
	}
	return h.now().held[len(h.now().held)-1]
}

func (h *testHost) subnets() string { return fmt.Sprint(h.lease().Subnets) }

// settle lets time pass.
func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// cluster is a store with a configuration.
func cluster(t *testing.T, conf string) *mem.Store {
	st := mem.New()
	put(t, st, ConfigKey(testPrefix), conf)
	return st
}

func put(t *testing.T, st store.Store, key, value string) {
	t.Helper()
	if _, err := st.Commit(t.Context(), store.Txn{Put: []store.Put{{Key: key, Value: []byte(value)}}}); err != nil {
		t.Fatal(err)
	}
}

// putLeased writes a key under a session that nobody renews.
func putLeased(t *testing.T, st store.Store, key, value string, ttl time.Duration) store.SessionID {
	t.Helper()
	s, err := st.Session(t.Context(), ttl, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Commit(t.Context(), store.Txn{Put: []store.Put{{Key: key, Value: []byte(value), Session: s.ID()}}}); err != nil {
		t.Fatal(err)
	}
	s.Leave()
	return s.ID()
}

// stored is what the store holds under a part of the prefix, by name.
func stored(t *testing.T, st store.Store, part string) map[string]store.KV {
	t.Helper()
	s, err := st.List(t.Context(), part)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]store.KV{}
	for _, kv := range s.KVs {
		out[strings.TrimPrefix(kv.Key, part)] = kv
	}
	return out
}

func leases(t *testing.T, st store.Store) map[string]store.KV {
	t.Helper()
	return stored(t, st, SubnetsPrefix(testPrefix))
}

func hosts(t *testing.T, st store.Store) map[string]store.KV {
	t.Helper()
	return stored(t, st, HostsPrefix(testPrefix))
}

// disjoint fails if any two leases in the store overlap.
func disjoint(t *testing.T, st store.Store) {
	t.Helper()
	var all []netip.Prefix
	for name := range leases(t, st) {
		subnets, err := parseName(name)
		if err != nil {
			t.Fatal(name, err)
		}
		for _, s := range subnets {
			if overlapsAny([]netip.Prefix{s}, all) {
				t.Fatalf("%v overlaps another in %v", s, slices.Collect(maps.Keys(leases(t, st))))
			}
			all = append(all, s)
		}
	}
}

const conf16 = `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}`

// scenario runs f in a bubble where time is free.
func scenario(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}

func TestFirstStartTakesAFreeSubnetAtOnce(t *testing.T) {
	scenario(t, func(t *testing.T) {
		st := cluster(t, conf16)
		h := newHost(t, st, "a", "192.168.7.1")
		h.start()
		synctest.Wait()
		l := h.lease()
		kv := leases(t, st)[strings.TrimPrefix(l.Key, SubnetsPrefix(testPrefix))]
		want := `{"PublicIP":"192.168.7.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"46:5d:1c:8a:6b:01"},"Node":"a","Identity":"id-of-a"}`
		if string(kv.Value) != want || kv.Session == 0 || kv.Session != l.Session || kv.ModRevision != l.Revision || !mustConfig(t, conf16).Fits(l.Subnets) {
			t.Errorf("stored %s in session %d, held %+v", kv.Value, kv.Session, l)
		}
		rec := hosts(t, st)["a"]
		if !strings.Contains(string(rec.Value), `"Identity":"id-of-a"`) || rec.Session == 0 || rec.Session == kv.Session {
			t.Errorf("host record %s in session %d", rec.Value, rec.Session)
		}
		settle(100 * 24 * time.Hour)
		if got := leases(t, st); len(got) != 1 || len(h.now().held) != 1 || h.now().ended || len(h.now().reports) != 0 {
			t.Errorf("after a long time: leases %v, held %v, ended %v, reports %q", got, h.now().held, h.now().ended, h.now().reports)
		}
	})
}

func TestRestartChangesNothingForPeers(t *testing.T) {
	for name, end := range map[string]func(*testHost){"stopped": func(h *testHost) { h.stop() }, "killed": (*testHost).kill} {
		t.Run(name, func(t *testing.T) {
			scenario(t, func(t *testing.T) {
				st := cluster(t, conf16)
				h := newHost(t, st, "a", "192.168.7.1")
				h.start()
				settle(time.Hour)
				before := leases(t, st)
				end(h)
				if name == "stopped" && len(hosts(t, st)) != 0 {
					t.Error("host record still there after a clean stop")
				}
				settle(time.Hour)
				h.start()
				synctest.Wait() // no time passes
				if got := leases(t, st); fmt.Sprint(got) != fmt.Sprint(before) {
					t.Errorf("leases %v, before %v", got, before)
				}
				settle(100 * time.Hour)
				if got := leases(t, st); fmt.Sprint(got) != fmt.Sprint(before) || len(h.now().held) != 2 || len(h.now().reports) != 0 {
					t.Errorf("later: leases %v, before %v; held %v, reports %q", got, before, h.now().held, h.now().reports)
				}
				if !strings.Contains(string(hosts(t, st)["a"].Value), h.self.Host.Instance) {
					t.Errorf("host record %s", hosts(t, st)["a"].Value)
				}
			})
		})
	}
}

func TestQuickRestartTakesOverItsHostRecord(t *testing.T) {
	scenario(t, func(t *testing.T) {
		st := cluster(t, conf16)
		h := newHost(t, st, "a", "192.168.7.1")
		h.start()
		settle(time.Hour)
		h.kill()
		h.start()
		synctest.Wait()
		if rec := hosts(t, st)["a"]; !strings.Contains(string(rec.Value), h.self.Host.Instance) {
			t.Errorf("host record %s, want instance %s", rec.Value, h.self.Host.Instance)
		}
		settle(time.Hour)
		if len(hosts(t, st)) != 1 || h.now().ended {
			t.Errorf("later: %v, ended %v: %v", hosts(t, st), h.now().ended, h.now().err)
		}
	})
}

func TestChangedBackendDataIsWrittenInPlace(t *testing.T) {
	scenario(t, func(t *testing.T) {
		st := cluster(t, conf16)
		h := newHost(t, st, "a", "192.168.7.1")
		h.start()
		synctest.Wait()
		first := h.lease()
		h.say(func(s *Self) { s.Data.V4 = json.RawMessage(`{"VNI":1,"VtepMAC":"46:5d:1c:8a:6b:02"}`) })
		synctest.Wait()
		got := leases(t, st)
		if len(got) != 1 || h.subnets() != fmt.Sprint(first.Subnets) || len(h.now().held) != 2 {
			t.Fatalf("leases %v, held %v", got, h.now().held)
		}
		for _, kv := range got {
			if !strings.Contains(string(kv.Value), "6b:02") || kv.Session != first.Session {
				t.Errorf("stored %s in session %d, first %d", kv.Value, kv.Session, first.Session)
			}
		}
	})
}

func TestOddSpellingIsWrittenOnce(t *testing.T) {
	scenario(t, func(t *testing.T) {
		st := cluster(t, confDual)
		h := newHost(t, st, "a<b>", "fd00:7::1 192.168.7.1")
		h.self.Type, h.self.Data.V4 = "VXLAN", json.RawMessage(` { "a" : "<&>" }`)
		h.self.Host.Drivers = []string{}
		h.start()
		settle(time.Minute)
		lease, host := leases(t, st)[h.name()], hosts(t, st)["a<b>"]
		if lease.ModRevision != lease.CreateRevision || host.ModRevision != host.CreateRevision || len(h.now().held) != 1 {
			t.Errorf("lease %+v, host %+v, held %v", lease, host, h.now().held)
		}
	})
}

func TestChangedAddressIsWrittenInPlace(t *testing.T) {
	for name, restart := range map[string]bool{"while running": false, "over a restart": true} {
		t.Run(name, func(t *testing.T) {
			scenario(t, func(t *testing.T) {
				st := cluster(t, conf16)
				h := newHost(t, st, "a", "192.168.7.1")
				h.start()
				settle(time.Minute)
				first := h.subnets()
				move := func(s *Self) { s.Host.PublicIPs = addrs("192.168.7.99") }
				if restart {
					h.kill()
					move(&h.self)
					h.start()
					settle(HostTTL + time.Second)
				} else {
					h.say(move)
					synctest.Wait()
				}
				got := leases(t, st)
				if len(got) != 1 || h.subnets() != first || h.lease().PublicIPs[0] != addr("192.168.7.99") {
					t.Errorf("leases %v, held %v, reports %q", got, h.lease(), h.now().reports)
				}
				settle(time.Minute)
				if rec := hosts(t, st)["a"]; !strings.Contains(string(rec.Value), "192.168.7.99") || h.now().ended {
					t.Errorf("host record %s; ended %v: %v", rec.Value, h.now().ended, h.now().err)
				}
			})
		})
	}
}

func TestLeaseOfFlannelIsAdopted(t *testing.T) {
	scenario(t, func(t *testing.T) {
		st := cluster(t, conf16)
		session := putLeased(t, st, SubnetsPrefix(testPrefix)+"10.5.19.0-24", `{"PublicIP":"192.168.7.1","BackendType":"vxlan","BackendData":{},"Zone":"z"}`, LeaseTTL)
		h := newHost(t, st, "a", "192.168.7.1")
		h.start()
		synctest.Wait()
		kv := leases(t, st)["10.5.19.0-24"]
		if h.subnets() != "[10.5.19.0/24]" || kv.Session != session || !strings.Contains(string(kv.Value), `"Identity":"id-of-a","Zone":"z"`) {
			t.Errorf("held %s, stored %s in session %d, was %d", h.subnets(), kv.Value, kv.Session, session)
		}
		settle(100 * time.Hour)
		if len(leases(t, st)) != 1 {
			t.Error("not renewed")
		}
	})
}

func TestReservationWithoutEndStaysOne(t *testing.T) {
	scenario(t, func(t *testing.T) {
		st := cluster(t, conf16)
		put(t, st, SubnetsPrefix(testPrefix)+"10.5.19.0-24", `{"PublicIP":"192.168.7.1"}`)
		h := newHost(t, st, "a", "192.168.7.1")
		h.start()
		settle(time.Minute)
		if kv := leases(t, st)["10.5.19.0-24"]; h.subnets() != "[10.5.19.0/24]" || kv.Session != 0 || !strings.Contains(string(kv.Value), "id-of-a") {
			t.Errorf("held %s, stored %s in session %d", h.subnets(), kv.Value, kv.Session)
		}
	})
}

func TestRebootedHostGetsItsSubnetAgain(t *testing.T) {
	for name, rename := range map[string]string{"rebooted": "a", "renamed": "b"} {
		t.Run(name, func(t *testing.T) {
			scenario(t, func(t *testing.T) {
				st := cluster(t, conf16)
				h := newHost(t, st, "a", "192.168.7.1")
				h.start()
				settle(time.Hour)
				first := h.subnets()
				h.kill() // /run is emptied: another identity
				h.self.Host.Identity, h.self.Host.Name = "id-after-reboot", rename
				h.start()
				settle(7 * time.Second)
				if len(h.now().held) != 1 || len(h.now().reports) == 0 || !strings.Contains(h.now().reports[0], "waiting") {
					t.Errorf("too early: held %v, reports %q", h.now().held, h.now().reports)
				}
				settle(5 * time.Second)
				if h.subnets() != first || len(leases(t, st)) != 1 || h.lease().Identity != "id-after-reboot" || h.lease().Node != rename {
					t.Errorf("held %+v, first %s, stored %v", h.lease(), first, leases(t, st))
				}
				if got := hosts(t, st); len(got) != 1 || got[rename].Key == "" {
					t.Errorf("hosts %v", got)
				}
				if last := h.now().reports[len(h.now().reports)-1]; last != "<nil>" {
					t.Errorf("reports %q", h.now().reports)
				}
			})
		})
	}
}

func TestTwoHostsWithOneAddressAreRefused(t *testing.T) {
	for name, pause := range map[string]time.Duration{"together": 0, "one after the other": time.Hour} {
		t.Run(name, func(t *testing.T) {
			scenario(t, func(t *testing.T) {
				st := cluster(t, conf16)
				a, b := newHost(t, st, "a", "192.168.7.1"), newHost(t, st, "b", "192.168.7.1")
				a.start()
				settle(pause)
				b.start()
				settle(time.Minute)
				if !a.now().ended && !b.now().ended {
					t.Fatal("both run")
				}
				first, second := a, b
				if a.now().ended {
					first, second = b, a
				}
				use, ok := errors.AsType[*InUseError](second.now().err)
				if !ok || len(second.now().held) != 0 || !strings.Contains(second.now().err.Error(), "--public-ip") ||
					!strings.Contains(second.now().err.Error(), "public address 192.168.7.1 of host "+second.self.Host.Name+" is in use by the live host "+first.self.Host.Name) {
					t.Errorf("second: %v, %v, held %v", second.now().err, use, second.now().held)
				}
				if first.now().ended || len(first.now().held) != 1 || len(leases(t, st)) != 1 || len(hosts(t, st)) != 1 {
					t.Errorf("first: ended %v: %v, held %v, stored %v", first.now().ended, first.now().err, first.now().held, leases(t, st))
				}
			})
		})
	}
}

func TestCloneGetsASubnetOfItsOwn(t *testing.T) {
	for name, cloneName := range map[string]string{"same name": "a", "own name": "b"} {
		t.Run(name, func(t *testing.T) {
			scenario(t, func(t *testing.T) {
				st := cluster(t, conf16)
				a := newHost(t, st, "a", "192.168.7.1")
				a.start()
				settle(time.Hour)
				clone := newHost(t, st, cloneName, "192.168.7.2")
				clone.self.Host.Identity = a.self.Host.Identity
				clone.self.Previous = a.lease().Subnets
				clone.start()
				settle(time.Minute)
				if !clone.now().ended || !errors.Is(clone.now().err, ErrClone) || len(clone.now().held) != 0 {
					t.Fatalf("clone: ended %v: %v, held %v", clone.now().ended, clone.now().err, clone.now().held)
				}
				clone.self.Host.Identity = "id-of-clone-now"
				clone.start()
				settle(time.Minute)
				if clone.subnets() == a.subnets() || a.now().ended || clone.now().ended || len(leases(t, st)) != 2 || len(hosts(t, st)) != 2 {
					t.Errorf("a %s, clone %s, a ended %v: %v, clone %v: %v, hosts %v", a.subnets(), clone.subnets(), a.now().ended, a.now().err, clone.now().ended, clone.now().err, hosts(t, st))
				}
				disjoint(t, st)
				if cloneName == "a" {
					if rec := hosts(t, st)["a-id-of-cl"]; rec.Key == "" || clone.lease().Node != "a-id-of-cl" ||
						!strings.Contains(clone.now().reports[len(clone.now().reports)-1], "--node-name") {
						t.Errorf("hosts %v, reports %q", hosts(t, st), clone.now().reports)
					}
				}
			})
		})
	}
}

func TestNameInUseIsFatalIfItWasAskedFor(t *testing.T) {
	scenario(t, func(t *testing.T) {
		st := cluster(t, conf16)
		a, b := newHost(t, st, "a", "192.168.7.1"), newHost(t, st, "a", "192.168.7.2")
		b.self.Host.Identity, b.self.NodeNameExplicit = "other", true
		a.start()
		settle(time.Second)
		b.start()
		settle(time.Minute)
		if _, ok := errors.AsType[*InUseError](b.now().err); !ok || !strings.Contains(b.now().err.Error(), "--node-name") || a.now().ended {
			t.Errorf("b: %v; a ended %v: %v", b.now().err, a.now().ended, a.now().err)
		}
	})
}

func TestSecondDaemonOfOneHostEndsTheFirst(t *testing.T) {
	scenario(t, func(t *testing.T) {
		st := cluster(t, conf16)
		a, b := newHost(t, st, "a", "192.168.7.1"), newHost(t, st, "a", "192.168.7.1")
		b.instance = 100
		a.start()
		settle(time.Hour)
		b.start()
		settle(time.Minute)
		if _, ok := errors.AsType[*InUseError](a.now().err); !ok || b.now().ended || b.subnets() != a.subnets() || len(hosts(t, st)) != 1 {
			t.Errorf("a: %v; b ended %v: %v, hosts %v", a.now().err, b.now().ended, b.now().err, hosts(t, st))
		}
	})
}
