package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/flanneld/flanneld/test/dnswire"
)

// client asks one server, from its own host.
type client struct {
	conn net.Conn
	id   uint16
}

func dial(s *server) (*client, error) {
	c := &client{}
	err := s.host.Do(func() (err error) {
		c.conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(s.addr, 53)))
		return err
	})
	return c, err
}

func (c *client) close() { _ = c.conn.Close() }

// ask asks once. os.ErrDeadlineExceeded: no answer came in time.
func (c *client) ask(name string, patience time.Duration) (dnswire.Reply, error) {
	c.id++
	if err := c.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return dnswire.Reply{}, err
	}
	if _, err := c.conn.Write(dnswire.Query(c.id, name, dnswire.A)); err != nil {
		return dnswire.Reply{}, err
	}
	var buf [4096]byte
	for {
		n, err := c.conn.Read(buf[:])
		if err != nil {
			return dnswire.Reply{}, err
		}
		if r, err := dnswire.ParseReply(buf[:n]); err == nil && r.ID == c.id {
			return r, nil
		}
	}
}

// until asks every step until the name has an address, and says when it had.
func (c *client) until(ctx context.Context, name string, step, patience time.Duration) (time.Time, error) {
	end := time.Now().Add(patience)
	for {
		// Before a server's socket is there, nothing answers at all.
		r, err := c.ask(name, 100*time.Millisecond)
		if err == nil && len(r.Addrs) > 0 {
			return time.Now(), nil
		}
		if time.Now().After(end) {
			return time.Time{}, fmt.Errorf("%s has no address after %s: code %d, %w", name, patience, r.RCode, errors.Join(err, ctx.Err()))
		}
		if err := wait(ctx, step); err != nil {
			return time.Time{}, err
		}
	}
}

// ready waits until every server knows the name.
func (b *bench) ready(ctx context.Context, name string) error {
	for _, s := range b.servers {
		c, err := dial(s)
		if err != nil {
			return err
		}
		_, err = c.until(ctx, name, 20*time.Millisecond, 2*time.Minute)
		c.close()
		if err != nil {
			return fmt.Errorf("%s: %w (its log is in %s)", s.name, err, os.TempDir())
		}
	}
	return nil
}
