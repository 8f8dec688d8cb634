package subnet

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flanneld/flanneld/store"
	"github.com/flanneld/flanneld/store/mem"
)

// name is the last part of the key of the lease that h holds.
func (h *testHost) name() string {
	h.t.Helper()
	return strings.TrimPrefix(h.lease().Key, SubnetsPrefix(testPrefix))
}

func startMany(t *testing.T, st *mem.Store, n int) []*testHost {
	t.Helper()
	all := make([]*testHost, n)
	for i := range all {
		all[i] = newHost(t, st, fmt.Sprintf("host%d", i), fmt.Sprintf("192.168.7.%d", i+1))
	}
	for _, h := range all {
		h.start()
	}
	return all
}

func TestLostLeaseIsRegisteredAgain(t *testing.T) {
	for name, lose := range map[string]func(*testing.T, *mem.Store, *testHost){
		"key deleted": func(t *testing.T, st *mem.Store, h *testHost) { del(t, st, h.lease().Key) },
		"session revoked": func(t *testing.T, st *mem.Store, h *testHost) {
			s, err := st.Session(t.Context(), LeaseTTL, h.lease().Session)
			if err == nil {
				err = s.Close(t.Context())
			}
			if err != nil {
				t.Fatal(err)
			}
		},
		"key overwritten by garbage": func(t *testing.T, st *mem.Store, h *testHost) { put(t, st, h.lease().Key, "hello") },
		"wiped":                      func(t *testing.T, st *mem.Store, h *testHost) { st.Wipe() },
		"wiped, config at once": func(t *testing.T, st *mem.Store, h *testHost) {
			st.Wipe()
			put(t, st, ConfigKey(testPrefix), conf16)
		},
		"wiped during an outage": func(t *testing.T, st *mem.Store, h *testHost) {
			st.Down(true)
			settle(time.Hour)
			st.Wipe()
			st.Down(false)
		},
		"cut off past the lease": func(t *testing.T, st *mem.Store, h *testHost) {
			h.st.Cut(true)
			settle(LeaseTTL + time.Minute)
			if n := len(leases(t, st)) + len(hosts(t, st)); n != 0 {
				t.Fatalf("%d keys outlived the host", n)
			}
			h.st.Cut(false)
		},
	} {
		t.Run(name, func(t *testing.T) {
			scenario(t, func(t *testing.T) {
				st := cluster(t, conf16)
				h := newHost(t, st, "a", "192.168.7.1")
				h.start()
				settle(time.Hour)
				first := h.name()
				lose(t, st, h)
				settle(11 * time.Second) // a pause of the backoff at most
				kv, ok := leases(t, st)[first]
				if !ok || len(leases(t, st)) != 1 || kv.Session == 0 || !strings.Contains(string(kv.Value), "id-of-a") {
					t.Fatalf("stored %v, want %s; reports %q", leases(t, st), first, h.now().reports)
				}
				if len(hosts(t, st)) != 1 || h.now().ended || len(h.now().held) != 1 {
					t.Errorf("hosts %v, ended %v: %v, held %v", hosts(t, st), h.now().ended, h.now().err, h.now().held)
				}
				settle(100 * time.Hour)
				if len(leases(t, st)) != 1 || len(hosts(t, st)) != 1 {
					t.Error("not renewed afterwards")
				}
			})
		})
	}
}

func del(t *testing.T, st *mem.Store, key string) {
	t.Helper()
	if _, err := st.Commit(t.Context(), store.Txn{Delete: []string{key}}); err != nil {
		t.Fatal(err)
	}
}

func TestOutageChangesNothing(t *testing.T) {
	scenario(t, func(t *testing.T) {
		st := cluster(t, conf16)
		all := startMany(t, st, 3)
		settle(time.Hour)
		before := fmt.Sprint(leases(t, st))
		st.Down(true)
		settle(12 * time.Hour)
		st.Down(false)
		settle(15 * time.Second)
		if got := fmt.Sprint(leases(t, st)); got != before || len(hosts(t, st)) != 3 {
			t.Errorf("leases %s, before %s, hosts %v", got, before, hosts(t, st))
		}
		for _, h := range all {
			if p := h.now(); p.ended || len(p.held) != 1 {
				t.Errorf("%s: ended %v: %v, held %v", h.self.Host.Name, p.ended, p.err, p.held)
			}
		}
	})
}

func TestRestoredStoreGetsEveryLeaseAgain(t *testing.T) {
	scenario(t, func(t *testing.T) {
		st := cluster(t, conf16)
		early := startMany(t, st, 3)
		settle(time.Hour)
		backup := st.Save()
		late := newHost(t, st, "late", "192.168.7.50")
		late.start()
		early[0].say(func(s *Self) { s.Data.V4 = []byte(`{"VNI":7}`) })
		early[1].kill() // comes again as another instance, with another address
		early[1].self.Host.PublicIPs = addrs("192.168.7.99")
		early[1].start()
		early[2].kill() // rebooted
		early[2].self.Host.Identity = "id-after-reboot"
		early[2].start()
		settle(time.Hour)
		all := append(early, late)
		var before []string
		for _, h := range all {
			before = append(before, string(leases(t, st)[h.name()].Value))
		}
		st.Restore(backup)
		settle(30 * time.Second)
		if got := leases(t, st); len(got) != 4 || len(hosts(t, st)) != 4 {
			t.Errorf("leases %v, hosts %v", got, hosts(t, st))
		}
		for i, h := range all {
			p := h.now()
			if got := string(leases(t, st)[h.name()].Value); got != before[i] || p.ended {
				t.Errorf("%s: stored %s, before %s; ended %v: %v; reports %q", h.self.Host.Name, got, before[i], p.ended, p.err, p.reports)
			}
		}
		disjoint(t, st)
	})
}

func TestSubnetTakenMeanwhileEndsTheDaemon(t *testing.T) {
	other := `{"PublicIP":"192.168.7.77","BackendType":"vxlan","Node":"thief","Identity":"id-of-thief"}`
	for name, tt := range map[string]struct {
		other func(h *testHost) string // name of the key
		wipe  bool
	}{
		"the same, cut off":         {other: (*testHost).name},
		"a wider one, cut off":      {other: func(*testHost) string { return "10.5.0.0-17" }},
		"dual stack, cut off":       {other: func(h *testHost) string { return h.name() + "&fd00::-64" }},
		"the same, after a wipe":    {other: (*testHost).name, wipe: true},
		"a wider one, after a wipe": {other: func(*testHost) string { return "10.5.0.0-17" }, wipe: true},
	} {
		t.Run(name, func(t *testing.T) {
			scenario(t, func(t *testing.T) {
				st := cluster(t, `{"Network":"10.5.0.0/16","SubnetMax":"10.5.127.0"}`)
				h := newHost(t, st, "a", "192.168.7.1")
				h.start()
				settle(time.Hour)
				h.st.Cut(true)
				if tt.wipe {
					st.Wipe()
				} else {
					settle(LeaseTTL + time.Minute)
				}
				key := SubnetsPrefix(testPrefix) + tt.other(h)
				putLeased(t, st, key, other, LeaseTTL)
				h.st.Cut(false)
				settle(15 * time.Second)
				p := h.now()
				if !p.ended || !errors.Is(p.err, ErrTaken) || !strings.Contains(p.err.Error(), "thief at 192.168.7.77") {
					t.Errorf("ended %v: %v; reports %q", p.ended, p.err, p.reports)
				}
				if got := leases(t, st); len(got) != 1 {
					t.Errorf("stored %v", got)
				}
			})
		})
	}
}

func TestKeyOverwrittenByAnotherHolderEndsTheDaemon(t *testing.T) {
	scenario(t, func(t *testing.T) {
		st := cluster(t, conf16)
		h := newHost(t, st, "a", "192.168.7.1")
		h.start()
		settle(time.Hour)
		put(t, st, h.lease().Key, from("192.168.7.77"))
		synctest.Wait()
		if p := h.now(); !errors.Is(p.err, ErrTaken) {
			t.Errorf("ended %v: %v", p.ended, p.err)
		}
	})
}

func TestTwoDozenDaemonsAtOnce(t *testing.T) {
	scenario(t, func(t *testing.T) {
		st := cluster(t, `{"Network":"10.5.0.0/19"}`) // 31 subnets
		all := startMany(t, st, 24)
		settle(5 * time.Second)
		seen := map[string]bool{}
		for _, h := range all {
			seen[h.subnets()] = true
			if p := h.now(); p.ended || len(p.held) != 1 || len(p.reports) != 0 {
				t.Errorf("%s: ended %v: %v, held %v, reports %q", h.self.Host.Name, p.ended, p.err, p.held, p.reports)
			}
		}
		if len(seen) != 24 || len(leases(t, st)) != 24 || len(hosts(t, st)) != 24 {
			t.Errorf("%d subnets, %d leases, %d hosts", len(seen), len(leases(t, st)), len(hosts(t, st)))
		}
		disjoint(t, st)
	})
}

func TestFullNetworkEndsThoseWithoutALease(t *testing.T) {
	scenario(t, func(t *testing.T) {
		st := cluster(t, `{"Network":"10.5.0.0/20"}`) // 15 subnets
		all := startMany(t, st, 24)
		settle(5 * time.Second)
		refused := 0
		for _, h := range all {
			p := h.now()
			switch {
			case len(p.held) == 1 && !p.ended:
			case len(p.held) == 0 && p.ended && errors.Is(p.err, ErrNoSubnet) && strings.Contains(p.err.Error(), "all 15 subnets"):
				refused++
			default:
				t.Errorf("%s: ended %v: %v, held %v", h.self.Host.Name, p.ended, p.err, p.held)
			}
		}
		if refused != 9 || len(leases(t, st)) != 15 {
			t.Errorf("%d refused, %d leases", refused, len(leases(t, st)))
		}
	})
}

const confDual = `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48"}`

func TestDualStackTakesBothInOneKey(t *testing.T) {
	scenario(t, func(t *testing.T) {
		st := cluster(t, confDual)
		h := newHost(t, st, "a", "192.168.7.1 fd00:7::1")
		h.start()
		synctest.Wait()
		l := h.lease()
		if len(l.Subnets) != 2 || !strings.Contains(h.name(), "&fd00:5:") || !strings.Contains(string(leases(t, st)[h.name()].Value), `"PublicIPv6":"fd00:7::1"`) {
			t.Errorf("held %+v, stored %v", l, leases(t, st))
		}
	})
}

func TestChangedConfigurationMovesOnlyWhatMust(t *testing.T) {
	for name, tt := range map[string]struct {
		before, after string
		same4, same6  bool
		keys          int
	}{
		"IPv6 enabled":       {conf16, confDual, true, false, 1},
		"IPv6 disabled":      {confDual, conf16, true, true, 1},
		"IPv6 enabled again": {confDual, confDual + " ", true, true, 1},
		"other length":       {conf16, `{"Network":"10.5.0.0/16","SubnetLen":26}`, true, true, 1},
		"other network":      {conf16, `{"Network":"10.6.0.0/16"}`, false, true, 1},
		"larger network":     {conf16, `{"Network":"10.4.0.0/15"}`, true, true, 1},
		"other IPv6 network": {confDual, strings.Replace(confDual, "fd00:5:", "fd00:6:", 1), true, false, 1},
	} {
		t.Run(name, func(t *testing.T) {
			scenario(t, func(t *testing.T) {
				st := cluster(t, tt.before)
				h := newHost(t, st, "a", "192.168.7.1 fd00:7::1")
				h.start()
				settle(time.Minute)
				old := h.lease()
				put(t, st, ConfigKey(testPrefix), tt.after)
				settle(time.Minute)
				l := h.lease()
				if got := leases(t, st); len(got) != tt.keys {
					t.Errorf("stored %v", got)
				}
				if (l.Subnets[0] == old.Subnets[0]) != tt.same4 {
					t.Errorf("IPv4 %v, before %v", l.Subnets, old.Subnets)
				}
				if len(l.Subnets) == 2 && len(old.Subnets) == 2 && (l.Subnets[1] == old.Subnets[1]) != tt.same6 {
					t.Errorf("IPv6 %v, before %v", l.Subnets, old.Subnets)
				}
				after := mustConfig(t, tt.after)
				if h.now().ended || len(l.Subnets) != len(after.Ranges) && !after.Fits(l.Subnets[:len(after.Ranges)]) {
					t.Errorf("held %v, ended %v: %v", l.Subnets, h.now().ended, h.now().err)
				}
				// The same after a restart.
				h.kill()
				h.start()
				settle(time.Minute)
				if again := h.lease(); again.Key != l.Key || len(leases(t, st)) != 1 {
					t.Errorf("restarted: %v, before %v", again.Key, l.Key)
				}
			})
		})
	}
}

func TestFamilyThatComesBackFindsItsSubnet(t *testing.T) {
	scenario(t, func(t *testing.T) {
		st := cluster(t, confDual)
		h := newHost(t, st, "a", "192.168.7.1 fd00:7::1")
		h.start()
		settle(time.Minute)
		both, before := h.subnets(), fmt.Sprint(leases(t, st))
		put(t, st, ConfigKey(testPrefix), conf16)
		settle(time.Minute)
		if got := h.lease(); len(got.Subnets) != 1 {
			t.Errorf("IPv4 alone: held %v", got)
		}
		put(t, st, ConfigKey(testPrefix), confDual)
		settle(time.Minute)
		if h.subnets() != both || fmt.Sprint(leases(t, st)) != before || len(h.now().reports) != 0 {
			t.Errorf("held %s, before %s; stored %v, before %s; reports %q", h.subnets(), both, leases(t, st), before, h.now().reports)
		}
	})
}

// Containers run on what was held before a configuration was changed by
// mistake.
func TestConfigurationChangedBackGivesEveryHostItsSubnetAgain(t *testing.T) {
	const other, third = `{"Network":"10.9.0.0/16"}`, `{"Network":"10.11.0.0/16"}`
	for name, confs := range map[string][]string{
		"at once":         {other, conf16},
		"through a third": {other, third, conf16},
		"again and again": {other, conf16, other, conf16},
		"other families":  {strings.Replace(confDual, "10.5.", "10.9.", 1), confDual},
	} {
		t.Run(name, func(t *testing.T) {
			scenario(t, func(t *testing.T) {
				st := cluster(t, conf16)
				all := make([]*testHost, 8)
				before := map[string]string{}
				seen := map[string][]netip.Prefix{} // by host and network
				for i := range all {
					all[i] = newHost(t, st, fmt.Sprint("h", i), fmt.Sprintf("192.168.7.%d fd00:7::%d", i+1, i+1))
					all[i].start()
				}
				settle(time.Minute)
				for _, h := range all {
					before[h.self.Host.Name] = h.lease().Subnets[0].String()
				}
				for _, conf := range confs {
					put(t, st, ConfigKey(testPrefix), conf)
					settle(3 * time.Second)
					for _, h := range all {
						at := h.self.Host.Name + conf
						if was, ok := seen[at]; ok && !slices.Equal(was, h.lease().Subnets) {
							t.Errorf("%s under %s: held %v, before %v", h.self.Host.Name, conf, h.lease().Subnets, was)
						}
						seen[at] = h.lease().Subnets
					}
				}
				for _, h := range all {
					if got := h.lease().Subnets[0].String(); got != before[h.self.Host.Name] {
						t.Errorf("%s holds %s, before %s", h.self.Host.Name, got, before[h.self.Host.Name])
					}
				}
				disjoint(t, st)
				if got := leases(t, st); len(got) != len(all) {
					t.Errorf("stored %v", got)
				}
			})
		})
	}
}

// A daemon that is restarted between the changes knows subnet.env.
func TestConfigurationChangedBackAfterARestart(t *testing.T) {
	scenario(t, func(t *testing.T) {
		st := cluster(t, `{"Network":"10.9.0.0/16"}`)
		h := newHost(t, st, "a", "192.168.7.1")
		h.self.Previous = prefixes("10.5.77.0/24")
		h.start()
		settle(time.Minute)
		h.say(func(s *Self) { s.Previous = h.lease().Subnets }) // as the daemon does
		settle(time.Second)
		put(t, st, ConfigKey(testPrefix), conf16)
		settle(time.Second)
		if got := h.subnets(); got != "[10.5.77.0/24]" {
			t.Errorf("held %s", got)
		}
	})
}

func TestHostWithoutAddressOfAFamilyWaits(t *testing.T) {
	scenario(t, func(t *testing.T) {
		st := cluster(t, confDual)
		h := newHost(t, st, "a", "192.168.7.1")
		h.start()
		settle(time.Minute)
		if p := h.now(); p.ended || len(p.held) != 0 || len(p.reports) != 1 || !strings.Contains(p.reports[0], "network fd00:5::/48: this host has no public address of that family") {
			t.Errorf("%+v", p)
		}
		h.say(func(s *Self) { s.Host.PublicIPs = addrs("192.168.7.1 fd00:7::1") })
		synctest.Wait()
		if len(h.lease().Subnets) != 2 {
			t.Errorf("held %v", h.lease())
		}
	})
}

func TestPreviousSubnetIsPreferred(t *testing.T) {
	for name, tt := range map[string]struct {
		previous, conf, occupied, want string // want "": another
	}{
		"free":             {"10.5.77.0/24", conf16, "", "[10.5.77.0/24]"},
		"held":             {"10.5.77.0/24", conf16, "10.5.77.0-24", ""},
		"overlapped":       {"10.5.77.0/24", conf16, "10.5.76.0-22", ""},
		"garbage holds it": {"10.5.77.0/24", conf16, "10.5.77.128-25", ""},
		"of another net":   {"10.6.77.0/24", conf16, "", ""},
		"the whole net":    {"10.5.0.0/16", conf16, "", ""},
		"other length":     {"10.5.76.0/23", conf16, "", "[10.5.76.0/23]"},
		"both families":    {"10.5.77.0/24 fd00:5:0:77::/64", confDual, "", "[10.5.77.0/24 fd00:5:0:77::/64]"},
		"hosts' own":       {"192.168.7.0/24", `{"Network":"192.168.0.0/16"}`, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			scenario(t, func(t *testing.T) {
				st := cluster(t, tt.conf)
				if tt.occupied != "" {
					put(t, st, SubnetsPrefix(testPrefix)+tt.occupied, map[bool]string{true: "hello", false: from("192.168.7.9")}[strings.HasPrefix(name, "garbage")])
				}
				h := newHost(t, st, "a", "192.168.7.1 fd00:7::1")
				h.self.Previous = prefixes(tt.previous)
				h.start()
				settle(time.Second)
				if got := h.subnets(); tt.want != "" && got != tt.want || tt.want == "" && got == "["+tt.previous+"]" {
					t.Errorf("held %s, want %s", got, tt.want)
				}
				disjoint(t, st)
			})
		})
	}
}

func TestStoreErrorsAreReportedOnceAndRetried(t *testing.T) {
	scenario(t, func(t *testing.T) {
		st := cluster(t, conf16)
		h := newHost(t, st, "a", "192.168.7.1")
		st.Full(true)
		h.start()
		settle(time.Hour)
		p := h.now()
		if p.ended || len(p.held) != 0 || len(p.reports) != 1 || !strings.Contains(p.reports[0], "store is full") {
			t.Errorf("%+v", p)
		}
		st.Full(false)
		settle(11 * time.Second)
		if p := h.now(); len(p.held) != 1 || p.reports[len(p.reports)-1] != "<nil>" {
			t.Errorf("%+v", p)
		}
	})
}
