package gre

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"strings"

	"github.com/flanneld/flanneld/backend/routed"
	"github.com/flanneld/flanneld/kernel/link"
	"golang.org/x/sys/unix"
)

// meshPrefix begins the name of a device that leads to one peer.
const meshPrefix = "fgre-"

// mesh is the devices of mesh mode: one for each peer and family.
type mesh struct {
	opts   options
	others bool         // devices with other keys are other networks'
	h      *link.Handle // of the routed.Device
	// peers are the devices that fit, by the peer's public IP.
	peers map[netip.Addr]*meshDevice
	// stale are other devices of ours, to go once routes do not need them.
	stale map[string]link.Link
	// told are the families of which it is known who is wanted.
	told map[bool]bool
}

type meshDevice struct {
	link   link.Link
	ready  bool // it is set up
	wanted bool
}

func newMesh(o options, others bool) *mesh {
	return &mesh{opts: o, others: others, peers: map[netip.Addr]*meshDevice{}, stale: map[string]link.Link{}, told: map[bool]bool{}}
}

// meshName is the name of the device that leads to a peer. It has 50 bits of a
// digest: in one cluster of 90 million with 5,000 hosts two names meet.
func meshName(h header, remote netip.Addr) string {
	raw := binary.BigEndian.AppendUint32([]byte("gre\x00"), h.Key)
	if h.Keyed {
		raw = append(raw, 1)
	}
	sum := sha256.Sum256(append(raw, remote.AsSlice()...))
	const most = unix.IFNAMSIZ - 1
	return (meshPrefix + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:])))[:most]
}

func isMesh(l *link.Link) bool { return l.GRE != nil && strings.HasPrefix(l.Name, meshPrefix) }

// kind is what is GRE's own with a device for each peer.
func (m *mesh) kind() routed.Kind[struct{}] {
	return routed.Kind[struct{}]{
		Type: Type, Parse: m.opts.parse, Ensure: m.ensure, Peers: m.serve,
		Route: func(_ *routed.Tunnel, s *routed.Side[struct{}]) link.Route {
			if dev := m.peers[s.Public]; dev != nil {
				return link.Route{Link: dev.link.Index}
			}
			return link.Route{}
		},
		// Those of this mode are pruned.
		Ours: isExternal, Direct: m.opts.Direct, Scattered: true,
	}
}

func (m *mesh) spec(t *routed.Tunnel, remote netip.Addr) link.GRE {
	o := m.opts
	return link.GRE{V6: !t.Is4(), Local: t.Local, Remote: remote, Key: o.Key, Keyed: o.Keyed, Checksum: o.Checksum, Sequence: o.Sequence, TTL: outerTTL}
}

// ensure reads which devices the kernel has of a family. Who is served is not
// known yet, so nothing is made.
func (m *mesh) ensure(h *link.Handle, t *routed.Tunnel) error {
	m.h = h
	all, err := h.Links(m.spec(t, netip.Addr{}).Kind())
	if err != nil {
		return err
	}
	before := map[netip.Addr]*meshDevice{}
	for remote, dev := range m.peers {
		if remote.Is4() == t.Local.Is4() {
			before[remote] = dev
			delete(m.peers, remote)
		}
	}
	maps.DeleteFunc(m.stale, func(_ string, l link.Link) bool { return l.GRE.V6 != t.Is4() })
	for _, l := range all {
		switch {
		case !isMesh(&l):
		case *l.GRE == m.spec(t, l.GRE.Remote) && l.Name == meshName(m.opts.header, l.GRE.Remote):
			dev := &meshDevice{link: l}
			if was := before[l.GRE.Remote]; was != nil {
				dev.wanted = was.wanted
			}
			m.peers[l.GRE.Remote] = dev
		case m.others && (l.GRE.Keyed != m.opts.Keyed || l.GRE.Key != m.opts.Key):
		default:
			m.stale[l.Name] = l
		}
	}
	return nil
}

// serve makes the devices of all that are served be as they must.
func (m *mesh) serve(ctx context.Context, t *routed.Tunnel, served iter.Seq[*routed.Side[struct{}]]) error {
	for remote, dev := range m.peers {
		if remote.Is4() == t.Local.Is4() {
			dev.wanted = false
		}
	}
	var errs []error
	for s := range served {
		if err := ctx.Err(); err != nil {
			return err
		}
		dev := m.peers[s.Public]
		if dev == nil {
			l, err := m.make(t, s.Public)
			if err != nil {
				errs = append(errs, fmt.Errorf("peer %s: %w", s.Public, err))
				continue
			}
			dev = &meshDevice{link: l}
			m.peers[s.Public] = dev
		}
		dev.wanted = true
		if dev.ready {
			continue
		}
		own := *t
		own.Name = dev.link.Name
		if err := own.SetUp(m.h, dev.link); err != nil {
			errs = append(errs, err)
			continue
		}
		dev.ready = true
	}
	m.told[t.Is4()] = true
	return errors.Join(errs...)
}

// make makes the device that leads to a peer. What is in its way and is ours
// is removed.
func (m *mesh) make(t *routed.Tunnel, remote netip.Addr) (link.Link, error) {
	name, spec := meshName(m.opts.header, remote), m.spec(t, remote)
	err := m.h.AddGRE(name, t.MTU, spec)
	if errors.Is(err, unix.EEXIST) {
		if err = m.clear(name, spec); err == nil {
			err = m.h.AddGRE(name, t.MTU, spec)
		}
	}
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return link.Link{}, noGRE(t.Is4(), err)
	case err != nil:
		return link.Link{}, err
	}
	return m.h.LinkByName(name)
}

// clear deletes what has the name or the ends of a device to be made, if it is
// ours, else says whose it is.
func (m *mesh) clear(name string, spec link.GRE) error {
	all, err := m.h.Links(spec.Kind())
	if err != nil {
		return err
	}
	for _, l := range all {
		g := l.GRE
		same := g != nil && g.Local == spec.Local && g.Remote == spec.Remote && g.Keyed == spec.Keyed && g.Key == spec.Key && !g.External
		switch {
		case l.Name == name && isMesh(&l), same && isMesh(&l):
			if err := m.h.DeleteLink(l.Index); err != nil {
				return err
			}
			delete(m.stale, l.Name)
		case same:
			return fmt.Errorf("%s device %s leads from %s to %s with the same key already: delete it (ip link del %s) or set another Key in the configuration's Backend",
				l.Kind, l.Name, spec.Local, spec.Remote, l.Name)
		}
	}
	return nil
}

// prune deletes the devices that nobody is reached by.
func (m *mesh) prune() []error {
	if len(m.told) == 0 {
		return nil
	}
	var errs []error
	for name, l := range m.stale {
		if err := m.h.DeleteLink(l.Index); err != nil {
			errs = append(errs, fmt.Errorf("%s: remove a former device: %w", Type, err))
			continue
		}
		delete(m.stale, name)
	}
	for remote, dev := range m.peers {
		if dev.wanted || !m.told[remote.Is4()] {
			continue
		}
		if err := m.h.DeleteLink(dev.link.Index); err != nil {
			errs = append(errs, fmt.Errorf("%s: remove the device of a former peer: %w", Type, err))
			continue
		}
		delete(m.peers, remote)
	}
	// A former configuration's are gone; who makes some from now on is another.
	m.others = m.others || len(errs) == 0
	return errs
}
