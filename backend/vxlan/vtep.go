package vxlan

import (
	"errors"
	"fmt"

	"github.com/flanneld/flanneld/backend/routed"
	"github.com/flanneld/flanneld/kernel/link"
	"golang.org/x/sys/unix"
)

// vtep is one family's device.
type vtep struct {
	*routed.Tunnel
	spec link.Vxlan
	mac  link.MAC
}

// ensure adopts, repairs, replaces or makes the device, and switches it on.
// Where a device is adopted for the first time its MAC is kept: peers know it.
func (v *vtep) ensure(h *link.Handle) error {
	v.spec.Link = v.Underlay
	l, err := h.LinkByName(v.Name)
	switch {
	case err == nil && !v.fits(&l):
		if err := h.DeleteLink(l.Index); err != nil {
			return err
		}
		l, err = v.make(h)
	case err == nil && v.Index == 0 && l.MAC.IsUnicast():
		v.mac = l.MAC
	case errors.Is(err, link.ErrNoLink):
		l, err = v.make(h)
	}
	if err != nil {
		return err
	}
	if l.MAC != v.mac {
		if err := h.SetMAC(l.Index, v.mac); err != nil {
			return fmt.Errorf("set up %s: %w", v.Name, err)
		}
	}
	return v.SetUp(h, l)
}

// fits reports whether a device that is there can be used.
func (v *vtep) fits(l *link.Link) bool { return l.Vxlan != nil && *l.Vxlan == v.spec }

// make makes the device. What is in its way and is ours is removed.
func (v *vtep) make(h *link.Handle) (link.Link, error) {
	err := h.AddVxlan(v.Name, v.mac, v.MTU, v.spec)
	if errors.Is(err, unix.EEXIST) {
		if err = v.clear(h); err == nil {
			err = h.AddVxlan(v.Name, v.mac, v.MTU, v.spec)
		}
	}
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return link.Link{}, fmt.Errorf("%w: the kernel has no VXLAN (CONFIG_VXLAN, module vxlan)", err)
	case errors.Is(err, unix.EEXIST):
		return link.Link{}, fmt.Errorf("%w: VNI %d on port %d is taken, perhaps by a device of this host in another network namespace: set another VNI or Port in the configuration's Backend", err, v.spec.VNI, v.spec.Port)
	case err != nil:
		return link.Link{}, err
	}
	return h.LinkByName(v.Name)
}

// clear deletes the device that holds our VNI and port if it is of ours, by
// its name or because it is the very one that somebody gave another, else says
// whose it is.
func (v *vtep) clear(h *link.Handle) error {
	all, err := h.Links(linkKind)
	if err != nil {
		return err
	}
	for _, l := range all {
		switch {
		case l.Vxlan == nil || l.Vxlan.VNI != v.spec.VNI || l.Vxlan.Port != v.spec.Port || l.Vxlan.Local.Is6() == v.Is4():
		case ours(&l), v.fits(&l) && l.MAC == v.mac:
			if err := h.DeleteLink(l.Index); err != nil {
				return err
			}
		default:
			return fmt.Errorf("VXLAN device %s has VNI %d on port %d already: delete it (ip link del %s) or set another VNI or Port in the configuration's Backend",
				l.Name, v.spec.VNI, v.spec.Port, l.Name)
		}
	}
	return nil
}
