// Package loop carries packets between a TUN device and a UDP socket: bare IP
// packets in UDP, the kernel's offloads used wherever it has them.
package loop

import (
	"errors"
	"net/netip"
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Config is what a Loop works with for its whole life.
type Config struct {
	Device string
	// Local is where the tunnel's packets arrive, and the family of all.
	Local netip.AddrPort
}

// Loop is a TUN device with its tunnel. SetTable and Counters may be called
// concurrently.
type Loop struct {
	tun   int
	sock  int
	table atomic.Pointer[Table]
	count counters
}

// Counters are what the loop did, in packets of the pod network, and in system
// calls.
type Counters struct {
	Sent, Received  uint64
	Reads, Writes   uint64 // of the device
	Sends, Receives uint64 // of the socket
	NoPeer          uint64 // no peer has the destination
	Forged          uint64 // the sender may not send from that address
	Broken          uint64 // no packet
	Refused         uint64 // by the kernel: a queue was full, a rule forbids
}

type counters struct {
	sent, reads, sends, noPeer atomic.Uint64
	_                          [64]byte // the two ways on cache lines of their own
	received, writes, receives atomic.Uint64
	forged, broken, refused    atomic.Uint64
}

// Open makes the device, switched off and without addresses, and binds the
// socket. The device lives as long as this process, or until it is deleted.
func Open(c Config) (_ *Loop, err error) {
	l := &Loop{tun: -1, sock: -1}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if l.sock, err = openUDP(c.Local); err != nil {
		return nil, err
	}
	if l.tun, err = openTUN(c.Device); err != nil {
		return nil, err
	}
	l.SetTable(NewTable(nil))
	return l, nil
}

// SetTable replaces the peers.
func (l *Loop) SetTable(t *Table) { l.table.Store(t) }

// Counters are since Open.
func (l *Loop) Counters() Counters {
	c := &l.count
	return Counters{
		Sent: c.sent.Load(), Received: c.received.Load(),
		Reads: c.reads.Load(), Writes: c.writes.Load(), Sends: c.sends.Load(), Receives: c.receives.Load(),
		NoPeer: c.noPeer.Load(), Forged: c.forged.Load(), Broken: c.broken.Load(), Refused: c.refused.Load(),
	}
}

// Run carries packets until the device is deleted, and then closes all. It is
// called once. After an error, which is not to be expected, one way may still
// be open: the process is to end, and the device with it.
func (l *Loop) Run() error {
	ended := make(chan error, 2)
	go func() {
		runtime.LockOSThread()
		ended <- newSender(l).run()
	}()
	go func() {
		runtime.LockOSThread()
		ended <- newReceiver(l).run()
	}()
	if err := <-ended; err != nil {
		return err
	}
	// The device is gone, so the receiver's waiting shall end. The kernel says
	// that a socket without a peer cannot be shut down, and does it.
	_ = unix.Shutdown(l.sock, unix.SHUT_RDWR)
	defer l.close()
	return <-ended
}

func (l *Loop) close() {
	for _, fd := range []int{l.tun, l.sock} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// deviceGone reports whether an error of the device says that it was deleted.
func deviceGone(err error) bool {
	return errors.Is(err, unix.EBADFD) || errors.Is(err, unix.EFAULT)
}
