package subnet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flanneld/flanneld/store"
	"github.com/flanneld/flanneld/store/mem"
)

// snapshot makes a listing of leases: name, creation revision and value.
type row struct {
	name    string
	created int64
	value   string
}

func listing(epoch store.Epoch, rows ...row) store.Snapshot {
	s := store.Snapshot{Epoch: epoch}
	for _, r := range rows {
		s.KVs = append(s.KVs, store.KV{Key: SubnetsPrefix(testPrefix) + r.name, Value: []byte(r.value),
			ModRevision: r.created, CreateRevision: r.created, Session: 1})
		s.Revision = max(s.Revision, r.created)
	}
	slices.SortFunc(s.KVs, func(a, b store.KV) int { return strings.Compare(a.Key, b.Key) })
	return s
}

func configured(t testing.TB, conf string) *viewer {
	t.Helper()
	w := newViewer(testPrefix, nil)
	w.take(configPrefix, store.Snapshot{Epoch: 1, KVs: []store.KV{{Key: ConfigKey(testPrefix), Value: []byte(conf), ModRevision: 1}}})
	if w.configErr != nil {
		t.Fatal(w.configErr)
	}
	w.take(hostsPrefix, store.Snapshot{Epoch: 1})
	return w
}

func from(ip string) string { return fmt.Sprintf(`{"PublicIP":%q,"BackendType":"vxlan"}`, ip) }

// names are the last parts of the keys of the usable leases.
func names(v View) (out []string) {
	for _, l := range v.Leases {
		out = append(out, strings.TrimPrefix(l.Key, SubnetsPrefix(testPrefix)))
	}
	return out
}

func TestOneBadLeaseDoesNotStopTheOthers(t *testing.T) {
	good := []row{{"10.1.1.0-24", 1, from("192.168.7.1")}, {"10.1.2.0-24", 2, from("192.168.7.2")}}
	for name, tt := range map[string]struct {
		bad  row
		text string // "" for usable
	}{
		"fine":             {row{"10.1.3.0-24", 3, from("192.168.7.3")}, ""},
		"not JSON":         {row{"10.1.3.0-24", 3, "hello"}, "must be a lease"},
		"strange key":      {row{"hello", 3, from("192.168.7.3")}, "must look like"},
		"everything":       {row{"64.0.0.0-2", 3, from("192.168.7.3")}, "not a part of the network"},
		"older, wider":     {row{"10.1.0.0-22", 0, from("192.168.7.3")}, "older"},
		"younger, wider":   {row{"10.1.0.0-22", 3, from("192.168.7.3")}, "overlaps /coreos.com/network/subnets/10.1.1.0-24, which was there first; delete the wrong one of the two"},
		"younger, inside":  {row{"10.1.2.128-25", 3, from("192.168.7.3")}, "overlaps /coreos.com/network/subnets/10.1.2.0-24"},
		"same, dual stack": {row{"10.1.2.0-24&fd00::-64", 3, from("192.168.7.3")}, "overlaps /coreos.com/network/subnets/10.1.2.0-24"},
		"underlay inside":  {row{"10.1.3.0-24", 3, from("10.1.2.9")}, "PublicIP = 10.1.2.9: is inside the subnet of /coreos.com/network/subnets/10.1.2.0-24"},
		"itself inside":    {row{"10.1.3.0-24", 3, from("10.1.3.9")}, "the host's own address is inside"},
		"inside, nobody's": {row{"10.1.3.0-24", 3, from("10.1.4.9")}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := configured(t, `{"Network":"10.1.0.0/16"}`)
			w.take(subnetsPrefix, listing(1, append(good, tt.bad)...))
			v := w.view()
			switch tt.text {
			case "":
				if len(v.Leases) != 3 || len(v.Problems) != 0 {
					t.Errorf("leases %v, problems %v", names(v), v.Problems)
				}
			case "older":
				if !slices.Equal(names(v), []string{"10.1.0.0-22"}) || len(v.Problems) != 2 {
					t.Errorf("leases %v, problems %v", names(v), v.Problems)
				}
			default:
				if !slices.Equal(names(v), []string{"10.1.1.0-24", "10.1.2.0-24"}) || len(v.Problems) != 1 || !strings.Contains(v.Problems[0].Error(), tt.text) {
					t.Errorf("leases %v, problems %v, want text with %q", names(v), v.Problems, tt.text)
				}
			}
			// It goes as it came.
			w.take(subnetsPrefix, listing(1, good...))
			if v := w.view(); len(v.Leases) != 2 || len(v.Problems) != 0 {
				t.Errorf("then leases %v, problems %v", names(v), v.Problems)
			}
		})
	}
}

func TestLeaseOverAHostsAddressIsSkipped(t *testing.T) {
	w := configured(t, `{"Network":"10.0.0.0/8"}`)
	w.take(subnetsPrefix, listing(1,
		row{"10.1.1.0-24", 1, from("10.140.0.1")}, row{"10.1.2.0-24", 2, from("10.140.0.2")}, row{"10.140.0.0-24", 3, from("192.168.7.3")}))
	v := w.view()
	if len(v.Leases) != 2 || len(v.Problems) != 1 || !strings.Contains(v.Problems[0].Error(), "10.140.0.0-24: contains the address of a host, that of /coreos.com/network/subnets/10.1.1.0-24") {
		t.Errorf("leases %v, problems %v", names(v), v.Problems)
	}
}

func TestFirstComersWinInAnyOrder(t *testing.T) {
	// Widths and creation in conflict: 10.1.0.0-20 (3) loses to 10.1.1.0-24
	// (1), so 10.1.8.0-21 (5), which overlaps only the loser, counts.
	w := configured(t, `{"Network":"10.1.0.0/16"}`)
	w.take(subnetsPrefix, listing(1,
		row{"10.1.0.0-20", 3, from("192.168.7.3")}, row{"10.1.1.0-24", 1, from("192.168.7.1")},
		row{"10.1.8.0-21", 5, from("192.168.7.5")}, row{"10.1.9.0-24", 6, from("192.168.7.6")}))
	v := w.view()
	if !slices.Equal(names(v), []string{"10.1.1.0-24", "10.1.8.0-21"}) || len(v.Problems) != 2 {
		t.Errorf("leases %v, problems %v", names(v), v.Problems)
	}
}

func TestFamilyThatIsNotEnabledIsLeftOut(t *testing.T) {
	rows := []row{
		{"10.1.1.0-24&fd00:1::-64", 1, from("192.168.7.1")},
		{"10.1.2.0-24&fd00:1::-64", 2, from("192.168.7.2")},
		{"0.0.0.0-0&fd00:3::-64", 3, from("192.168.7.3")},
	}
	w := configured(t, `{"Network":"10.1.0.0/16"}`)
	w.take(subnetsPrefix, listing(1, rows...))
	v := w.view()
	if len(v.Leases) != 2 || len(v.Leases[0].Subnets) != 1 || len(v.Problems) != 1 {
		t.Errorf("leases %+v, problems %v", v.Leases, v.Problems)
	}
	// The same leases under another configuration.
	w.take(configPrefix, store.Snapshot{Epoch: 1, KVs: []store.KV{{Key: ConfigKey(testPrefix), ModRevision: 9,
		Value: []byte(`{"Network":"10.1.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/16"}`)}}})
	v = w.view()
	if !slices.Equal(names(v), []string{"0.0.0.0-0&fd00:3::-64", "10.1.1.0-24&fd00:1::-64"}) || len(v.Leases[1].Subnets) != 2 || len(v.Problems) != 1 {
		t.Errorf("leases %v, problems %v", names(v), v.Problems)
	}
}

func TestSameRevisionOfAnotherEpochIsReadAgain(t *testing.T) {
	w := configured(t, `{"Network":"10.1.0.0/16"}`)
	w.take(subnetsPrefix, listing(1, row{"10.1.1.0-24", 5, from("192.168.7.1")}))
	w.view()
	w.take(subnetsPrefix, listing(2, row{"10.1.1.0-24", 5, from("192.168.7.2")}))
	if v := w.view(); v.Epoch != 2 || v.Leases[0].PublicIPs[0] != addr("192.168.7.2") {
		t.Errorf("got %+v", v.Leases)
	}
}

// TestIncrementalViewsEqualFreshOnes compares the long-lived viewer with a
// new one after random changes: where most records are in each other's way, and
// where they hardly ever are.
func TestIncrementalViewsEqualFreshOnes(t *testing.T) {
	crowded := func(rnd *rand.Rand) (string, string) {
		name := fmt.Sprintf("10.1.%d.0-%d", rnd.IntN(16)*4, 22+rnd.IntN(3))
		switch rnd.IntN(4) {
		case 0:
			return name, ""
		case 1:
			return name, "broken"
		case 2:
			return name, from(fmt.Sprintf("10.1.%d.9", rnd.IntN(64)))
		}
		return name, from("192.168.7.1")
	}
	sparse := func(rnd *rand.Rand) (string, string) {
		name, value := fmt.Sprintf("10.1.%d.0-24", rnd.IntN(256)), from("192.168.7.1")
		switch rnd.IntN(60) {
		case 0:
			name = fmt.Sprintf("10.1.%d.0-23", rnd.IntN(128)*2)
		case 1:
			value = "broken"
		case 2:
			value = from(fmt.Sprintf("10.1.%d.9", rnd.IntN(256)))
		case 3:
			name = fmt.Sprintf("10.1.%d.0-24&fd00:1:0:%x::-64", rnd.IntN(256), rnd.IntN(64))
		}
		return name, value
	}
	confs := []string{`{"Network":"10.1.0.0/16"}`, `{"Network":"10.1.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:1::/48"}`}
	for name, next := range map[string]func(*rand.Rand) (name, value string){"crowded": crowded, "sparse": sparse} {
		t.Run(name, func(t *testing.T) { viewsAreEqual(t, confs, next) })
	}
}

func viewsAreEqual(t *testing.T, confs []string, next func(*rand.Rand) (name, value string)) {
	rnd := source(5)
	conf, epoch, apart := confs[0], store.Epoch(1), 0
	w := configured(t, conf)
	rows := map[string]row{}
	for i := range 1600 {
		if name, value := next(rnd); value == "" {
			delete(rows, name)
		} else {
			rows[name] = row{name, int64(i + 1), value}
		}
		if all := slices.Sorted(maps.Keys(rows)); len(all) > 20 {
			delete(rows, all[rnd.IntN(len(all))])
		}
		switch rnd.IntN(100) {
		case 0:
			conf = confs[rnd.IntN(2)]
			w.take(configPrefix, store.Snapshot{KVs: []store.KV{{Key: ConfigKey(testPrefix), Value: []byte(conf), ModRevision: int64(i + 2)}}, Epoch: epoch})
		case 1:
			epoch++
		}
		var all []row
		for _, r := range rows {
			all = append(all, r)
		}
		snap := listing(epoch, all...)
		if w.take(subnetsPrefix, snap); rnd.IntN(3) == 0 {
			continue // two changes at once
		}
		fresh := configured(t, conf)
		fresh.take(subnetsPrefix, snap)
		a, b := w.view(), fresh.view()
		if text(a) != text(b) {
			t.Fatalf("step %d:\n%s\n%s", i, text(a), text(b))
		}
		if w.disjoint {
			apart++
		}
		for j, l := range a.Leases {
			for _, m := range a.Leases[:j] {
				if overlapsAny(l.Subnets, m.Subnets) || containsAny(l.Subnets, m.PublicIPs) || containsAny(m.Subnets, l.PublicIPs) {
					t.Fatalf("step %d: %v and %v", i, l, m)
				}
			}
		}
	}
	if t.Logf("nothing was in the way of anything in %d views", apart); apart == 0 {
		t.Error("what is settled by looking at changes alone was not tried")
	}
}

func TestBadHostRecordsAreSkipped(t *testing.T) {
	w := configured(t, `{"Network":"10.1.0.0/16"}`)
	w.take(subnetsPrefix, listing(1))
	kv := func(name, value string, session store.SessionID) store.KV {
		return store.KV{Key: HostKey(testPrefix, name), Value: []byte(value), ModRevision: 4, Session: session}
	}
	w.take(hostsPrefix, store.Snapshot{Epoch: 1, KVs: []store.KV{
		kv("a", `{"Name":"a","Identity":"1","Instance":"2","PublicIPs":["192.168.7.1"],"Future":{}}`, 3),
		kv("b", `hello`, 3),
		kv("c", `{"Name":"a","Identity":"1","Instance":"2"}`, 3),
		kv("d", `{"Name":"d","Identity":"","Instance":"2"}`, 3),
		kv("e", `{"Name":"e","Identity":"1","Instance":"2"}`, 0),
		kv("f", `{"Name":"f","Identity":"1","Instance":"2","PublicIPs":["x"]}`, 3),
		kv("g", `{"Name":"g","Identity":"`+strings.Repeat("x", 1<<17)+`","Instance":"2"}`, 3),
	}})
	v := w.view()
	if len(v.Hosts) != 1 || v.Hosts["a"].PublicIPs[0] != addr("192.168.7.1") || len(v.Problems) != 6 {
		t.Errorf("hosts %v, problems %v", v.Hosts, v.Problems)
	}
}

func FuzzParseHost(f *testing.F) {
	f.Add("a", []byte(`{"Name":"a","Identity":"1","Instance":"2","PublicIPs":["192.168.7.1","fd00::1"],"Guard":["10.0.0.1:2379"],"Drivers":["vxlan"]}`))
	f.Add("a\n\x1b[2J", []byte(`{"Name":"a\n\u001b[2J","Identity":"1","Instance":"2","Version":"\u202e","Drivers":["\r"]}`))
	f.Fuzz(func(t *testing.T, name string, value []byte) {
		h, err := parseHost(name, store.KV{Key: HostKey(testPrefix, name), Value: value, Session: 1})
		if err == nil && (h.Name != printable(name, mostName) || h.Identity == "" || h.Instance == "") {
			t.Fatalf("%q: %+v", value, h)
		}
		if err != nil && len(err.Error()) > 2000 {
			t.Fatalf("%d bytes of error", len(err.Error()))
		}
	})
}

func TestWatchWaitsForAllAndSurvivesOutages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := mem.New()
		put := func(key, value string) {
			t.Helper()
			if _, err := st.Commit(t.Context(), store.Txn{Put: []store.Put{{Key: key, Value: []byte(value)}}}); err != nil {
				t.Fatal(err)
			}
		}
		st.Down(true)
		ctx, cancel := context.WithCancel(t.Context())
		var last View
		var lastErr error
		n, ended := 0, false
		go func() {
			for v, err := range Watch(ctx, st, testPrefix, nil) {
				last, lastErr = v, err
				n++
			}
			ended = true
		}()
		synctest.Wait()
		if lastErr == nil || n == 0 || n > 3 {
			t.Fatalf("down: %d yields, %v", n, lastErr)
		}
		st.Down(false)
		synctest.Wait()
		if lastErr != nil || !errors.Is(last.ConfigErr, ErrNoConfig) || len(last.Config.Ranges) != 0 {
			t.Fatalf("no config: %+v, %v", last, lastErr)
		}
		if text := last.ConfigErr.Error(); !strings.Contains(text, "etcdctl put /coreos.com/network/config '{") {
			t.Errorf("no config: %s", text)
		}
		put(ConfigKey(testPrefix)+"-old", "hello")
		put(ConfigKey(testPrefix), `{"Network":"10.1.0.0/16"}`)
		put(SubnetsPrefix(testPrefix)+"10.1.1.0-24", from("192.168.7.1"))
		synctest.Wait()
		if last.ConfigErr != nil || len(last.Leases) != 1 || lastErr != nil || last.Revision == 0 {
			t.Fatalf("lease: %+v, %v", last, lastErr)
		}
		put(ConfigKey(testPrefix), `{"Network":"0.0.0.0/0"}`)
		synctest.Wait()
		if last.ConfigErr == nil || len(last.Config.Ranges) != 1 || len(last.Leases) != 1 {
			t.Fatalf("wrong config: %+v", last)
		}
		n = 0
		st.Down(true)
		synctest.Wait()
		if lastErr == nil || len(last.Leases) != 1 || n > 3 {
			t.Fatalf("outage: %d yields, %+v, %v", n, last, lastErr)
		}
		time.Sleep(time.Hour)
		st.Down(false)
		synctest.Wait()
		if lastErr != nil || len(last.Leases) != 1 || time.Since(last.Fresh) != 0 {
			t.Fatalf("back: %+v, %v", last, lastErr)
		}
		epoch := last.Epoch
		st.Wipe()
		synctest.Wait()
		if last.Epoch == epoch || len(last.Leases) != 0 || !errors.Is(last.ConfigErr, ErrNoConfig) || len(last.Config.Ranges) != 1 {
			t.Fatalf("wiped: %+v", last)
		}
		cancel()
		synctest.Wait()
		if !ended {
			t.Error("Watch did not end")
		}
	})
}

func TestRefusedConfigurationChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := mem.New()
		put := func(key, value string) {
			t.Helper()
			if _, err := st.Commit(t.Context(), store.Txn{Put: []store.Put{{Key: key, Value: []byte(value)}}}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		refusal := errors.New("this host is in there")
		accept := func(c Config) error {
			if c.Ranges[0].Network == netip.MustParsePrefix("192.168.0.0/16") {
				return refusal
			}
			return nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		var last View
		go func() {
			for v := range Watch(ctx, st, testPrefix, accept) {
				last = v
			}
		}()
		put(ConfigKey(testPrefix), `{"Network":"192.168.0.0/16"}`)
		if !errors.Is(last.ConfigErr, refusal) || len(last.Config.Ranges) != 0 {
			t.Errorf("the first one: %+v, %v", last.Config, last.ConfigErr)
		}
		put(ConfigKey(testPrefix), `{"Network":"10.1.0.0/16"}`)
		put(SubnetsPrefix(testPrefix)+"10.1.1.0-24", from("192.168.7.1"))
		put(ConfigKey(testPrefix), `{"Network":"192.168.0.0/16"}`)
		if !errors.Is(last.ConfigErr, refusal) || len(last.Config.Ranges) != 1 || len(last.Leases) != 1 {
			t.Errorf("a later one: %+v, %v, %d leases", last.Config, last.ConfigErr, len(last.Leases))
		}
		cancel()
		synctest.Wait()
	})
}

func TestWatchEndsWithItsConsumer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range Watch(t.Context(), mem.New(), testPrefix, nil) {
			break
		}
	}) // a goroutine left behind would be reported as a deadlock
}

// manyLeases are n leases of one network.
func manyLeases(n int) store.Snapshot {
	s := store.Snapshot{Epoch: 1, Revision: int64(n)}
	c, _ := ParseConfig([]byte(bigConfig))
	for i := range n {
		s.KVs = append(s.KVs, store.KV{
			Key:         Key(testPrefix, []netip.Prefix{nth(c.Ranges[0], (i*7919)%65535)}),
			Value:       fmt.Appendf(nil, `{"PublicIP":"172.16.%d.%d","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"46:5d:1c:%02x:%02x:01"},"Node":"node-%d","Identity":"0123456789abcdef0123456789%06x"}`, i>>8, i&255, i>>8, i&255, i, i),
			ModRevision: int64(i + 1), CreateRevision: int64(i + 1), Session: store.SessionID(i + 1),
		})
	}
	slices.SortFunc(s.KVs, func(a, b store.KV) int { return strings.Compare(a.Key, b.Key) })
	return s
}

const bigConfig = `{"Network":"10.0.0.0/8","SubnetLen":24,"Backend":{"Type":"vxlan"}}`

func BenchmarkViewFirst(b *testing.B) {
	for _, n := range []int{5000, 50000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := manyLeases(n)
			for b.Loop() {
				w := configured(b, bigConfig)
				w.take(subnetsPrefix, s)
				if v := w.view(); len(v.Leases) != n || len(v.Problems) != 0 {
					b.Fatal(len(v.Leases), v.Problems)
				}
			}
		})
	}
}

func BenchmarkViewOneChanged(b *testing.B) {
	for _, n := range []int{5000, 50000} {
		s := manyLeases(n)
		less := s
		less.KVs = slices.Delete(slices.Clone(s.KVs), n/3, n/3+1)
		for _, kind := range []string{"added-removed", "value"} {
			b.Run(fmt.Sprintf("%s/%d", kind, n), func(b *testing.B) {
				w := configured(b, bigConfig)
				w.take(subnetsPrefix, s)
				w.view()
				for i := 0; b.Loop(); i++ {
					next := s
					if kind == "value" {
						next.KVs = slices.Clone(s.KVs)
						next.KVs[n/2].ModRevision = int64(n + i + 1)
					} else if i%2 == 0 {
						next = less
					}
					w.take(subnetsPrefix, next)
					if v := w.view(); len(v.Leases) < n-1 {
						b.Fatal(len(v.Leases))
					}
				}
			})
		}
	}
}

// text is all that a view says.
func text(v View) string {
	var b strings.Builder
	for _, l := range slices.Concat(v.Leases, v.skipped) {
		fmt.Fprintf(&b, "%+v\n", *l)
	}
	taken := len(v.Leases)
	v.Leases, v.skipped = nil, nil
	fmt.Fprintf(&b, "%d usable, %+v", taken, v)
	return b.String()
}
