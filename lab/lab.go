// Package lab makes hosts out of namespaces on one machine: for the demo, for
// experiments and for tests.
//
// A host is a network, a mount and a UTS namespace with an interface eth0 on
// a network shared by all hosts of the lab (the underlay), an own /run and
// /sys, and changes to /etc, /opt and /var/lib that stay in memory. The hosts
// are plugged into a bridge in a namespace of its own, the switch; the
// machine's own network namespace is never touched. No process keeps a lab
// alive: it lasts from Up to Down, over the end of the program that made it.
package lab

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/link"
)

// Root is where labs are kept, one directory each.
const Root = "/run/flannel-lab"

// MaxHosts is the largest lab.
const MaxHosts = 200

// Interface is the name of every host's interface on the underlay.
const Interface = "eth0"

// Options says what lab to make. The zero value is three hosts named lab.
type Options struct {
	Name  string // "": lab
	Hosts int    // 0: 3
	MTU   int    // of the underlay; 0: 1500
	// Programs is the directory of flanneld, flanneld-bridge and
	// flanneld-ipam. "": that of the running program.
	Programs string
	// Replace takes an existing lab of that name down first.
	Replace bool
}

// Lab is a set of hosts. Its methods may be called concurrently.
type Lab struct {
	Name     string
	MTU      int
	Programs string
	Created  time.Time
	// HostNames are host1, host2, …
	HostNames []string
}

// Errors that callers branch on.
var (
	ErrNoLab  = errors.New("no such lab")
	ErrExists = errors.New("lab exists already")
)

// The underlay: the switch has number 1, host n has number 10+n.
func underlay(number int) []netip.Prefix {
	six := fmt.Sprintf("fd00:77::%d", number)
	return []netip.Prefix{
		netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, 77, byte(number)}), 24),
		netip.PrefixFrom(netip.MustParseAddr(six), 64),
	}
}

// SwitchAddrs are the switch's addresses on the underlay, IPv4 first; they
// are every host's default gateways.
func SwitchAddrs() []netip.Prefix { return underlay(1) }

// Up makes a lab. On error nothing is left of it. ErrExists: there is one of
// that name already.
func Up(ctx context.Context, o Options) (*Lab, error) {
	l, err := o.lab()
	if err != nil {
		return nil, err
	}
	if o.Replace {
		if err := Remove(ctx, l.Name); err != nil {
			return nil, err
		}
	}
	if err := l.claim(); err != nil {
		return nil, err
	}
	if err := l.build(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("make lab %s: %w", l.Name, err), Remove(context.WithoutCancel(ctx), l.Name))
	}
	return l, nil
}

// lab checks the options.
func (o Options) lab() (*Lab, error) {
	l := &Lab{Name: cmp.Or(o.Name, "lab"), MTU: cmp.Or(o.MTU, 1500), Programs: o.Programs, Created: time.Now().UTC()}
	if os.Geteuid() != 0 {
		return nil, errors.New("a lab is made of namespaces: run this as root")
	}
	if err := checkName("lab", l.Name); err != nil {
		return nil, err
	}
	if o.Hosts < 0 || o.Hosts > MaxHosts {
		return nil, fmt.Errorf("a lab of %d hosts: give 1 to %d", o.Hosts, MaxHosts)
	}
	if l.MTU < 1280 || l.MTU > 65535 {
		return nil, fmt.Errorf("an underlay with MTU %d: give 1280 (IPv6 needs it) to 65535", l.MTU)
	}
	if l.Programs == "" {
		exe, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find the running program: %w", err)
		}
		l.Programs = filepath.Dir(exe)
	}
	for n := range cmp.Or(o.Hosts, 3) {
		l.HostNames = append(l.HostNames, "host"+strconv.Itoa(n+1))
	}
	return l, nil
}

// checkName refuses what could not be a directory, a host name or an
// interface's name.
func checkName(what, name string) error {
	if !regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,31}$`).MatchString(name) {
		return fmt.Errorf("%s name %q: use up to 32 lower-case letters, digits, - and _, beginning with a letter or digit", what, name)
	}
	return nil
}

// Open finds a lab that Up made, here or in another process. ErrNoLab: there
// is none, or only the remains of one.
func Open(name string) (*Lab, error) {
	if err := checkName("lab", name); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join(Root, name, "lab.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNoLab, name)
	}
	if err != nil {
		return nil, err
	}
	var l Lab
	if err := json.Unmarshal(b, &l); err != nil {
		return nil, fmt.Errorf("lab %s: %s/lab.json: %w", name, l.dir(), err)
	}
	return &l, nil
}

// List names the labs there are, half-made ones included.
func List() ([]string, error) {
	entries, err := os.ReadDir(Root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

// Down kills every process of the lab and removes all of it.
func (l *Lab) Down(ctx context.Context) error { return Remove(ctx, l.Name) }

// Hosts returns all hosts, without the switch.
func (l *Lab) Hosts() []*Host {
	var hosts []*Host
	for n, name := range l.HostNames {
		hosts = append(hosts, &Host{Name: name, Addrs: underlay(11 + n), lab: l})
	}
	return hosts
}

// Switch returns the host in the middle: the bridge that is the underlay, and
// whatever one wants to run outside of the hosts.
func (l *Lab) Switch() *Host { return &Host{Name: switchName, Addrs: SwitchAddrs(), lab: l} }

// Host finds a host, or the switch, by name.
func (l *Lab) Host(name string) (*Host, error) {
	if name == switchName {
		return l.Switch(), nil
	}
	hosts := l.Hosts()
	if i := slices.IndexFunc(hosts, func(h *Host) bool { return h.Name == name }); i >= 0 {
		return hosts[i], nil
	}
	return nil, fmt.Errorf("lab %s has no host %q: it has %v and switch", l.Name, name, l.HostNames)
}

func (l *Lab) dir() string { return filepath.Join(Root, l.Name) }

const switchName = "switch"

// claim makes the lab's directory: a small file system of its own, on which
// namespaces can be kept.
func (l *Lab) claim() error {
	for range 100 { // somebody else's Down may remove Root in between
		if err := os.MkdirAll(Root, 0o700); err != nil {
			return err
		}
		err := os.Mkdir(l.dir(), 0o700)
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%w: %s (flanneld lab down --name %s removes it)", ErrExists, l.Name, l.Name)
		}
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := unix.Mount("flannel-lab", l.dir(), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=700"); err != nil {
		return errors.Join(fmt.Errorf("mount %s: %w", l.dir(), err), os.Remove(l.dir()))
	}
	if err := unix.Mount("", l.dir(), "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make %s private: %w", l.dir(), err)
	}
	return nil
}

// build makes switch, hosts and wires, and last the file that says it is
// complete.
func (l *Lab) build(ctx context.Context) error {
	sw := l.Switch()
	if err := sw.build(); err != nil {
		return err
	}
	w, err := link.OpenWiringAt(sw.netnsFile())
	if err != nil {
		return err
	}
	defer w.Close()
	mac := net.HardwareAddr{0x02, 0x77, 0, 0, 0, 1}
	if err := w.Switch(Interface, mac, l.MTU); err != nil {
		return err
	}
	for _, a := range sw.Addrs {
		if err := w.AddAddress(Interface, a); err != nil {
			return err
		}
	}
	for _, host := range l.Hosts() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := host.build(); err != nil {
			return err
		}
		wire := link.Wire{Name: host.Name, Bridge: Interface, MTU: l.MTU, PeerNetNS: host.netnsFile(), PeerName: Interface}
		if err := w.Wire(wire); err != nil {
			return err
		}
		if err := host.address(); err != nil {
			return err
		}
	}
	b, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(l.dir(), "lab.json"), b, 0o600)
}
