package gre

import (
	"errors"
	"fmt"

	"github.com/flanneld/flanneld/backend/routed"
	"github.com/flanneld/flanneld/kernel/link"
	"golang.org/x/sys/unix"
)

// Names of the devices for all peers.
const (
	external4 = "flannel.gre"
	external6 = "flannel-v6.gre"
)

func externalName(is4 bool) string {
	if is4 {
		return external4
	}
	return external6
}

func isExternal(l *link.Link) bool {
	return l.Name == external4 && l.Kind == link.KindGRE || l.Name == external6 && l.Kind == link.KindGREv6
}

// external is what is GRE's own with one device for all peers: each route
// tells it where to and by which key.
func (d *Device) external() routed.Kind[struct{}] {
	flags := d.opts.flags()
	return routed.Kind[struct{}]{
		Type: Type, Parse: d.opts.parse, Ensure: d.ensure,
		Route: func(t *routed.Tunnel, s *routed.Side[struct{}]) link.Route {
			return link.Route{Encap: link.Encap{Dst: s.Public, Src: t.Local, ID: d.opts.Key, TTL: outerTTL, Flags: flags}}
		},
		Ours: ours, Direct: d.opts.Direct,
	}
}

// flags are those of the header that each packet carries.
func (h header) flags() (f link.EncapFlags) {
	if h.Keyed {
		f |= link.EncapKey
	}
	if h.Checksum {
		f |= link.EncapChecksum
	}
	if h.Sequence {
		f |= link.EncapSequence
	}
	return f
}

// ensure adopts, repairs, replaces or makes a tunnel's device, and switches it
// on.
func (d *Device) ensure(h *link.Handle, t *routed.Tunnel) error {
	spec := link.GRE{External: true, V6: !t.Is4(), Checksum: d.opts.Checksum}
	l, err := h.LinkByName(t.Name)
	switch {
	case err == nil && (l.GRE == nil || *l.GRE != spec):
		switch {
		case !isExternal(&l):
			return fmt.Errorf("interface %s is of another kind (%s): delete it (ip link del %s)", l.Name, l.Kind, l.Name)
		case t.Shared && l.GRE != nil && l.GRE.External:
			return fmt.Errorf("interface %s, which all networks of this host share, has Checksum %t: give all of them the same Checksum in the configuration's Backend", l.Name, l.GRE.Checksum)
		}
		if err := h.DeleteLink(l.Index); err != nil {
			return err
		}
		l, err = add(h, t, spec)
	case errors.Is(err, link.ErrNoLink):
		l, err = add(h, t, spec)
	}
	if err != nil {
		return err
	}
	return t.SetUp(h, l)
}

func add(h *link.Handle, t *routed.Tunnel, spec link.GRE) (link.Link, error) {
	err := h.AddGRE(t.Name, t.MTU, spec)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return link.Link{}, noGRE(t.Is4(), err)
	case errors.Is(err, unix.EEXIST):
		return link.Link{}, errors.Join(inTheWay(h, spec), err)
	case err != nil:
		return link.Link{}, err
	}
	return h.LinkByName(t.Name)
}

// inTheWay says who is the external device already. One of ours that somebody
// gave another name cannot be told from a stranger's.
func inTheWay(h *link.Handle, spec link.GRE) error {
	all, err := h.Links(spec.Kind())
	if err != nil {
		return err
	}
	for _, l := range all {
		if l.GRE != nil && l.GRE.External {
			return fmt.Errorf("%s device %s is external already, and the kernel takes one only: delete it (ip link del %s), or set \"Mode\":\"mesh\" in the configuration's Backend",
				l.Kind, l.Name, l.Name)
		}
	}
	return nil
}
