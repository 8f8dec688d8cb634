// Package host sets a host up to carry a pod network: forwarding, reverse-path
// filtering, bridges that hand their packets to the packet filter, and network
// managers that keep their hands off our devices. It says everything that it
// changed.
//
// Everything is read and written as files below /proc, /sys and /run, in the
// network and mount namespace of the calling thread.
package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Options say what the host must be ready for. The whole of it is given each
// time.
type Options struct {
	// Root is prepended to every path; "": the real root.
	Root string
	// IPv4 and IPv6 tell which families are forwarded.
	IPv4, IPv6 bool
	// Underlay is the link that leads to the other hosts.
	Underlay string
	// Tunnels and Bridges are links of ours. One that does not exist (yet) is
	// passed over, and set up by the next Check.
	Tunnels, Bridges []string
	// Localnet are links that packets from and to 127.0.0.0/8 may pass (IPv4):
	// what this host sends to a node port of 127.0.0.1 leaves it on them. While
	// there are any, the packet filter must drop what others send to 127.0.0.0/8
	// on every link but lo. What was switched on is taken back from Tunnels,
	// Bridges and Underlay when they are not in the list; nil: it is not known
	// yet which are to be, and all stays.
	Localnet []string
	// Patterns name more links that network managers must leave alone, in
	// their own notation ("veth-fl*"). Tunnels and Bridges are included.
	Patterns []string
}

// Setup makes the host ready: whole state, idempotent. It returns what it
// changed, one line each ("net.ipv4.ip_forward 0 → 1"), also beside an error:
// what could be set is set. It runs a program only to load a module that is
// missing or to tell a network manager about a file that is new.
func Setup(ctx context.Context, o Options) (changes []string, err error) {
	s := setup{o: o}
	s.modules(ctx)
	s.check()
	s.files(ctx, true)
	return s.finish()
}

// Check is Setup without modules and programs: cheap enough for every few
// seconds.
func Check(ctx context.Context, o Options) (changes []string, err error) {
	s := setup{o: o}
	s.check()
	s.files(ctx, false)
	return s.finish()
}

// setup is one run.
type setup struct {
	o       Options
	changes []change
	errs    []error
}

func (s *setup) path(p string) string { return filepath.Join("/", s.o.Root, p) }

func (s *setup) fail(err error) {
	if err != nil {
		s.errs = append(s.errs, err)
	}
}

func (s *setup) check() {
	if s.o.IPv6 {
		s.advertisements()
	}
	if s.o.IPv4 {
		s.sysctl("net/ipv4/ip_forward", "1", "0")
	}
	if s.o.IPv6 {
		s.sysctl("net/ipv6/conf/all/forwarding", "1", "0")
	}
	for _, link := range s.o.Tunnels {
		s.looseReversePath(link)
	}
	for _, link := range append(append([]string{}, s.o.Tunnels...), s.o.Bridges...) {
		if s.o.IPv6 { // nothing that a container advertises is for the host
			s.sysctl("net/ipv6/conf/"+link+"/accept_ra", "0", "1", "2")
		}
	}
	for _, br := range s.o.Bridges {
		s.bridgeFilter(br)
	}
	s.localnet()
}

// localnet is the one setting that is also taken back: with it, and without
// the packet filter, the servers that this host keeps to itself would be
// everybody's.
func (s *setup) localnet() {
	if s.o.IPv4 {
		for _, link := range s.o.Localnet {
			s.sysctl(localnetPath(link), "1", "0")
		}
	}
	if s.o.Localnet == nil {
		return
	}
	for _, link := range slices.Concat(s.o.Tunnels, s.o.Bridges, []string{s.o.Underlay}) {
		if link == "" || s.o.IPv4 && slices.Contains(s.o.Localnet, link) {
			continue
		}
		path := localnetPath(link)
		if v, err := s.read("proc/sys/" + path); err != nil || v != "1" {
			continue
		}
		have, err := load(s.path(recordPath))
		s.fail(err)
		if slices.ContainsFunc(have, func(c change) bool { return c.Name == sysctlName(path) && c.Was == "0" }) {
			s.sysctl(path, "0", "1")
		}
	}
}

func localnetPath(link string) string { return "net/ipv4/conf/" + link + "/route_localnet" }

// advertisements keeps router advertisements working where the host lives on
// them: a host that forwards ignores them unless accept_ra is 2. It comes
// before forwarding is switched on.
func (s *setup) advertisements() {
	if v, _ := s.read("proc/sys/net/ipv6/conf/all/forwarding"); v != "0" {
		return // they are ignored already, or there is no IPv6
	}
	for _, link := range append(s.advertised(), s.o.Underlay) {
		if link != "" {
			s.sysctl("net/ipv6/conf/"+link+"/accept_ra", "2", "1")
		}
	}
}

// advertised returns the links that have a default route from a router
// advertisement.
func (s *setup) advertised() []string {
	text, err := s.read("proc/net/ipv6_route")
	if err != nil {
		return nil
	}
	return advertisedLinks(text)
}

// looseReversePath makes the tunnel accept what comes in by another way than
// it would go out; the kernel takes the larger of the two settings. Inner
// sources are checked by the packet filter.
func (s *setup) looseReversePath(link string) {
	all, err := s.read("proc/sys/net/ipv4/conf/all/rp_filter")
	if err != nil || all != "1" {
		s.sysctl("net/ipv4/conf/"+link+"/rp_filter", "2", "1")
		return
	}
	s.sysctl("net/ipv4/conf/"+link+"/rp_filter", "2", "0", "1")
}

// bridgeFilter makes a bridge hand bridged packets to the packet filter:
// without it an answer from the same bridge does not find back through a
// virtual IP.
func (s *setup) bridgeFilter(br string) {
	families := map[string]bool{"nf_call_iptables": s.o.IPv4, "nf_call_ip6tables": s.o.IPv6}
	for _, name := range []string{"nf_call_iptables", "nf_call_ip6tables"} {
		if families[name] {
			s.set("sys/class/net/"+br+"/bridge/"+name, br+" "+name, "1", "0")
		}
	}
}

// sysctl sets a value below /proc/sys if it is one of those in from.
func (s *setup) sysctl(name, to string, from ...string) {
	s.set("proc/sys/"+name, sysctlName(name), to, from...)
}

// set writes a setting if it has one of the values in from. A setting that
// is not there belongs to a link or a family that is not there.
func (s *setup) set(path, name, to string, from ...string) {
	have, err := s.read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		s.fail(fmt.Errorf("read %s: %w", name, err))
		return
	}
	for _, f := range from {
		if have != f {
			continue
		}
		if err := os.WriteFile(s.path(path), []byte(to), 0o644); err != nil {
			s.fail(fmt.Errorf("%s is %s and must be %s, but cannot be set from here (set it on the host): %w", name, have, to, err))
			return
		}
		s.changes = append(s.changes, change{Name: name, Was: have, Is: to})
	}
}

// read reads a file below /proc or /sys. These can be polled, and os.Open
// would have the runtime's poller watch each of them: on an idle host that
// wakes another thread for every one.
func (s *setup) read(path string) (string, error) {
	path = s.path(path)
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	b, err := io.ReadAll(f)
	return strings.TrimSpace(string(b)), err
}

// finish remembers the changes and reports them.
func (s *setup) finish() ([]string, error) {
	var out []string
	for _, c := range s.changes {
		out = append(out, c.String())
	}
	if len(s.changes) > 0 {
		s.fail(remember(s.path(recordPath), s.changes))
	}
	return out, errors.Join(s.errs...)
}

// sysctlName is the name that sysctl(8) takes: dots and slashes are swapped,
// so that a link with a dot in its name stays one word.
func sysctlName(path string) string {
	return strings.Map(func(r rune) rune {
		switch r {
		case '/':
			return '.'
		case '.':
			return '/'
		}
		return r
	}, path)
}

// advertisedLinks returns the links of the default routes in the text of
// /proc/net/ipv6_route that came from a router advertisement.
func advertisedLinks(text string) []string {
	const rtfDefault, rtfAddrconf = 0x00010000, 0x00040000
	var out []string
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 10 {
			continue
		}
		var flags uint32
		if _, err := fmt.Sscanf(f[8], "%x", &flags); err == nil && flags&rtfDefault != 0 && flags&rtfAddrconf != 0 {
			out = append(out, f[9])
		}
	}
	return out
}
