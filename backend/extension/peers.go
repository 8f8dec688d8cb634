package extension

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/backend/routed"
	"github.com/flanneld/flanneld/subnet"
)

// peer is what hooks know of one lease.
type peer struct {
	told  *input // what SubnetAddCommand was told, by this process or an earlier; nil: nothing
	sure  bool   // told by this one, and it did it
	tries int    // of SubnetRemoveCommand, that failed
	after time.Time
	err   error // of the last attempt
}

// again is how long a hook that failed is left alone.
const again = 5 * time.Second

// removals is how often SubnetRemoveCommand may fail for a peer before it is
// taken as gone: what it is to remove may be gone as well.
const removals = 3

// want is a peer that is served.
type want struct {
	lease *subnet.Lease
	in    input
}

// wanted reads the leases, the elder first, and says what is wrong with them.
func (d *Device) wanted(peers []backend.Peer) (map[string]want, []error) {
	out, taken := make(map[string]want, len(peers)), make(map[netip.Addr]string, len(peers))
	hosts := make(map[netip.Addr]*subnet.Lease, len(peers))
	var errs []error
	for _, p := range slices.SortedFunc(slices.Values(peers), func(a, b backend.Peer) int {
		return cmp.Or(cmp.Compare(a.Lease.Created, b.Lease.Created), strings.Compare(a.Lease.Key, b.Lease.Key))
	}) {
		in, err := d.parse(p.Lease)
		for _, s := range in.Subnets {
			if other, ok := taken[s.Addr()]; ok && err == nil {
				err = fmt.Errorf("subnet %s overlaps that of %s, which was there first", s, other)
			}
		}
		for _, a := range in.PublicIPs {
			if other, ok := hosts[a]; ok && err == nil && !routed.SameHost(p.Lease, other) {
				err = fmt.Errorf("public IP %s is that of %s, which was there first: delete the wrong one of the two", a, other.Key)
			}
		}
		if err != nil {
			errs = append(errs, &backend.PeerError{Peer: p.Lease, Err: err})
			continue
		}
		if len(in.Subnets) == 0 {
			continue
		}
		for _, a := range in.PublicIPs {
			hosts[a] = p.Lease
		}
		for _, s := range in.Subnets {
			taken[s.Addr()] = p.Lease.Key
		}
		out[p.Lease.Key] = want{p.Lease, in}
	}
	return out, errs
}

// parse reads a lease, which comes from elsewhere.
func (d *Device) parse(l *subnet.Lease) (input, error) {
	in := input{Interface: d.underlay.Link, MTU: d.mtu}
	if l.Type != Type {
		return in, routed.OtherType(l, Type)
	}
	for _, r := range d.cfg.Ranges {
		v4 := r.Network.Addr().Is4()
		at := slices.IndexFunc(l.Subnets, func(s netip.Prefix) bool { return s.Addr().Is4() == v4 })
		if at < 0 {
			continue // a host of the other family only
		}
		s := l.Subnets[at]
		if err := routed.CheckSubnet(s, r.Network, d.own); err != nil {
			return in, err
		}
		in.Subnets = append(in.Subnets, s)
		at = slices.IndexFunc(l.PublicIPs, func(a netip.Addr) bool { return a.Is4() == v4 })
		if at < 0 {
			return in, fmt.Errorf("no public IP of the family of %s", s)
		}
		for _, r := range d.cfg.Ranges {
			if err := routed.CheckPublic(l.PublicIPs[at], d.underlay, d.nobody, r.Network); err != nil {
				return in, err
			}
		}
		in.PublicIPs = append(in.PublicIPs, l.PublicIPs[at])
	}
	raw := l.Data.V4
	if raw == nil {
		raw = l.Data.V6
	}
	if len(raw) == 0 {
		return in, nil
	}
	if len(raw) > 6*mostData { // every character may be written as six
		return in, fmt.Errorf("BackendData of %d bytes: must be a text of at most %d", len(raw), mostData)
	}
	if err := json.Unmarshal(raw, &in.Data); err != nil || !harmless(in.Data) {
		return in, fmt.Errorf("BackendData %s: must be a text of at most %d bytes", routed.Clip(string(raw)), mostData)
	}
	return in, nil
}

// tell runs the hooks of peers that have gone, changed or come, in this order.
func (d *Device) tell(ctx context.Context, wanted map[string]want) []error {
	until := time.Now().Add(d.syncTime)
	var errs []error
	left := 0
	late := func() bool {
		if ctx.Err() == nil && time.Now().Before(until) {
			return false
		}
		left++
		return true
	}
	for _, key := range d.inTurn(maps.Keys(d.peers)) {
		p := d.peers[key]
		w, still := wanted[key]
		if still && (p.told == nil || p.told.equal(w.in)) {
			continue
		}
		err := p.err
		if still { // told below
			err = nil
		}
		if !time.Now().Before(p.after) && (p.told == nil || !late()) {
			err = d.gone(ctx, key, p, still)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("extension: %w", err))
		}
	}
	for _, key := range d.inTurn(maps.Keys(wanted)) {
		p := d.peers[key]
		if p == nil {
			p = &peer{}
			d.peers[key] = p
		}
		if !p.sure && !time.Now().Before(p.after) && !late() {
			d.come(ctx, key, p, wanted[key].in)
		}
		if p.err != nil {
			errs = append(errs, &backend.PeerError{Peer: wanted[key].lease, Served: wanted[key].in.PublicIPs, Err: p.err})
		}
	}
	d.settled = left == 0 && len(errs) == 0
	if left > 0 {
		errs = append(errs, fmt.Errorf("extension: hooks for %d peers have not been run yet: they take long", left))
	}
	return errs
}

// inTurn sorts keys so that those come last whose hooks failed last: what hangs
// must not keep the others from their turn for ever.
func (d *Device) inTurn(keys iter.Seq[string]) []string {
	after := func(key string) time.Time {
		if p := d.peers[key]; p != nil {
			return p.after
		}
		return time.Time{}
	}
	return slices.SortedFunc(keys, func(a, b string) int { return cmp.Or(after(a).Compare(after(b)), strings.Compare(a, b)) })
}

// gone tells SubnetRemoveCommand. A peer that is wanted still, but otherwise, is
// told as new next whatever came of it.
func (d *Device) gone(ctx context.Context, key string, p *peer, still bool) error {
	var err error
	if p.told != nil {
		_, err = d.run(ctx, subnetRemove, *p.told, p.told.Data)
	}
	if p.tries++; err != nil && !still && p.tries < removals {
		p.after, p.err = time.Now().Add(again), err
		return err
	}
	if still {
		*p = peer{}
	} else {
		delete(d.peers, key)
	}
	return errors.Join(err, d.record.remove(key))
}

// come tells SubnetAddCommand, after noting on disk that it may have been told.
func (d *Device) come(ctx context.Context, key string, p *peer, in input) {
	before := p.told != nil
	if p.err = d.record.add(key, in); p.err == nil {
		_, p.err = d.run(ctx, subnetAdd, in, in.Data)
		p.told = &in
	}
	if p.sure = p.err == nil; p.sure {
		return
	}
	p.after = time.Now().Add(again)
	if before {
		p.err = fmt.Errorf("%w (it was told of this peer before: let it replace what is there, as ip route replace does)", p.err)
	}
}
