package extension

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"github.com/flanneld/flanneld/subnet"
)

// stage is a host with hooks that write down what they are told.
type stage struct {
	t    *testing.T
	ns   *netns.NS
	drv  Driver
	log  string
	dev  *Device
	own  subnet.Lease
	conf map[string]string
}

func newStage(t *testing.T, hooks ...string) *stage {
	t.Helper()
	dir := t.TempDir()
	s := &stage{t: t, ns: netnstest.New(t), drv: Driver{Dir: filepath.Join(dir, "hooks"), State: filepath.Join(dir, "run", "state")}, log: filepath.Join(dir, "log"), conf: map[string]string{}}
	if err := errors.Join(os.Chmod(dir, 0o755), os.Mkdir(s.drv.Dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	s.own = subnet.Lease{Subnets: []netip.Prefix{netip.MustParsePrefix("10.1.1.0/24")}, PublicIPs: []netip.Addr{netip.MustParseAddr("192.168.77.1")}}
	for _, h := range hooks {
		s.conf[h] = s.hook(h, "")
	}
	return s
}

// hook writes the script of a hook: it notes what it was told, then does more.
func (s *stage) hook(name, more string) string {
	s.t.Helper()
	script := "#!/bin/sh\n" + `{ printf '%s' "$HOOK"; for v in NETWORK SUBNET PUBLIC_IP IPV6SUBNET PUBLIC_IPV6 IFACE MTU; do
eval "[ \"\${$v+set}\" ]" && eval "printf ' %s=%s' $v \"\$$v\""; done; printf ' stdin=%s\n' "$(cat)"; } >>` + s.log + "\n" + more + "\n"
	if err := os.WriteFile(filepath.Join(s.drv.Dir, name), []byte(script), 0o755); err != nil {
		s.t.Fatal(err)
	}
	return name
}

func (s *stage) config() subnet.Config {
	s.conf["Type"] = Type
	raw, err := json.Marshal(s.conf)
	if err != nil {
		s.t.Fatal(err)
	}
	return subnet.Config{Backend: subnet.Backend{Type: Type, Raw: raw},
		Ranges: []subnet.Range{{Network: netip.MustParsePrefix("10.1.0.0/16"), SubnetLen: 24}}}
}

func (s *stage) tryOpen() error {
	u := backend.Underlay{Link: "eth0", MTU: 1500, Addrs: s.own.PublicIPs, PublicIPs: s.own.PublicIPs}
	return s.ns.Do(func() error {
		dev, err := s.drv.Open(s.t.Context(), s.config(), u, "id")
		if err == nil {
			s.dev = dev.(*Device)
			s.t.Cleanup(func() { dev.Close() })
		}
		return err
	})
}

func (s *stage) cleanup() {
	s.t.Helper()
	if err := s.ns.Do(func() error { return s.drv.Cleanup(s.t.Context()) }); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stage) open() {
	s.t.Helper()
	if err := s.tryOpen(); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stage) sync(peers ...backend.Peer) {
	s.t.Helper()
	if err := s.dev.Sync(s.t.Context(), &s.own, peers); err != nil {
		s.t.Fatal(err)
	}
}

// said is what the hooks have noted since it was asked last.
func (s *stage) said() string {
	s.t.Helper()
	b, err := os.ReadFile(s.log)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		s.t.Fatal(err)
	}
	_ = os.Remove(s.log)
	return string(b)
}

func (s *stage) expect(want string) {
	s.t.Helper()
	if got := s.said(); got != want {
		s.t.Errorf("hooks were told\n%swant\n%s", got, want)
	}
}

func peerAt(n byte, data string) backend.Peer {
	l := &subnet.Lease{Type: Type, Key: fmt.Sprintf("/coreos.com/network/subnets/10.1.%d.0-24", n), Created: int64(n),
		Subnets:   []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, n, 0}), 24)},
		PublicIPs: []netip.Addr{netip.AddrFrom4([4]byte{192, 168, 77, n})}}
	if data != "" {
		l.Data.V4 = json.RawMessage(data)
	}
	return backend.Peer{Lease: l}
}

const (
	toldAdd2    = "SubnetAdd SUBNET=10.1.2.0/24 PUBLIC_IP=192.168.77.2 IFACE=eth0 MTU=1500 stdin=hello\n"
	toldRemove2 = "SubnetRemove SUBNET=10.1.2.0/24 PUBLIC_IP=192.168.77.2 IFACE=eth0 MTU=1500 stdin=hello\n"
	toldPre     = "PreStartup NETWORK=10.1.0.0/16 PUBLIC_IP=192.168.77.1 IFACE=eth0 MTU=1500 stdin=\n"
	toldPost    = "PostStartup NETWORK=10.1.0.0/16 SUBNET=10.1.1.0/24 PUBLIC_IP=192.168.77.1 IFACE=eth0 MTU=1500 stdin=\n"
	toldEnd     = "Shutdown NETWORK=10.1.0.0/16 SUBNET=10.1.1.0/24 PUBLIC_IP=192.168.77.1 IFACE=eth0 MTU=1500 stdin=\n"
)

func everyHook() []string {
	return []string{preStartup, postStartup, subnetAdd, subnetRemove, shutdown}
}

func TestHooksAreToldAsFlannelsAre(t *testing.T) {
	s := newStage(t, everyHook()...)
	s.hook(preStartup, `echo "  46:0a:5c:00:00:01  "; echo noise >&2`)
	s.open()
	s.expect(toldPre)
	if data := string(s.dev.Info().Data.V4); data != `"46:0a:5c:00:00:01"` {
		t.Errorf("lease data %s", data)
	}
	s.sync(peerAt(2, `"hello"`))
	s.expect(toldPost + toldAdd2)
	s.sync(peerAt(2, `"hello"`))
	s.dev.Forget()
	s.sync(peerAt(2, `"hello"`))
	s.expect("")
	s.sync()
	s.expect(toldRemove2)
	s.sync(peerAt(2, `"hello"`))
	s.said()
	moved := peerAt(2, `"hello"`)
	moved.Lease.PublicIPs = []netip.Addr{netip.MustParseAddr("192.168.77.9")}
	s.sync(moved)
	s.expect(toldRemove2 + strings.ReplaceAll(toldAdd2, "77.2", "77.9"))
	s.cleanup()
	s.expect(strings.ReplaceAll(toldRemove2, "77.2", "77.9") + toldEnd)
	s.cleanup()
	s.expect("")
	if _, err := os.Stat(s.drv.State); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the record is still there: %v", err)
	}
}

func TestPeersAreToldAgainAfterARestartAndThoseThatLeftMeanwhileAreRemoved(t *testing.T) {
	s := newStage(t, subnetAdd, subnetRemove)
	s.open()
	s.sync(peerAt(2, `"hello"`), peerAt(3, ""))
	s.dev.Close()
	s.said()
	s.open()
	s.sync(peerAt(3, ""))
	s.expect(toldRemove2 + "SubnetAdd SUBNET=10.1.3.0/24 PUBLIC_IP=192.168.77.3 IFACE=eth0 MTU=1500 stdin=\n")
}

func TestOtherHooksBeginAfterTheFormerHaveEnded(t *testing.T) {
	s := newStage(t, everyHook()...)
	s.open()
	s.sync(peerAt(2, `"hello"`))
	s.dev.Close()
	s.said()
	s.conf[subnetAdd] = s.hook("other", "")
	s.open()
	s.sync(peerAt(2, `"hello"`))
	s.expect(toldRemove2 + toldEnd + toldPre + toldPost + toldAdd2)
}

func TestRoutesOfAFormerBackendGoOnceTheHooksHaveSetTheirs(t *testing.T) {
	s := newStage(t, subnetAdd)
	s.hook(subnetAdd, "exit 1")
	for _, line := range []string{"link set lo up", "addr add 192.168.77.1/24 dev lo", "route add 10.1.2.0/24 via 192.168.77.2 proto 0x66"} {
		netnstest.Run(t, s.ns, "ip", strings.Fields(line)...)
	}
	s.open()
	if err := s.dev.Sync(t.Context(), &s.own, []backend.Peer{peerAt(2, "")}); err == nil {
		t.Error("the hook's failure is not reported")
	}
	if routes := netnstest.Run(t, s.ns, "ip", "route"); !strings.Contains(routes, "10.1.2.0/24") {
		t.Errorf("gone too early:\n%s", routes)
	}
	s.hook(subnetAdd, "ip route replace $SUBNET via $PUBLIC_IP metric 5")
	s.open()
	s.sync(peerAt(2, ""))
	if routes := netnstest.Run(t, s.ns, "ip", "-N", "route", "show", "10.1.2.0/24"); strings.Contains(routes, "102") || !strings.Contains(routes, "metric 5") {
		t.Errorf("got\n%s", routes)
	}
}

func TestNothingOfALeaseReachesAShell(t *testing.T) {
	s := newStage(t, subnetAdd)
	s.open()
	evil := "$(touch " + s.drv.Dir + "/pwned); `id` | sh && \"'"
	raw, _ := json.Marshal(evil)
	s.sync(peerAt(2, string(raw)))
	s.expect(strings.Replace(toldAdd2, "hello", evil, 1))
	if _, err := os.Stat(s.drv.Dir + "/pwned"); err == nil {
		t.Error("a shell has run what the lease says")
	}
}

func TestTheDaemonsEnvironmentStaysItsOwn(t *testing.T) {
	s := newStage(t, subnetAdd)
	s.hook(subnetAdd, "env >>"+s.log)
	t.Setenv("FLANNELD_ETCD_PASSWORD", "secret")
	s.open()
	s.sync(peerAt(2, ""))
	if said := s.said(); strings.Contains(said, "secret") || !strings.Contains(said, "PATH=") {
		t.Errorf("got %s", said)
	}
}

func TestHostileBackendDataIsReportedAndNotPassedOn(t *testing.T) {
	s := newStage(t, subnetAdd)
	s.open()
	for name, data := range map[string]string{
		"number": "7", "object": `{}`, "broken": `"x`, "control": `"a\u0000b"`, "escape": `"\u001b[2J"`, "long": `"` + strings.Repeat("x", mostData+1) + `"`, "huge": `"` + strings.Repeat("x", 1<<20) + `"`,
	} {
		err := s.dev.Sync(t.Context(), &s.own, []backend.Peer{peerAt(2, data)})
		pe, ok := errors.AsType[*backend.PeerError](err)
		if !ok || !strings.Contains(pe.Error(), "BackendData") || len(pe.Error()) > 300 {
			t.Errorf("%s: got %v", name, err)
		}
	}
	s.expect("")
}

func TestFailedHookIsReportedWithItsWordsAndTriedAgain(t *testing.T) {
	s := newStage(t, subnetAdd, subnetRemove)
	s.hook(subnetAdd, "echo RTNETLINK answers: File exists >&2; exit 2")
	s.open()
	peers := []backend.Peer{peerAt(2, "")}
	fails := func(want ...string) {
		t.Helper()
		err := s.dev.Sync(t.Context(), &s.own, peers)
		pe, ok := errors.AsType[*backend.PeerError](err)
		if !ok || pe.Peer != peers[0].Lease {
			t.Fatalf("got %v", err)
		}
		for _, w := range append(want, "SubnetAddCommand", "File exists", "exit status 2") {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%q does not say %q", err, w)
			}
		}
	}
	fails()
	ran := s.dev.Writes()
	fails() // too early
	if s.dev.Writes() != ran {
		t.Error("tried again at once")
	}
	s.dev.peers[peers[0].Lease.Key].after = time.Now()
	fails("ip route replace")
	s.hook(subnetAdd, "")
	s.dev.peers[peers[0].Lease.Key].after = time.Now()
	s.sync(peers...)
	s.sync(peers...)
}

func TestRemovalThatGoesOnFailingIsGivenUp(t *testing.T) {
	s := newStage(t, subnetAdd, subnetRemove)
	s.hook(subnetRemove, "exit 1")
	s.open()
	s.sync(peerAt(2, ""))
	for range removals {
		if err := s.dev.Sync(t.Context(), &s.own, nil); err == nil {
			t.Error("not reported")
		}
		for _, p := range s.dev.peers {
			p.after = time.Now()
		}
	}
	s.sync()
	if told, err := s.dev.record.peers(); err != nil || len(told) != 0 {
		t.Errorf("still remembered: %v %v", told, err)
	}
}

func TestPostStartupThatFailsKeepsPeersWaiting(t *testing.T) {
	s := newStage(t, postStartup, subnetAdd)
	s.hook(postStartup, "exit 1")
	s.open()
	if err := s.dev.Sync(t.Context(), &s.own, []backend.Peer{peerAt(2, "")}); err == nil || !strings.Contains(err.Error(), postStartup) {
		t.Errorf("got %v", err)
	}
	s.expect(toldPost)
	s.hook(postStartup, "")
	s.sync(peerAt(2, `"hello"`))
	s.expect(toldPost + toldAdd2)
}

func TestSlowHooksDoNotHoldUpTheDaemon(t *testing.T) {
	s := newStage(t, subnetAdd)
	s.hook(subnetAdd, "sleep 0.2")
	s.drv.SyncTime = 300 * time.Millisecond
	s.open()
	var peers []backend.Peer
	for n := range 5 {
		peers = append(peers, peerAt(byte(n+2), ""))
	}
	begin := time.Now()
	err := s.dev.Sync(t.Context(), &s.own, peers)
	if took := time.Since(begin); err == nil || !strings.Contains(err.Error(), "for 3 peers") || took > 2*time.Second {
		t.Errorf("after %v: %v", took, err)
	}
	for i := 0; i < 3 && err != nil; i++ {
		err = s.dev.Sync(t.Context(), &s.own, peers)
	}
	if err != nil || s.dev.Writes() != 5 {
		t.Errorf("%d hooks were run: %v", s.dev.Writes(), err)
	}
}

func TestHookThatHangsDoesNotKeepOthersFromTheirTurn(t *testing.T) {
	s := newStage(t, subnetAdd)
	s.hook(subnetAdd, `[ "$SUBNET" != 10.1.2.0/24 ] || { sleep 0.2; exit 1; }`)
	s.drv.SyncTime = 100 * time.Millisecond
	s.open()
	peers := []backend.Peer{peerAt(2, ""), peerAt(3, ""), peerAt(4, "")}
	for range 2 {
		_ = s.dev.Sync(t.Context(), &s.own, peers)
		s.dev.peers[peers[0].Lease.Key].after = time.Now()
	}
	for _, p := range peers[1:] {
		if !s.dev.peers[p.Lease.Key].sure {
			t.Errorf("%s has not had its turn", p.Lease.Key)
		}
	}
}

func TestHookThatLeavesSomethingInTheBackgroundIsFine(t *testing.T) {
	s := newStage(t, preStartup)
	gone := filepath.Join(s.drv.Dir, "gone")
	s.hook(preStartup, "echo data; (sleep 3; touch "+gone+") &")
	begin := time.Now()
	s.open()
	if took := time.Since(begin); took > 2500*time.Millisecond || s.dev.data != "data" {
		t.Errorf("took %v, data %q", took, s.dev.data)
	}
	for _, err := os.Stat(gone); err != nil; _, err = os.Stat(gone) {
		if time.Since(begin) > 10*time.Second {
			t.Fatal("what was left in the background has been killed")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestHookThatHangsIsKilledWithItsChildren(t *testing.T) {
	t.Parallel()
	s := newStage(t, subnetAdd)
	pids := filepath.Join(s.drv.Dir, "pids")
	s.hook(subnetAdd, "sleep 100 & echo $! $$ >"+pids+"; wait")
	s.open()
	begin := time.Now()
	err := s.dev.Sync(t.Context(), &s.own, []backend.Peer{peerAt(2, "")})
	if took := time.Since(begin); !errors.Is(err, errSlow) || took > hookTime+5*time.Second {
		t.Errorf("after %v: %v", took, err)
	}
	b, err := os.ReadFile(pids)
	if err != nil {
		t.Fatal(err)
	}
	for pid := range strings.FieldsSeq(string(b)) {
		for {
			stat, _ := os.ReadFile("/proc/" + pid + "/stat")
			if len(stat) == 0 || strings.Contains(string(stat), ") Z ") {
				break
			}
			if time.Since(begin) > hookTime+10*time.Second {
				t.Fatalf("process %s is still there", pid)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

func TestOnlyRootsFilesAreRun(t *testing.T) {
	for name, spoil := range map[string]func(dir, hook string) error{
		"absent":            func(_, hook string) error { return os.Remove(hook) },
		"not executable":    func(_, hook string) error { return os.Chmod(hook, 0o644) },
		"writable":          func(_, hook string) error { return os.Chmod(hook, 0o777) },
		"somebody's":        func(_, hook string) error { return os.Chown(hook, 1000, 0) },
		"writable folder":   func(dir, _ string) error { return os.Chmod(dir, 0o777) },
		"somebody's folder": func(dir, _ string) error { return os.Chown(dir, 1000, 0) },
		"link": func(_, hook string) error {
			return errors.Join(os.Remove(hook), os.Symlink("/bin/true", hook))
		},
		"folder": func(_, hook string) error { return errors.Join(os.Remove(hook), os.Mkdir(hook, 0o755)) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t, subnetAdd)
			path := filepath.Join(s.drv.Dir, subnetAdd)
			s.open()
			if err := spoil(s.drv.Dir, path); err != nil {
				t.Fatal(err)
			}
			err := s.tryOpen()
			if ce, ok := errors.AsType[*subnet.ConfigError](err); !ok || ce.Field != "Backend."+subnetAdd || !strings.Contains(ce.Remedy, s.drv.Dir) {
				t.Errorf("Open: got %v", err)
			}
			err = s.dev.Sync(t.Context(), &s.own, []backend.Peer{peerAt(2, "")})
			if _, ok := errors.AsType[*backend.PeerError](err); !ok {
				t.Errorf("Sync: got %v", err)
			}
			s.expect("")
		})
	}
}

func TestDamagedRecordIsForgottenAndSaid(t *testing.T) {
	for name, content := range map[string]string{"broken": `{"Comm`, "escape": `{"Commands":{"SubnetRemoveCommand":"../../bin/sh"}}`} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t, subnetAdd, subnetRemove)
			s.open()
			s.sync(peerAt(2, ""))
			if err := os.WriteFile(s.dev.record.hostFile(), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			s.open()
			if err := s.dev.Sync(t.Context(), &s.own, []backend.Peer{peerAt(2, "")}); err == nil || !strings.Contains(err.Error(), "forgotten") {
				t.Errorf("got %v", err)
			}
			s.sync(peerAt(2, ""))
		})
	}
}

func FuzzBackendData(f *testing.F) {
	for _, seed := range []string{`"46:0a:5c:00:00:01"`, `7`, `null`, `"\u0000"`, `{"a":1}`, ``, `"` + strings.Repeat("é", 3000) + `"`} {
		f.Add([]byte(seed))
	}
	d := &Device{cfg: subnet.Config{Ranges: []subnet.Range{{Network: netip.MustParsePrefix("10.1.0.0/16"), SubnetLen: 24}}}}
	f.Fuzz(func(t *testing.T, raw []byte) {
		p := peerAt(2, string(raw))
		in, err := d.parse(p.Lease)
		if err == nil && (len(in.Data) > mostData || strings.ContainsAny(in.Data, "\x00\x1b\x7f\r")) {
			t.Errorf("%q was let through as %q", raw, in.Data)
		}
		if err != nil && len(err.Error()) > 300 {
			t.Errorf("error of %d bytes", len(err.Error()))
		}
	})
}

// TestScale prints what a number of peers costs; FLANNELD_SCALE sets it. The
// only limits that fail are counts.
func TestScale(t *testing.T) {
	n, _ := strconv.Atoi(cmp.Or(os.Getenv("FLANNELD_SCALE"), "200"))
	s := newStage(t, subnetAdd, subnetRemove)
	s.drv.SyncTime = time.Hour
	if err := os.WriteFile(filepath.Join(s.drv.Dir, subnetAdd), []byte("#!/bin/sh\nexit 0\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	s.open()
	peers := make([]backend.Peer, n+1)
	for i := range peers {
		peers[i] = peerAt(2, "")
		peers[i].Lease.Key = fmt.Sprintf("/subnets/%06d", i)
		peers[i].Lease.PublicIPs = []netip.Addr{netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)})}
		peers[i].Lease.Subnets = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(64 + i>>6), byte(i << 2)}), 30)}
	}
	step := func(what string, peers []backend.Peer, hooks int) {
		t.Helper()
		begin, before := time.Now(), s.dev.Writes()
		s.sync(peers...)
		ran := int(s.dev.Writes() - before)
		t.Logf("%d peers, %s: wall %v, %d hooks", n, what, time.Since(begin).Round(time.Microsecond), ran)
		if ran != hooks {
			t.Errorf("%s: %d hooks, want %d", what, ran, hooks)
		}
	}
	step("first sync", peers[:n], n)
	step("second sync", peers[:n], 0)
	step("one added", peers, 1)
	step("one removed", peers[:n], 1)
	s.dev.Forget()
	step("sync after Forget", peers[:n], 0)
}
