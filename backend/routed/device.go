package routed

import (
	"fmt"
	"net/netip"

	"github.com/flanneld/flanneld/kernel/link"
)

// The sysctl arp_ignore: 8 answers nobody and learns from nobody. Neighbours
// are set by us alone.
const ignoreARP = 8

// SetUp makes l, the tunnel's device from now on, have what every device of a
// tunnel must: its MTU, its settings, its address, and be on.
func (t *Tunnel) SetUp(h *link.Handle, l link.Link) error {
	t.Index = l.Index
	before := h.Writes()
	err := t.adjust(h, &l)
	if err == nil {
		err = t.address(h)
	}
	if err != nil {
		return fmt.Errorf("set up %s: %w", t.Name, err)
	}
	if h.Writes() != before { // a monitor compares with what was read last
		_, err = h.LinkByIndex(l.Index)
	}
	return err
}

// adjust changes in place what is not as it must be.
func (t *Tunnel) adjust(h *link.Handle, l *link.Link) error {
	if l.MTU > t.MTU || l.MTU < t.MTU && !t.Shared {
		if err := h.SetMTU(l.Index, t.MTU); err != nil {
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
	if l.Conf.IPv6 && l.Conf.DisableIPv6 && !t.Is4() { // by the host's default for new interfaces
		if err := h.SetSysctl("0", "net", "ipv6", "conf", t.Name, "disable_ipv6"); err != nil {
			return err
		}
	}
	if l.Conf.IPv6 && l.Conf.AcceptRA != 0 {
		if err := h.SetSysctl("0", "net", "ipv6", "conf", t.Name, "accept_ra"); err != nil {
			return err
		}
	}
	if !l.Up {
		return h.SetUp(l.Index)
	}
	return nil
}

// address gives the device its one address: that of the host's subnet itself,
// which host processes use as source. Before the lease it leaves it alone.
func (t *Tunnel) address(h *link.Handle) error {
	if !t.Own.IsValid() {
		return nil
	}
	want := netip.PrefixFrom(t.Own.Addr(), t.Own.Addr().BitLen())
	have, err := h.Addresses(t.Index)
	if err != nil {
		return err
	}
	found := false
	for _, a := range have {
		found = found || a.Prefix == want
	}
	if !found { // before others go: the last one takes the routes with it
		if err := h.AddAddress(t.Index, want); err != nil {
			return err
		}
	}
	for _, a := range have {
		ip := a.Prefix.Addr()
		theirs := t.Shared && !t.Range.Network.Contains(ip)
		if a.Prefix != want && ip.Is4() == t.Is4() && !ip.IsLinkLocalUnicast() && !theirs {
			if err := h.DelAddress(t.Index, a.Prefix); err != nil {
				return err
			}
		}
	}
	return nil
}
