package daemon

import (
	"log/slog"

	sd "github.com/coreos/go-systemd/v22/daemon"
)

// systemd returns a function that tells the service manager a state; without
// one (no NOTIFY_SOCKET) it does nothing. The same state is told once, but
// for the watchdog's.
func systemd(log *slog.Logger) func(state string) {
	last := ""
	return func(state string) {
		if state != sd.SdNotifyWatchdog {
			if state == last {
				return
			}
			last = state
		}
		if _, err := sd.SdNotify(false, state); err != nil {
			log.Warn("systemd not told", "state", state, "error", err)
		}
	}
}
