package wireguard_test

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flanneld/flanneld/backend/routed"
	"github.com/flanneld/flanneld/backend/wireguard"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
)

func TestAProcessThatIsStartedAgainIsToldOf(t *testing.T) {
	var log bytes.Buffer
	drv := wireguard.Driver{Options: routed.Options{Log: slog.New(slog.NewTextHandler(&log, nil))}}
	c, p := clusterOf(t, drv, "", ipv4, 1)
	up(t, c)
	h := c.Hosts[0]
	if p.keeper(t, h, "flannel-wg") == 0 {
		t.Skip("this kernel has WireGuard: no process to end")
	}
	for name, end := range map[string]func(pid int) error{
		"nothing": func(int) error { return nil },
		"killed":  func(pid int) error { return syscall.Kill(pid, syscall.SIGKILL) },
		"deleted": func(int) error { netnstest.Run(t, h.NS, "ip", "link", "del", "flannel-wg"); return nil },
	} {
		log.Reset()
		pid := p.keeper(t, h, "flannel-wg")
		if err := end(pid); err != nil {
			t.Fatal(err)
		}
		for name != "nothing" && !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			time.Sleep(time.Millisecond)
		}
		want := 1
		if name == "nothing" {
			want = 0
		}
		for range 2 {
			h.Device.Forget()
			h.Sync(t)
			text := log.String()
			if strings.Count(text, "\n") != want || want == 1 && (!strings.Contains(text, `msg="keeper started again"`) || !strings.Contains(text, "device=flannel-wg") || !strings.Contains(text, "reason=")) {
				t.Errorf("%s: log %q", name, text)
			}
		}
	}
}
