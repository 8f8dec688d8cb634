package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// The load is made by blocking system calls on plain sockets, so that what is
// measured is the kernel's path and not a runtime's poller.

// The first byte of a connection says what the server does with it.
const (
	echo  = 'R' // every byte comes back
	sink  = 'S' // all is read; then the number of bytes comes back
	count = 'U' // the UDP packets so far come back
)

const (
	port       = 7000
	packetSize = 64 - 28 // 64 bytes with the IPv4 and UDP headers
)

// result is what one client has done.
type result struct {
	Count   uint64        // transactions, bytes or packets
	Elapsed time.Duration // in which they were done
	P99     time.Duration // of transactions
}

func (r result) rate() float64 { return float64(r.Count) / r.Elapsed.Seconds() }

// load runs as a process inside a namespace: "load server ADDRESS" or "load
// MEASURE ADDRESS DURATION".
func load(args []string, out io.Writer) error {
	if len(args) < 2 {
		return errors.New("load: arguments are missing")
	}
	at, err := netip.ParseAddr(args[1])
	if err != nil {
		return err
	}
	if args[0] == "server" {
		return serve(at, out)
	}
	d, err := time.ParseDuration(args[2])
	if err != nil {
		return err
	}
	var r result
	switch args[0] {
	case "rr":
		r, err = requests(at, d)
	case "crr":
		r, err = connections(at, d)
	case "udp":
		r, err = packets(at, d)
	default:
		n, e := strconv.Atoi(args[0])
		if err = e; err == nil {
			r, err = streams(at, d, n)
		}
	}
	if err != nil {
		return fmt.Errorf("load %s: %w", args[0], err)
	}
	return json.NewEncoder(out).Encode(r)
}

func socket(at netip.Addr, kind int) (fd int, sa unix.Sockaddr, err error) {
	sa = &unix.SockaddrInet4{Port: port, Addr: at.As4()}
	fd, err = unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	return fd, sa, err
}

// dial connects and says what the connection is for.
func dial(at netip.Addr, kind byte) (int, error) {
	fd, sa, err := socket(at, unix.SOCK_STREAM)
	if err != nil {
		return 0, err
	}
	err = unix.Connect(fd, sa)
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	if err == nil {
		_, err = unix.Write(fd, []byte{kind})
	}
	if err != nil {
		unix.Close(fd)
	}
	return fd, err
}

// requests sends one byte and waits for it to come back, again and again.
func requests(at netip.Addr, d time.Duration) (result, error) {
	fd, err := dial(at, echo)
	if err != nil {
		return result{}, err
	}
	defer unix.Close(fd)
	var b [1]byte
	return repeat(d, func() error {
		if _, err := unix.Write(fd, b[:]); err != nil {
			return err
		}
		return read(fd, b[:])
	})
}

// connections does the same with a connection for each.
func connections(at netip.Addr, d time.Duration) (result, error) {
	var b [1]byte
	return repeat(d, func() error {
		fd, err := dial(at, echo)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if _, err := unix.Write(fd, b[:]); err != nil {
			return err
		}
		return read(fd, b[:])
	})
}

func repeat(d time.Duration, do func() error) (result, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	times := make([]time.Duration, 0, 1<<20)
	begin := time.Now()
	last := begin
	for {
		if err := do(); err != nil {
			return result{}, err
		}
		now := time.Now()
		times = append(times, now.Sub(last))
		last = now
		if now.Sub(begin) >= d {
			break
		}
	}
	slices.Sort(times)
	return result{uint64(len(times)), last.Sub(begin), times[len(times)*99/100]}, nil
}

// streams sends as much as goes through n connections.
func streams(at netip.Addr, d time.Duration, n int) (result, error) {
	var wg sync.WaitGroup
	var total atomic.Uint64
	errs := make([]error, n)
	begin := time.Now()
	for i := range n {
		wg.Go(func() {
			fd, err := dial(at, sink)
			if errs[i] = err; err != nil {
				return
			}
			defer unix.Close(fd)
			data := make([]byte, 128<<10)
			for time.Since(begin) < d {
				if _, err := unix.Write(fd, data); err != nil {
					errs[i] = err
					return
				}
			}
			var got [8]byte
			if errs[i] = unix.Shutdown(fd, unix.SHUT_WR); errs[i] == nil {
				errs[i] = read(fd, got[:])
			}
			total.Add(binary.BigEndian.Uint64(got[:]))
		})
	}
	wg.Wait()
	return result{Count: total.Load(), Elapsed: time.Since(begin)}, errors.Join(errs...)
}

// packets sends UDP packets as fast as it can and counts those that arrive.
func packets(at netip.Addr, d time.Duration) (result, error) {
	ask, err := dial(at, count)
	if err != nil {
		return result{}, err
	}
	defer unix.Close(ask)
	var before, after [8]byte
	if err := read(ask, before[:]); err != nil {
		return result{}, err
	}
	fd, sa, err := socket(at, unix.SOCK_DGRAM)
	if err != nil {
		return result{}, err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, sa); err != nil {
		return result{}, err
	}
	var data [packetSize]byte
	begin := time.Now()
	for i := 0; i%16 != 0 || time.Since(begin) < d; i++ {
		if _, err := unix.Write(fd, data[:]); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return result{}, err
		}
	}
	elapsed := time.Since(begin)
	if _, err := unix.Write(ask, []byte{count}); err != nil {
		return result{}, err
	}
	if err := read(ask, after[:]); err != nil {
		return result{}, err
	}
	return result{Count: binary.BigEndian.Uint64(after[:]) - binary.BigEndian.Uint64(before[:]), Elapsed: elapsed}, nil
}

// read fills b.
func read(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Read(fd, b)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n == 0:
			return io.ErrUnexpectedEOF
		}
		b = b[max(n, 0):]
	}
	return nil
}

// serve answers until it is killed. It writes a line when it is ready.
func serve(at netip.Addr, out io.Writer) error {
	var received atomic.Uint64
	udp, sa, err := socket(at, unix.SOCK_DGRAM)
	if err == nil {
		err = unix.Bind(udp, sa)
	}
	if err != nil {
		return err
	}
	go func() {
		runtime.LockOSThread()
		var b [2048]byte
		for {
			if _, err := unix.Read(udp, b[:]); err == nil {
				received.Add(1)
			}
		}
	}()
	tcp, sa, err := socket(at, unix.SOCK_STREAM)
	if err == nil {
		err = errors.Join(unix.SetsockoptInt(tcp, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.Bind(tcp, sa), unix.Listen(tcp, 128))
	}
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "ready")
	for {
		fd, _, err := unix.Accept4(tcp, unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		go func() {
			defer unix.Close(fd)
			_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
			answer(fd, &received)
		}()
	}
}

// answer serves one connection until its other end is closed.
func answer(fd int, received *atomic.Uint64) {
	var kind, b [1]byte
	if read(fd, kind[:]) != nil {
		return
	}
	var total [8]byte
	switch kind[0] {
	case echo:
		for read(fd, b[:]) == nil {
			if _, err := unix.Write(fd, b[:]); err != nil {
				return
			}
		}
	case sink:
		data := make([]byte, 256<<10)
		var n uint64
		for {
			got, err := unix.Read(fd, data)
			if err != nil && !errors.Is(err, unix.EINTR) {
				return
			}
			if got == 0 {
				break
			}
			n += uint64(max(got, 0))
		}
		binary.BigEndian.PutUint64(total[:], n)
		_, _ = unix.Write(fd, total[:]) // whoever asked may be gone
	case count:
		for {
			binary.BigEndian.PutUint64(total[:], received.Load())
			if _, err := unix.Write(fd, total[:]); err != nil || read(fd, b[:]) != nil {
				return
			}
		}
	}
}
