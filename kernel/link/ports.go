package link

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/flanneld/flanneld/kernel/nlbatch"
	"golang.org/x/sys/unix"
)

var native = binary.NativeEndian

// Ports plugs containers into bridges. It works in the network namespace that
// it was opened in, through one socket, with as few system calls as the
// kernel allows; a short-lived process is its user. It is not safe for
// concurrent use.
type Ports struct {
	c *nlbatch.Conn
	b nlbatch.Batch
}

// OpenPorts opens a socket in the calling thread's network namespace.
func OpenPorts() (*Ports, error) {
	c, err := nlbatch.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	return &Ports{c: c}, nil
}

// Close frees the socket.
func (p *Ports) Close() error { return p.c.Close() }

// Port is a link as the kernel describes it.
type Port struct {
	Index, Master int // Master is 0 for a link that is no port
	Name, Kind    string
	Alias         string
	MTU           int
	MAC           net.HardwareAddr
	Up            bool // administratively
	Running       bool // carrier too
	Operational   bool // and the kernel has acted on it: packets pass
	Promisc       bool
	// As a port of a bridge.
	Hairpin, Isolated bool
	// Peer is the index of a veth's other end, in that end's namespace.
	Peer int
}

// ErrNoLink says that there is no link of that name.
var ErrNoLink = errors.New("no such link")

// Port describes one link. It fails with ErrNoLink if there is none.
func (p *Ports) Port(name string) (Port, error) {
	p.b.Reset()
	p.b.Message(unix.RTM_GETLINK, 0, make([]byte, unix.SizeofIfInfomsg))
	p.b.String(unix.IFLA_IFNAME, name)
	p.b.Uint32(unix.IFLA_EXT_MASK, 1<<3) // RTEXT_FILTER_SKIP_STATS
	return p.port(name)
}

// port asks what was prepared about one link.
func (p *Ports) port(name string) (Port, error) {
	for m, err := range p.c.Get(&p.b) {
		if errors.Is(err, unix.ENODEV) {
			return Port{}, fmt.Errorf("link %s: %w", name, ErrNoLink)
		}
		if err != nil {
			return Port{}, fmt.Errorf("look up link %s: %w", name, err)
		}
		return parsePort(m)
	}
	return Port{}, fmt.Errorf("look up link %s: no answer", name)
}

// On lists the ports of a bridge.
func (p *Ports) On(bridge int) ([]Port, error) {
	ports, err := p.list(func() { p.b.Uint32(unix.IFLA_MASTER, uint32(bridge)) })
	if err != nil {
		return nil, fmt.Errorf("list bridge ports: %w", err)
	}
	return slices.DeleteFunc(ports, func(port Port) bool { return port.Master != bridge }), nil
}

// OfKind lists all links of a kind: "veth", "bridge", ….
func (p *Ports) OfKind(kind string) ([]Port, error) {
	ports, err := p.list(func() {
		p.b.Nest(unix.IFLA_LINKINFO, func() { p.b.String(unix.IFLA_INFO_KIND, kind) })
	})
	if err != nil {
		return nil, fmt.Errorf("list %s links: %w", kind, err)
	}
	return slices.DeleteFunc(ports, func(port Port) bool { return port.Kind != kind }), nil
}

// list dumps links; the kernel may know what is asked for and leave out the
// others.
func (p *Ports) list(filter func()) ([]Port, error) {
	p.b.Reset()
	p.b.Message(unix.RTM_GETLINK, unix.NLM_F_DUMP, make([]byte, unix.SizeofIfInfomsg))
	filter()
	p.b.Uint32(unix.IFLA_EXT_MASK, 1<<3)
	var ports []Port
	for m, err := range p.c.Get(&p.b) {
		if err != nil {
			return nil, err
		}
		port, err := parsePort(m)
		if err != nil {
			return nil, err
		}
		ports = append(ports, port)
	}
	return ports, nil
}

// Delete removes a link and returns when it is gone; nil if it was gone.
func (p *Ports) Delete(name string) error {
	p.b.Reset()
	p.b.Message(unix.RTM_DELLINK, 0, make([]byte, unix.SizeofIfInfomsg))
	p.b.String(unix.IFLA_IFNAME, name)
	err := p.do()
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("delete link %s: %w", name, err)
	}
	return nil
}

// Down takes a link down; nil if it is gone.
func (p *Ports) Down(name string) error {
	p.b.Reset()
	p.b.Message(unix.RTM_NEWLINK, 0, linkMessage(0, 0, unix.IFF_UP))
	p.b.String(unix.IFLA_IFNAME, name)
	err := p.do()
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("take down link %s: %w", name, err)
	}
	return nil
}

// Addresses lists the addresses of one link with their prefix lengths.
func (p *Ports) Addresses(index int) ([]netip.Prefix, error) {
	all, err := p.addresses(unix.AF_UNSPEC, index)
	var out []netip.Prefix
	for _, h := range all {
		out = append(out, h.Address)
	}
	return out, err
}

// addresses lists those of one link, or of all if index is 0.
func (p *Ports) addresses(family uint8, index int) ([]Holder, error) {
	p.b.Reset()
	p.b.Message(unix.RTM_GETADDR, unix.NLM_F_DUMP, addrMessage(family, 0, 0, index))
	var out []Holder
	for m, err := range p.c.Get(&p.b) {
		if errors.Is(err, unix.ENODEV) {
			return nil, ErrNoLink
		}
		if err != nil {
			return nil, fmt.Errorf("list addresses: %w", err)
		}
		if len(m) < unix.SizeofIfAddrmsg {
			continue
		}
		at := int(native.Uint32(m[4:]))
		if index != 0 && at != index {
			continue
		}
		var local, address netip.Addr
		for kind, data := range nlbatch.Attrs(m[unix.SizeofIfAddrmsg:]) {
			switch kind {
			case unix.IFA_LOCAL:
				local, _ = netip.AddrFromSlice(data)
			case unix.IFA_ADDRESS:
				address, _ = netip.AddrFromSlice(data)
			}
		}
		if !local.IsValid() {
			local = address
		}
		out = append(out, Holder{at, netip.PrefixFrom(local, int(m[1]))})
	}
	return out, nil
}

// do sends the batch and joins the refusals.
func (p *Ports) do() error {
	out, err := p.c.Do(&p.b)
	if err != nil {
		return err
	}
	return errors.Join(out...)
}

// linkMessage is a struct ifinfomsg.
func linkMessage(index int, flags, change uint32) []byte {
	m := make([]byte, unix.SizeofIfInfomsg)
	native.PutUint32(m[4:], uint32(index))
	native.PutUint32(m[8:], flags)
	native.PutUint32(m[12:], change)
	return m
}

// addrMessage is a struct ifaddrmsg.
func addrMessage(family uint8, bits int, flags uint8, index int) []byte {
	m := []byte{family, uint8(bits), flags, 0, 0, 0, 0, 0}
	native.PutUint32(m[4:], uint32(index))
	return m
}

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func parsePort(m []byte) (Port, error) {
	if len(m) < unix.SizeofIfInfomsg {
		return Port{}, fmt.Errorf("look up link: answer of %d bytes", len(m))
	}
	flags := native.Uint32(m[8:])
	p := Port{
		Index: int(native.Uint32(m[4:])), Up: flags&unix.IFF_UP != 0,
		Running: flags&unix.IFF_LOWER_UP != 0, Promisc: flags&unix.IFF_PROMISC != 0,
	}
	for kind, data := range nlbatch.Attrs(m[unix.SizeofIfInfomsg:]) {
		switch kind {
		case unix.IFLA_IFNAME:
			p.Name = text(data)
		case unix.IFLA_IFALIAS:
			p.Alias = text(data)
		case unix.IFLA_ADDRESS:
			p.MAC = slices.Clone(data)
		case unix.IFLA_MTU:
			p.MTU = number(data)
		case unix.IFLA_OPERSTATE:
			const up = 6 // IF_OPER_UP
			p.Operational = len(data) > 0 && data[0] == up
		case unix.IFLA_MASTER:
			p.Master = number(data)
		case unix.IFLA_LINK:
			p.Peer = number(data)
		case unix.IFLA_LINKINFO:
			p.parseInfo(data)
		}
	}
	return p, nil
}

func (p *Port) parseInfo(info []byte) {
	for kind, data := range nlbatch.Attrs(info) {
		switch kind {
		case unix.IFLA_INFO_KIND:
			p.Kind = text(data)
		case unix.IFLA_INFO_SLAVE_DATA:
			for kind, data := range nlbatch.Attrs(data) {
				on := len(data) > 0 && data[0] != 0
				switch kind {
				case unix.IFLA_BRPORT_MODE:
					p.Hairpin = on
				case unix.IFLA_BRPORT_ISOLATED:
					p.Isolated = on
				}
			}
		}
	}
}

func text(b []byte) string { return string(bytes.TrimRight(b, "\x00")) }

func number(b []byte) int {
	if len(b) < 4 {
		return 0
	}
	return int(native.Uint32(b))
}
