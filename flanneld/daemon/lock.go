package daemon

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ErrRunning: another flanneld owns this host.
var ErrRunning = errors.New("another flanneld runs on this host: stop it first (systemctl stop flanneld, or pkill -x flanneld)")

// lockHost makes sure that one flanneld at a time owns this host's kernel
// objects. It locks the state directory itself, in which somebody may delete
// any file. The lock goes with the returned file, also when the process is
// killed.
func lockHost(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the state directory: %w", err)
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open the state directory: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, errors.Join(ErrRunning, f.Close())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
	}
	return f, nil
}
