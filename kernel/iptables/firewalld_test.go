package iptables_test

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// startFirewalld runs a real firewalld in the router, on a bus of its own.
func startFirewalld(t *testing.T, w router) {
	t.Helper()
	for _, program := range []string{"firewalld", "firewall-cmd", "dbus-daemon"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs %s (Debian package firewalld)", program)
		}
	}
	dir := t.TempDir()
	bus := filepath.Join(dir, "bus")
	config := filepath.Join(dir, "bus.conf")
	err := os.WriteFile(config, []byte(`<busconfig><type>system</type><listen>unix:path=`+bus+`</listen>
<auth>EXTERNAL</auth><policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow receive_requested_reply="true"/><allow own="*"/><allow user="*"/></policy></busconfig>`), 0o644)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+bus)
	start := func(name string, args ...string) {
		cmd := exec.Command(name, args...)
		if err := w.r.Start(cmd); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
	}
	start("dbus-daemon", "--nofork", "--nopidfile", "--config-file="+config)
	waitFor(t, "the bus", func() bool { _, err := os.Stat(bus); return err == nil })
	start("firewalld", "--nofork", "--nopid")
	waitFor(t, "firewalld", func() bool { return exec.Command("firewall-cmd", "--state").Run() == nil })
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for !done() {
		if ctx.Err() != nil {
			t.Fatalf("%s does not come up", what)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func TestPodsPassFirewalldAlsoAfterAReload(t *testing.T) {
	w := newRouter(t)
	startFirewalld(t, w)
	if w.reaches(t, w.pod) {
		t.Fatal("firewalld does not drop: the test proves nothing")
	}
	state := filepath.Join(t.TempDir(), "firewalld")
	f, sync := w.forward(t, state)
	sync()
	if !w.reaches(t, w.pod) {
		t.Error("pods do not pass")
	}
	if w.reaches(t, w.other) {
		t.Error("others pass")
	}
	sync()
	ran := f.Runs()
	sync()
	if n := f.Runs() - ran; n != 0 {
		t.Errorf("%d programs run by an idle sync, want none", n)
	}
	if p := f.Problems(); len(p) > 0 {
		t.Errorf("problems %q, want none", p)
	}
	w.sh(t, "firewall-cmd --reload")
	if w.reaches(t, w.pod) {
		t.Error("pods pass after a reload without repair: the test proves nothing")
	}
	sync()
	if !w.reaches(t, w.pod) {
		t.Error("pods do not pass after a reload")
	}
	again, _ := w.forward(t, state) // a clean-up by another process
	if err := w.r.Do(func() error { return again.Remove(t.Context()) }); err != nil {
		t.Fatal(err)
	}
	if s := strings.TrimSpace(w.sh(t, "firewall-cmd --zone=trusted --list-sources")); s != "" {
		t.Errorf("sources %q are left", s)
	}
}

func TestFirewalldSourcesOfTheAdministratorStay(t *testing.T) {
	w := newRouter(t)
	startFirewalld(t, w)
	w.sh(t, "firewall-cmd --zone=trusted --add-source=10.1.0.0/16")
	f, sync := w.forward(t, "")
	sync()
	if err := w.r.Do(func() error { return f.Remove(t.Context()) }); err != nil {
		t.Fatal(err)
	}
	if s := strings.TrimSpace(w.sh(t, "firewall-cmd --zone=trusted --list-sources")); s != netip.MustParsePrefix("10.1.0.0/16").String() {
		t.Errorf("sources %q, want the administrator's", s)
	}
}

func TestFirewalldThatLeftItsRulesIsReportedAndNotAskedAgain(t *testing.T) {
	w := newRouter(t)
	w.sh(t, "nft add table inet firewalld")
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+filepath.Join(t.TempDir(), "nobody"))
	f, sync := w.forward(t, "")
	sync()
	if p := f.Problems(); len(p) != 1 || !strings.Contains(p[0], "start firewalld") {
		t.Errorf("problems %q, want one that names the remedy", p)
	}
	ran := f.Runs()
	w.sh(t, "nft add table inet other")
	sync()
	if n := f.Runs() - ran; n != 0 {
		t.Errorf("%d programs run, want none", n)
	}
	w.sh(t, "nft delete table inet firewalld")
	sync()
	if p := f.Problems(); len(p) != 0 {
		t.Errorf("problems %q, want none", p)
	}
}
