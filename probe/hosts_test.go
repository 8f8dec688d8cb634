package probe

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/netns/netnstest"
)

// childEnv makes this test binary a Prober: states come in on standard input,
// one JSON object each, results go out.
const childEnv = "FLANNELD_TEST_PROBER"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) == "" {
		os.Exit(m.Run())
	}
	if err := child(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// said is a line of a child.
type said struct {
	Result *Result `json:",omitempty"`
	Port   uint16  `json:",omitempty"`
	Err    string  `json:",omitempty"`
}

// child runs until standard input ends.
func child() error {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	states := make(chan State)
	enc := json.NewEncoder(os.Stdout)
	p := New(Options{
		Result: func(r Result) { enc.Encode(said{Result: &r}) },
		Listening: func(port uint16, err error) {
			s := said{Port: port}
			if err != nil {
				s.Err = err.Error()
			}
			enc.Encode(s)
		},
	})
	go func() {
		defer stop()
		for dec := json.NewDecoder(os.Stdin); ; {
			var s State
			if dec.Decode(&s) != nil {
				return
			}
			states <- s
		}
	}()
	return p.Run(ctx, states)
}

// host is a namespace with a VXLAN device and a prober in it.
type host struct {
	t      *testing.T
	number int
	ns     *netns.NS
	stdin  io.WriteCloser
	pid    int

	mu   sync.Mutex
	last map[string]Result
	port uint16
}

// world is two hosts, 1 and 2, and a router between them.
type world struct {
	t      *testing.T
	router *netns.NS
	hosts  [2]*host
}

func ip(t *testing.T, ns *netns.NS, args string) {
	t.Helper()
	netnstest.Run(t, ns, "ip", strings.Fields(args)...)
}

// newWorld lays the cables. fams: "4", "6" or "46" is what the tunnel is of,
// inside and outside.
func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, router: netnstest.New(t)}
	netnstest.Run(t, w.router, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	for i := range w.hosts {
		n := i + 1
		h := &host{t: t, number: n, ns: netnstest.New(t), last: map[string]Result{}}
		w.hosts[i] = h
		netnstest.Run(t, h.ns, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
		ip(t, w.router, fmt.Sprintf("link add r%d type veth peer name eth0 netns %s", n, h.ns.Path()))
		ip(t, w.router, fmt.Sprintf("link set r%d up", n))
		ip(t, h.ns, "link set eth0 up")
		ip(t, w.router, fmt.Sprintf("addr add 192.168.7%d.254/24 dev r%d", n, n))
		ip(t, w.router, fmt.Sprintf("addr add fd7%d::fe/64 dev r%d nodad", n, n))
		ip(t, h.ns, fmt.Sprintf("addr add %s/24 dev eth0", h.public(0)))
		ip(t, h.ns, fmt.Sprintf("addr add %s/64 dev eth0 nodad", h.public(1)))
		ip(t, h.ns, fmt.Sprintf("route add default via 192.168.7%d.254", n))
		ip(t, h.ns, fmt.Sprintf("route add default via fd7%d::fe", n))
		for f, dev := range h.devices() {
			ip(t, h.ns, fmt.Sprintf("link add %s mtu %d type vxlan id 1 local %s dev eth0 dstport 8472 nolearning %s", dev, mtu, h.public(f), [2]string{"noudpcsum", ""}[f]))
			ip(t, h.ns, fmt.Sprintf("link set %s address %s", dev, h.hw(f)))
			ip(t, h.ns, fmt.Sprintf("link set %s up", dev))
			ip(t, h.ns, fmt.Sprintf("addr add %s dev %s nodad", h.own(f), dev))
		}
	}
	w.connect(0, 1)
	w.connect(1, 0)
	return w
}

const mtu = 1430

func (h *host) devices() [2]string { return [2]string{"flannel.1", "flannel-v6.1"} }

func (h *host) hw(family int) string { return fmt.Sprintf("02:00:00:00:0%d:0%d", family, h.number) }

func (h *host) public(family int) netip.Addr {
	return netip.MustParseAddr([2]string{fmt.Sprintf("192.168.7%d.2", h.number), fmt.Sprintf("fd7%d::2", h.number)}[family])
}

func (h *host) own(family int) netip.Addr {
	return netip.MustParseAddr([2]string{fmt.Sprintf("10.1.%d.0", h.number), fmt.Sprintf("fd00:1:%d::", h.number)}[family])
}

// connect tells one host of the other.
func (w *world) connect(a, b int) {
	from, to := w.hosts[a], w.hosts[b]
	for f, dev := range from.devices() {
		bits := [2]int{24, 64}[f]
		ip(w.t, from.ns, fmt.Sprintf("route add %s/%d via %s dev %s onlink", to.own(f), bits, to.own(f), dev))
		ip(w.t, from.ns, fmt.Sprintf("neigh add %s lladdr %s dev %s", to.own(f), to.hw(f), dev))
		netnstest.Run(w.t, from.ns, "bridge", "fdb", "add", to.hw(f), "dst", to.public(f).String(), "dev", dev)
	}
}

// state is what host i is told when it has the other as a peer.
func (w *world) state(i int) State {
	h, o := w.hosts[i], w.hosts[1-i]
	s := State{MTU: mtu, Overhead: 70, Tunnel: Tunnel{Name: "VXLAN", Protocol: 17, Ports: []uint16{8472}}}
	p := &Peer{Key: fmt.Sprintf("10.1.%d.0-24", o.number), Name: fmt.Sprintf("host%d", o.number), Service: Port}
	s.Underlay.Link = "eth0"
	for f := range 2 {
		s.Own = append(s.Own, h.own(f))
		s.Underlay.Addrs = append(s.Underlay.Addrs, h.public(f))
		p.Addrs = append(p.Addrs, o.own(f))
		p.Public = append(p.Public, o.public(f))
	}
	s.Peers = []*Peer{p}
	return s
}

// start runs a prober in the host.
func (h *host) start() {
	h.t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	if err := h.ns.Start(cmd); err != nil {
		h.t.Fatal(err)
	}
	h.stdin, h.pid = in, cmd.Process.Pid
	read := make(chan struct{})
	go func() {
		defer close(read)
		for sc := bufio.NewScanner(out); sc.Scan(); {
			var s said
			if err := json.Unmarshal(sc.Bytes(), &s); err != nil {
				h.t.Error(err)
			}
			h.mu.Lock()
			if s.Result != nil {
				h.last[s.Result.Key] = *s.Result
			} else {
				h.port = s.Port
			}
			h.mu.Unlock()
		}
	}()
	h.t.Cleanup(func() {
		in.Close()
		<-read
		if err := cmd.Wait(); err != nil {
			h.t.Error(err)
		}
	})
}

func (h *host) tell(s State) {
	h.t.Helper()
	if err := json.NewEncoder(h.stdin).Encode(s); err != nil {
		h.t.Fatal(err)
	}
}

// forget forgets what was told so far.
func (h *host) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.last)
}

// until waits until what is known of the only peer is as wanted.
func (h *host) until(limit time.Duration, what string, ok func(Result) bool) Result {
	h.t.Helper()
	start := time.Now()
	for {
		h.mu.Lock()
		var r Result
		for _, r = range h.last {
		}
		h.mu.Unlock()
		if len(r.Paths) > 0 && ok(r) {
			h.t.Logf("host%d: %s after %v: %+v", h.number, what, time.Since(start).Round(time.Millisecond), r)
			return r
		}
		if time.Since(start) > limit {
			h.t.Fatalf("host%d: not %s within %v: %+v", h.number, what, limit, r)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// all makes a check of both families.
func all(v Verdict) func(Result) bool {
	return func(r Result) bool {
		for _, p := range r.Paths {
			if p.Verdict != v {
				return false
			}
		}
		return true
	}
}
