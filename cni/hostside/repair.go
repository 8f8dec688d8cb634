package hostside

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/flanneld/flanneld/ipam"
	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/kernel/nft/cnitable"
)

// Look says what Repair looks at.
type Look struct {
	Dir    string // of the records; "": ipam.DefaultDir
	Filter bool   // rules and elements in nftables
	Links  bool   // bridges and ports
	// Open opens the packet filter; nil: OpenFilter.
	Open func() (PacketFilter, error)
}

// Report is what Repair found.
type Report struct {
	Repaired []string // for people, one for each thing
	Bridges  []string // that the attachments use, sorted
	// Again: a plugin was at work on an attachment that may need repair.
	Again bool
}

// Repair puts back what somebody else took away from the attachments of the
// calling thread's network namespace. What is lacking is found without locks;
// it is put back under the attachment's lock, so that a DEL that runs at the
// same time is either done, and there is no record, or not begun. One
// attachment's error does not stop the others.
func Repair(look Look) (Report, error) {
	here, err := hostNS()
	if err != nil {
		return Report{}, err
	}
	r := repair{look: look, here: here, bridges: map[string]*bridgeState{}}
	names, err := ipam.Networks(look.Dir)
	if err != nil {
		return Report{}, err
	}
	if r.ports, err = link.OpenPorts(); err != nil {
		return Report{}, err
	}
	defer r.ports.Close()
	if look.Filter {
		open := look.Open
		if open == nil {
			open = OpenFilter
		}
		filter, err := open()
		if err != nil {
			return Report{}, err
		}
		defer filter.Close()
		if r.present, r.mend, err = read(filter); err != nil {
			return Report{}, err
		}
	}
	var errs []error
	for _, name := range names {
		errs = append(errs, r.network(name))
	}
	if r.filtered > 0 {
		r.report.Repaired = append(r.report.Repaired, fmt.Sprintf("packet filter: %d containers' masquerading and guard", r.filtered))
	}
	slices.Sort(r.report.Bridges)
	return r.report, errors.Join(errs...)
}

func hostNS() (uint64, error) {
	ns, err := netns.Current()
	if err != nil {
		return 0, err
	}
	defer ns.Close()
	id, err := ns.ID()
	return id.Ino, err
}

// repair is one Repair at work.
type repair struct {
	look     Look
	here     uint64
	ports    *link.Ports
	present  present
	mend     func(cnitable.Attachment) error
	bridges  map[string]*bridgeState
	filtered int
	report   Report
}

func (r *repair) network(name string) error {
	pool, err := ipam.Open(r.look.Dir, name)
	if err != nil {
		return err
	}
	records, err := pool.Records()
	if err != nil {
		return err
	}
	inside := insideOf(records)
	var errs []error
	for _, rec := range records {
		if rec.HostLink == "" || rec.HostNS != 0 && rec.HostNS != r.here {
			continue // another plugin's, or of a host that is no more
		}
		rec.Inside = inside
		lacks, err := r.lacks(rec)
		if err == nil && lacks {
			err = r.attachment(pool, rec, inside)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("container %s, interface %s in network %s: %w", rec.ContainerID, rec.IfName, name, err))
		}
	}
	return errors.Join(errs...)
}

// insideOf is what belongs to a network: the last ADD's word counts.
func insideOf(records []ipam.Record) []netip.Prefix {
	var last ipam.Record
	for _, rec := range records {
		if rec.Masquerade && rec.Created.After(last.Created) {
			last = rec
		}
	}
	return last.Inside
}

func (r *repair) lacks(rec ipam.Record) (bool, error) {
	if rec.Bridge != "" && !slices.Contains(r.report.Bridges, rec.Bridge) {
		r.report.Bridges = append(r.report.Bridges, rec.Bridge)
	}
	if r.look.Filter && r.present.Lacks(Filter(rec)) {
		return true, nil
	}
	if !r.look.Links || rec.Bridge == "" {
		return false, nil
	}
	br, err := r.bridge(rec.Bridge)
	if err != nil {
		return false, err
	}
	return br.lacks(rec) || !plugged(br.ports[rec.HostLink], br.Index, rec), nil
}

// attachment repairs one under its lock, if it is still to be repaired.
func (r *repair) attachment(pool *ipam.Network, rec ipam.Record, inside []netip.Prefix) error {
	held, err := pool.Try(ipam.Key{ContainerID: rec.ContainerID, IfName: rec.IfName})
	if errors.Is(err, ipam.ErrBusy) {
		r.report.Again = true
		return nil
	}
	if err != nil || held == nil {
		return err
	}
	defer held.Close()
	if !held.Intact || !held.Record.Attached {
		return nil // an ADD that was killed; the next one or DEL clears it away
	}
	rec = held.Record
	rec.Inside = inside
	port, err := r.ports.Port(rec.HostLink)
	if errors.Is(err, link.ErrNoLink) {
		return nil // gone with the container's namespace
	}
	if err != nil {
		return err
	}
	var errs []error
	if f := Filter(rec); r.look.Filter && r.present.Lacks(f) {
		if err := r.mend(f); err != nil {
			errs = append(errs, err)
		} else {
			r.filtered++
		}
	}
	if r.look.Links && rec.Bridge != "" {
		errs = append(errs, r.plug(rec, port))
	}
	return errors.Join(errs...)
}

// plug repairs bridge and port.
func (r *repair) plug(rec ipam.Record, port link.Port) error {
	br, err := r.bridge(rec.Bridge)
	if err != nil {
		return err
	}
	if br.lacks(rec) {
		if br.Port, err = MakeBridge(r.ports, Bridge(rec)); err != nil {
			return err
		}
		if br.addresses, err = r.ports.Addresses(br.Index); err != nil {
			return err
		}
		r.report.Repaired = append(r.report.Repaired, "bridge "+rec.Bridge)
	}
	if plugged(port, br.Index, rec) {
		return nil
	}
	if err := r.ports.Join(link.Veth{Name: rec.HostLink, Bridge: br.Index, Hairpin: rec.Hairpin, Isolated: rec.Isolated}); err != nil {
		return err
	}
	r.report.Repaired = append(r.report.Repaired, fmt.Sprintf("port %s of bridge %s", rec.HostLink, rec.Bridge))
	return nil
}

// plugged tells whether a port is as an attachment wants it.
func plugged(p link.Port, bridge int, rec ipam.Record) bool {
	return p.Index != 0 && p.Master == bridge && p.Up && (p.Hairpin || !rec.Hairpin) && (p.Isolated || !rec.Isolated)
}

// bridgeState is a bridge as it was found, and what is plugged into it; the
// zero Port if there is none.
type bridgeState struct {
	link.Port
	addresses []netip.Prefix
	ports     map[string]link.Port
}

func (b *bridgeState) lacks(rec ipam.Record) bool {
	return b.Index == 0 || !b.Up || rec.Promisc && !b.Promisc ||
		slices.ContainsFunc(rec.BridgeAddresses, func(p netip.Prefix) bool { return !slices.Contains(b.addresses, p) })
}

// bridge reads a bridge the first time it is asked for.
func (r *repair) bridge(name string) (*bridgeState, error) {
	if b := r.bridges[name]; b != nil {
		return b, nil
	}
	b := &bridgeState{ports: map[string]link.Port{}}
	var err error
	b.Port, err = r.ports.Port(name)
	if err == nil {
		b.addresses, err = r.ports.Addresses(b.Index)
	}
	if err == nil {
		var on []link.Port
		on, err = r.ports.On(b.Index)
		for _, p := range on {
			b.ports[p.Name] = p
		}
	}
	if err != nil && !errors.Is(err, link.ErrNoLink) {
		return nil, err
	}
	r.bridges[name] = b
	return b, nil
}
