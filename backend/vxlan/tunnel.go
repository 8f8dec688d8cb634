package vxlan

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/subnet"
	"golang.org/x/sys/unix"
)

// tunnel is one family's device, and who has what on it.
type tunnel struct {
	at       int // in Device.tunnels and peer.sides
	rng      subnet.Range
	name     string
	spec     link.Vxlan
	mac      link.MAC
	mtu      int   // of a packet inside
	addrBits int   // 32 or 128
	index    int   // 0: there is no device yet
	err      error // why the device cannot be used now

	// Who serves a subnet, by its network address, and a MAC. Each belongs to
	// one peer at most.
	subnets map[netip.Addr]*peer
	macs    map[link.MAC]*peer
}

func (t *tunnel) v4() bool { return t.addrBits == 32 }

func (t *tunnel) reset() {
	t.subnets, t.macs = map[netip.Addr]*peer{}, map[link.MAC]*peer{}
}

// ensure makes every device be as it must, as far as it is known: before the
// lease it has no address. One that cannot be used does not stop the other.
func (d *Device) ensure() error {
	// Whoever made the underlay's interface again gave it another index.
	u, err := d.h.LinkByName(d.underlay.Link)
	if err != nil {
		err = fmt.Errorf("underlay: %w: name another with --iface", err)
		for _, t := range d.tunnels {
			t.err = err
		}
		return err
	}
	d.underlay.Index = u.Index
	var errs []error
	for _, t := range d.tunnels {
		t.spec.Link = u.Index
		t.err = t.device(d.h)
		if t.err == nil {
			t.err = t.address(d.h, d.own)
		}
		errs = append(errs, t.err)
	}
	return errors.Join(errs...)
}

// device adopts, repairs, replaces or makes the device, and switches it on.
// Where a device is adopted for the first time its MAC is kept: peers know it.
func (t *tunnel) device(h *link.Handle) error {
	l, err := h.LinkByName(t.name)
	switch {
	case err == nil && !t.fits(&l):
		if err := h.DeleteLink(l.Index); err != nil {
			return err
		}
		l, err = t.make(h)
	case err == nil && t.index == 0 && l.MAC.IsUnicast():
		t.mac = l.MAC
	case errors.Is(err, link.ErrNoLink):
		l, err = t.make(h)
	}
	if err != nil {
		return err
	}
	t.index = l.Index
	before := h.Writes()
	if err := t.adjust(h, &l); err != nil {
		return fmt.Errorf("set up %s: %w", t.name, err)
	}
	if h.Writes() != before { // a monitor compares with what was read last
		_, err = h.LinkByIndex(l.Index)
	}
	return err
}

// fits reports whether a device that is there can be used.
func (t *tunnel) fits(l *link.Link) bool { return l.Vxlan != nil && *l.Vxlan == t.spec }

// make makes the device. What is in its way and is ours is removed.
func (t *tunnel) make(h *link.Handle) (link.Link, error) {
	err := h.AddVxlan(t.name, t.mac, t.mtu, t.spec)
	if errors.Is(err, unix.EEXIST) {
		if err = t.clear(h); err == nil {
			err = h.AddVxlan(t.name, t.mac, t.mtu, t.spec)
		}
	}
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return link.Link{}, fmt.Errorf("%w: the kernel has no VXLAN (CONFIG_VXLAN, module vxlan)", err)
	case errors.Is(err, unix.EEXIST):
		return link.Link{}, fmt.Errorf("%w: VNI %d on port %d is taken, perhaps by a device of this host in another network namespace: set another VNI or Port in the configuration's Backend", err, t.spec.VNI, t.spec.Port)
	case err != nil:
		return link.Link{}, err
	}
	return h.LinkByName(t.name)
}

// clear deletes the device that holds our VNI and port if it is of ours, by
// its name or because it is the very one that somebody gave another, else says
// whose it is.
func (t *tunnel) clear(h *link.Handle) error {
	all, err := h.Links("vxlan")
	if err != nil {
		return err
	}
	for _, l := range all {
		switch {
		case l.Vxlan == nil || l.Vxlan.VNI != t.spec.VNI || l.Vxlan.Port != t.spec.Port || l.Vxlan.Local.Is6() == t.v4():
		case ours.MatchString(l.Name), t.fits(&l) && l.MAC == t.mac:
			if err := h.DeleteLink(l.Index); err != nil {
				return err
			}
		default:
			return fmt.Errorf("VXLAN device %s has VNI %d on port %d already: delete it (ip link del %s) or set another VNI or Port in the configuration's Backend",
				l.Name, t.spec.VNI, t.spec.Port, l.Name)
		}
	}
	return nil
}

// The sysctl arp_ignore: 8 answers nobody and learns from nobody. Neighbours
// are set by us alone.
const ignoreARP = 8

// adjust changes in place what is not as it must be.
func (t *tunnel) adjust(h *link.Handle, l *link.Link) error {
	if l.MAC != t.mac {
		if err := h.SetMAC(l.Index, t.mac); err != nil {
			return err
		}
	}
	if l.MTU != t.mtu {
		if err := h.SetMTU(l.Index, t.mtu); err != nil {
			return err
		}
	}
	want := l.Conf
	want.ARPIgnore, want.AddrGenMode = ignoreARP, link.AddrGenNone
	all, err := h.Sysctl("net", "ipv4", "conf", "all", "rp_filter")
	if err != nil {
		return err
	}
	// Strict filtering would drop what a peer sends through the tunnel while
	// the way back bypasses it. The greater of the two counts.
	if want.RPFilter == 1 || want.RPFilter == 0 && all == "1" {
		want.RPFilter = 2
	}
	if !l.Conf.IPv6 {
		want.AddrGenMode = l.Conf.AddrGenMode
	}
	if want != l.Conf {
		if err := h.SetConf(l.Index, want); err != nil {
			return err
		}
	}
	if l.Conf.IPv6 && l.Conf.DisableIPv6 && !t.v4() { // by the host's default for new interfaces
		if err := h.SetSysctl("0", "net", "ipv6", "conf", t.name, "disable_ipv6"); err != nil {
			return err
		}
	}
	if l.Conf.IPv6 && l.Conf.AcceptRA != 0 {
		if err := h.SetSysctl("0", "net", "ipv6", "conf", t.name, "accept_ra"); err != nil {
			return err
		}
	}
	if !l.Up {
		return h.SetUp(l.Index)
	}
	return nil
}

// address gives the device its one address: that of the host's subnet itself,
// which host processes use as source.
func (t *tunnel) address(h *link.Handle, own []netip.Prefix) error {
	var want netip.Prefix
	for _, s := range own {
		if s.Addr().Is4() == t.v4() {
			want = netip.PrefixFrom(s.Addr(), t.addrBits)
		}
	}
	if !want.IsValid() {
		return nil
	}
	have, err := h.Addresses(t.index)
	if err != nil {
		return err
	}
	found := false
	for _, a := range have {
		found = found || a.Prefix == want
	}
	if !found { // before others go: the last one takes the routes with it
		if err := h.AddAddress(t.index, want); err != nil {
			return err
		}
	}
	for _, a := range have {
		ip := a.Prefix.Addr()
		if a.Prefix != want && ip.Is4() == t.v4() && !ip.IsLinkLocalUnicast() {
			if err := h.DelAddress(t.index, a.Prefix); err != nil {
				return err
			}
		}
	}
	return nil
}
