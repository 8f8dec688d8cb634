package udp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"time"

	"github.com/flanneld/flanneld/backend/outlive"
	"github.com/flanneld/flanneld/backend/udp/loop"
)

// Kind is the kind of keepers that Keep is.
const Kind = "udp"

var _ outlive.Keeper = Keep

// keeper is the state of a keeper's process, owned by the goroutine that
// answers.
type keeper struct {
	loop *loop.Loop
	greeting
}

// Keep is the outlive.Keeper of a device. args are the local address with its
// port, and the path of the socket to listen on.
func Keep(ctx context.Context, device string, args []string, ready func()) error {
	if len(args) != 2 {
		return fmt.Errorf("a keeper of kind %s needs an address and a socket, not %q", Kind, args)
	}
	local, err := netip.ParseAddrPort(args[0])
	if err != nil {
		return err
	}
	// One for each way and one for whoever connects: a way that waits for
	// nothing never lets go of its own.
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), 3))
	k := &keeper{greeting: greeting{Version: version, PID: os.Getpid(), Local: local}}
	if k.loop, err = loop.Open(loop.Config{Device: device, Local: local}); err != nil {
		return err
	}
	l, err := net.InterfaceByName(device)
	if err != nil {
		return fmt.Errorf("interface %s: %w", device, err)
	}
	k.Index = l.Index
	listener, err := listen(args[1])
	if err != nil {
		return err
	}
	go k.serve(listener) // until the process ends
	ready()
	gone := make(chan error, 1)
	go func() { gone <- k.loop.Run() }()
	select {
	case err := <-gone:
		// Nobody starts another keeper while this one answers.
		return errors.Join(err, os.Remove(args[1]))
	case <-ctx.Done():
		return nil // the device goes with the process
	}
}

// listen puts a socket in the place of one that a keeper left that was killed.
func listen(path string) (net.Listener, error) {
	temporary := path + "." + strconv.Itoa(os.Getpid())
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temporary, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen for the daemon: %w", err)
	}
	l.SetUnlinkOnClose(false)
	if err := os.Rename(temporary, path); err != nil {
		return nil, errors.Join(err, os.Remove(temporary))
	}
	return l, nil
}

// serve speaks with one daemon after the other: there is only one.
func (k *keeper) serve(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		_ = conn.SetDeadline(time.Now().Add(patience))
		_ = k.answers(conn) // who sent it has seen it, or is gone
		conn.Close()
	}
}
