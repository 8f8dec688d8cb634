// Package outlive keeps devices that a process must serve alive while the
// daemon is not.
//
// A device of the kernel's goes on when the daemon is stopped, killed or
// replaced. A TUN device does so only as long as some process reads it. That
// process is this program, started again as a keeper: it opens the device,
// which is not persistent, and what the device's packets travel by. So the
// device lives as long as its keeper: who deletes it ends the keeper, and
// where a keeper dies its device is gone, which a monitor of links is told.
// There is nothing else to find, to adopt or to clean up.
package outlive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
)

// Command is the first argument of a keeper's process.
const Command = "outlive"

// readyFD is where a keeper tells its starter how it went; readyWord is that
// all is well, anything else is an error's text.
const (
	readyFD   = 3
	readyWord = "ready"
)

// Keeper serves one device: it opens the device and its sockets in the network
// namespace of the process, calls ready once others may use them, and returns
// nil when the device is gone or ctx ends.
type Keeper func(ctx context.Context, device string, args []string, ready func()) error

// Start starts this program again as the keeper of a device, in the network
// and mount namespaces of the calling thread, and waits until it is ready. Its
// error is the keeper's where that gave up. If ctx ends first the keeper is
// killed. The keeper has its own session, no open files of this process's, and
// its environment without what is meant for the daemon alone.
func Start(ctx context.Context, kind, device string, args ...string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start the keeper of %s: %w", device, err)
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe", append([]string{Command, kind, device}, args...)...)
	cmd.Args[0] = "flanneld"
	cmd.Dir = "/"
	cmd.Env = environ(os.Environ())
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("start the keeper of %s: %w", device, err)
	}
	ended := make(chan struct{})
	go func() { // reaps it whenever it ends, if this process is there still
		_ = cmd.Wait()
		close(ended)
	}()
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	said, err := io.ReadAll(io.LimitReader(r, 4096))
	if !stop() {
		<-ended
		return ctx.Err()
	}
	switch {
	case err == nil && string(said) == readyWord:
		return nil
	case err == nil && len(said) > 0:
		err = errors.New(string(said))
	case err == nil:
		err = errors.New("it ended without a word")
	}
	_ = cmd.Process.Kill()
	<-ended
	return fmt.Errorf("the keeper of %s: %w", device, err)
}

// Restarted says in the log that a device has a keeper again, and why it needed
// one: its packets were lost meanwhile. log may be nil: quiet.
func Restarted(log *slog.Logger, device string, why error) {
	if log != nil {
		log.Warn("keeper started again", "device", device, "reason", why)
	}
}

// environ is the environment without the daemon's own: what systemd told it,
// and its settings, which have passwords.
func environ(all []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return name == "NOTIFY_SOCKET" || strings.HasPrefix(name, "WATCHDOG_") ||
			strings.HasPrefix(name, "LISTEN_") || strings.HasPrefix(name, "FLANNELD_")
	})
}

// Main runs a keeper if the program's arguments (without its name) say that
// this process is one; else ok is false and nothing happened. To be called
// first of all by main, and by TestMain where a test starts keepers.
func Main(args []string, keepers map[string]Keeper) (code int, ok bool) {
	if len(args) < 3 || args[0] != Command {
		return 0, false
	}
	syscall.Umask(0o077)
	pipe := os.NewFile(readyFD, "ready")
	if pipe == nil {
		return 1, true
	}
	syscall.CloseOnExec(readyFD)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGPIPE)
	told := false
	tell := func(word string) {
		if !told {
			told = true
			_, _ = io.Copy(pipe, bytes.NewBufferString(word))
			_ = pipe.Close()
		}
	}
	keep := keepers[args[1]]
	if keep == nil {
		tell(fmt.Sprintf("there is no keeper of kind %q", args[1]))
		return 1, true
	}
	if err := keep(ctx, args[2], args[3:], func() { tell(readyWord) }); err != nil {
		tell(err.Error())
		return 1, true
	}
	tell("it ended at once")
	return 0, true
}
