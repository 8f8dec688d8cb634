package udp_test

import (
	"bytes"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/backend/backendtest"
	"github.com/flanneld/flanneld/backend/routed"
	"github.com/flanneld/flanneld/backend/udp"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
)

func TestAKeeperThatIsStartedAgainIsToldOf(t *testing.T) {
	netnstest.NeedRoot(t)
	var log bytes.Buffer
	s, dir := suite(t), backendtest.Dir(t)
	s.Driver = func() backend.Driver {
		return udp.Driver{Dir: dir, Options: routed.Options{Log: slog.New(slog.NewTextHandler(&log, nil))}}
	}
	c := backendtest.NewCluster(t, s, onlyIPv4, 1)
	start(t, c)
	h := c.Hosts[0]
	keeper := func() int {
		t.Helper()
		pid, _, err := udp.KeeperOf(t.Context(), dir, "flannel0", h.NS)
		if err != nil {
			t.Fatal(err)
		}
		return pid
	}
	for name, x := range map[string]struct {
		end  func(pid int) error
		want string // the reason; "": nothing is said
	}{
		"nothing": {func(int) error { return nil }, ""},
		"killed":  {func(pid int) error { return syscall.Kill(pid, syscall.SIGKILL) }, "it had ended"},
		"deleted": {func(int) error { netnstest.Run(t, h.NS, "ip", "link", "del", "flannel0"); return nil }, "it had ended"},
		"stopped": {func(pid int) error { backendtest.Stop(t, pid); return nil }, "did not answer for 5s and was killed"},
	} {
		log.Reset()
		pid := keeper()
		if err := x.end(pid); err != nil {
			t.Fatal(err)
		}
		for (name == "killed" || name == "deleted") && syscall.Kill(pid, 0) == nil {
			time.Sleep(time.Millisecond)
		}
		lines := 0
		if x.want != "" {
			lines = 1
		}
		for range 2 {
			h.Device.Forget()
			h.Sync(t)
			text := log.String()
			if strings.Count(text, "\n") != lines || lines == 1 && (!strings.Contains(text, `msg="keeper started again" device=flannel0`) || !strings.Contains(text, x.want)) {
				t.Errorf("%s: log %q", name, text)
			}
		}
	}
}
