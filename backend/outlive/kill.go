package outlive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Kill ends the keeper of a device that listens at socket but does not answer,
// stopped or stuck, and returns once it is gone with all that it had open.
// It ends no other program's process.
func Kill(ctx context.Context, device, socket string) (pid int, err error) {
	pid, err = listener(ctx, socket)
	if err != nil {
		return 0, fmt.Errorf("the keeper of %s does not answer: end it by hand (ss -xlp src %s): %w", device, socket, err)
	}
	if err := kill(ctx, device, pid); err != nil {
		return pid, fmt.Errorf("the keeper of %s, process %d, does not answer: kill -9 %d: %w", device, pid, pid, err)
	}
	return pid, nil
}

// listener is the process that listens at socket.
func listener(ctx context.Context, socket string) (pid int, err error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	err2 := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, err2); err != nil {
		return 0, err
	}
	if cred.Pid <= 0 {
		return 0, errors.New("it is in another PID namespace")
	}
	return int(cred.Pid), nil
}

// kill ends a process that is the keeper of a device.
func kill(ctx context.Context, device string, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return err
	}
	if args := bytes.Split(line, []byte{0}); len(args) < 4 || string(args[1]) != Command || string(args[3]) != device {
		return errors.New("it is another program's")
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	const look = 100 * time.Millisecond // at ctx
	for ctx.Err() == nil {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(look.Milliseconds()))
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return fmt.Errorf("it was killed and has not ended: %w", ctx.Err())
}
