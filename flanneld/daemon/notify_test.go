package daemon

import (
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"
)

func TestSystemdIsToldOncePerStateAndForEveryBeat(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	notify := systemd(slog.New(slog.DiscardHandler))
	for _, s := range []string{"STATUS=waiting", "STATUS=waiting", "WATCHDOG=1", "READY=1", "WATCHDOG=1", "WATCHDOG=1", "STOPPING=1"} {
		notify(s)
	}
	var got []string
	buf := make([]byte, 256)
	for range 6 {
		if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(buf)
		if err != nil {
			t.Fatalf("after %q: %v", got, err)
		}
		got = append(got, string(buf[:n]))
	}
	want := []string{"STATUS=waiting", "WATCHDOG=1", "READY=1", "WATCHDOG=1", "WATCHDOG=1", "STOPPING=1"}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("got %q", got)
			break
		}
	}
}
