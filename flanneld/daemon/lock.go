package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrRunning: another flanneld owns this host.
var ErrRunning = errors.New("another flanneld runs on this host: stop it first (systemctl stop flanneld, or pkill -x flanneld)")

const lockPatience = time.Second

// lockHost makes sure that one flanneld at a time owns this host's kernel
// objects. It locks the state directory itself, in which somebody may delete
// any file. The lock goes with the returned file, also when the process is
// killed; a program that the killed one was just starting can hold it for a
// moment longer, so that it is waited for.
func lockHost(ctx context.Context, dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the state directory: %w", err)
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open the state directory: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			break
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ErrRunning, f.Close())
		case <-time.After(lockPatience / 50):
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
	}
	return f, nil
}
