package storetest

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// Proxy is a TCP proxy on loopback that can fail like a network: connections
// through it fall silent without being closed, or are slow.
type Proxy struct {
	Addr string // host:port

	target string
	delay  time.Duration
	listen net.Listener

	mu    sync.Mutex // guards all below
	pairs map[*pair]bool
	mute  bool // new connections fall silent too
}

// pair is one connection and its other half.
type pair struct {
	client, server net.Conn
	silent         chan struct{} // closed: nothing passes any more
	once           sync.Once
}

// NewProxy makes a proxy to host:port that delays every packet, in each
// direction, by half of roundTrip. It ends with the test.
func NewProxy(t testing.TB, target string, roundTrip time.Duration) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{Addr: l.Addr().String(), target: target, delay: roundTrip / 2, listen: l, pairs: map[*pair]bool{}}
	var g sync.WaitGroup
	g.Go(func() { p.accept(&g) })
	t.Cleanup(func() {
		l.Close()
		p.mu.Lock()
		for c := range p.pairs {
			c.close()
		}
		p.mu.Unlock()
		g.Wait()
	})
	return p
}

// Cut makes every established connection silent for ever: neither data nor
// its end passes. New connections work.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.pairs {
		c.once.Do(func() { close(c.silent) })
	}
}

// Mute is Cut for the new connections too, until it is called with false.
func (p *Proxy) Mute(mute bool) {
	p.mu.Lock()
	p.mute = mute
	p.mu.Unlock()
	if mute {
		p.Cut()
	}
}

func (p *Proxy) accept(g *sync.WaitGroup) {
	for {
		client, err := p.listen.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.target)
		if err != nil {
			client.Close()
			continue
		}
		c := &pair{client: client, server: server, silent: make(chan struct{})}
		p.mu.Lock()
		if p.mute {
			c.once.Do(func() { close(c.silent) })
		}
		p.pairs[c] = true
		p.mu.Unlock()
		g.Go(func() { p.forward(c, client, server) })
		g.Go(func() { p.forward(c, server, client) })
	}
}

func (c *pair) close() {
	c.once.Do(func() { close(c.silent) })
	c.client.Close()
	c.server.Close()
}

// chunk is data on its way.
type chunk struct {
	data []byte
	due  time.Time
}

// forward copies one direction; a silent pair swallows everything and keeps
// both ends open until the test ends.
func (p *Proxy) forward(c *pair, from, to net.Conn) {
	line := make(chan chunk, 1024)
	var g sync.WaitGroup
	g.Go(func() {
		for k := range line {
			time.Sleep(time.Until(k.due))
			select {
			case <-c.silent:
				continue
			default:
			}
			if _, err := to.Write(k.data); err != nil {
				from.Close()
			}
		}
	})
	for {
		b := make([]byte, 32<<10)
		n, err := from.Read(b)
		if n > 0 {
			line <- chunk{b[:n], time.Now().Add(p.delay)}
		}
		if err != nil {
			break
		}
	}
	close(line)
	g.Wait()
	select {
	case <-c.silent:
	default:
		if t, ok := to.(*net.TCPConn); ok {
			_ = t.CloseWrite() // may be closed
		}
	}
	_, _ = io.Copy(io.Discard, from) // until the other side is done too
}
