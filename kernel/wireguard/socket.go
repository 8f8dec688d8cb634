package wireguard

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"slices"
	"syscall"
	"time"
)

// Socket is a device of a userspace process that is asked through its socket,
// in the cross-platform configuration protocol of WireGuard.
type Socket struct {
	// Path of the socket. wg(8) looks for it at
	// /var/run/wireguard/<device>.sock.
	Path string
}

// patience bounds one question, answer included.
const patience = 10 * time.Second

// Read returns what the device has; fs.ErrNotExist if no process serves it.
func (s Socket) Read(ctx context.Context) (State, error) {
	var out State
	err := s.ask(ctx, func(c net.Conn) error {
		if _, err := io.WriteString(c, "get=1\n\n"); err != nil {
			return err
		}
		var err error
		out, err = parseState(c)
		return err
	})
	if err != nil {
		return State{}, fmt.Errorf("read WireGuard device at %s: %w", s.Path, err)
	}
	return out, nil
}

// peersPerRequest bounds how long a request takes: each new peer costs the
// process a computation.
const peersPerRequest = 256

// Write applies a change. On an error part of it may have been applied.
func (s Socket) Write(ctx context.Context, c Change) error {
	set, remove := c.Set, c.Remove
	c.Set, c.Remove = nil, nil
	if c.Private != nil || c.Port != nil || c.Mark != nil {
		if err := s.write(ctx, c); err != nil {
			return err
		}
	}
	for peers := range slices.Chunk(set, peersPerRequest) {
		if err := s.write(ctx, Change{Set: peers}); err != nil {
			return err
		}
	}
	for keys := range slices.Chunk(remove, peersPerRequest) {
		if err := s.write(ctx, Change{Remove: keys}); err != nil {
			return err
		}
	}
	return nil
}

func (s Socket) write(ctx context.Context, c Change) error {
	err := s.ask(ctx, func(conn net.Conn) error {
		w := bufio.NewWriter(conn)
		_, _ = w.WriteString("set=1\n")
		writeChange(w, c)
		_ = w.WriteByte('\n')
		if err := w.Flush(); err != nil {
			return err
		}
		_, err := parseState(conn)
		return err
	})
	if err != nil {
		return fmt.Errorf("configure WireGuard device at %s: %w", s.Path, err)
	}
	return nil
}

// Close does nothing: there is a connection for each question.
func (Socket) Close() error { return nil }

// Gone waits until the process that serves the socket, if there is one, has
// ended or ctx does.
func (s Socket) Gone(ctx context.Context) error {
	err := s.ask(ctx, func(c net.Conn) error {
		_, err := c.Read(make([]byte, 1))
		return err
	})
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("wait for the end of the process behind %s: %w", s.Path, err)
}

func (s Socket) ask(ctx context.Context, f func(net.Conn) error) error {
	ctx, stop := context.WithTimeout(ctx, patience)
	defer stop()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", s.Path)
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT) {
		return fmt.Errorf("no process answers: %w", fs.ErrNotExist)
	}
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	if err = f(c); err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return err
}
