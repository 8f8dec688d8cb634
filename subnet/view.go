package subnet

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/flanneld/flanneld/store"
)

// maxHostSize bounds the value of hosts/<name>.
const maxHostSize = 64 << 10

// leaseRecord is one key under subnets/, parsed once for each revision.
type leaseRecord struct {
	lease *Lease // as parsed
	err   error  // of parsing
	used  *Lease // as it counts under the present configuration
	// static says why it is unusable by itself under the present
	// configuration; clash, why because of another record.
	static, clash error
	// inside: one of its public addresses is inside the pod network.
	inside bool
	judged bool // under the present configuration
	gone   bool
}

// hostRecord is one key under hosts/.
type hostRecord struct {
	host     Host
	revision int64
	session  store.SessionID
	err      error
}

// viewer makes Views from the snapshots of the three prefixes. It keeps what
// it parsed: a change of one record costs little, however many there are. It
// belongs to one goroutine.
type viewer struct {
	prefix string
	accept func(Config) error

	config    Config
	configErr error
	configKV  store.KV
	// serviceKV is ServicesKey, and serviceErr why it cannot be used.
	serviceKV  store.KV
	serviceErr error

	kvs     []store.KV     // of the last snapshot
	records []*leaseRecord // of kvs
	used    []*Lease       // of records as settled: nil where one does not count
	claims  []claim        // their subnets, in address order
	settled bool           // nothing changed since settle
	// front and back are how many records at either end settle need not look
	// at again; disjoint: all was apart when it last looked.
	front, back int
	disjoint    bool

	hosts    map[string]Host
	hostRecs map[string]hostRecord // by name; includes those with an error

	listed                  [3]bool
	fresh                   [3]time.Time
	epochs                  [3]store.Epoch
	revision, hostsRevision int64
	hostProblems            []error
}

// The three prefixes, as indices.
const (
	configPrefix = iota
	subnetsPrefix
	hostsPrefix
)

func newViewer(prefix string, accept func(Config) error) *viewer {
	return &viewer{prefix: prefix, accept: accept, configErr: noConfig(prefix)}
}

// take replaces what is known of one prefix.
func (w *viewer) take(which int, s store.Snapshot) {
	newEpoch := w.listed[which] && w.epochs[which] != s.Epoch
	switch which {
	case configPrefix:
		w.takeConfig(s, newEpoch)
	case subnetsPrefix:
		w.takeLeases(s, newEpoch)
	case hostsPrefix:
		w.takeHosts(s, newEpoch)
	}
	w.listed[which], w.fresh[which], w.epochs[which] = true, s.Fresh, s.Epoch
}

func (w *viewer) complete() bool { return w.listed == [3]bool{true, true, true} }

func (w *viewer) takeConfig(s store.Snapshot, newEpoch bool) {
	key := ConfigKey(w.prefix)
	i := slices.IndexFunc(s.KVs, func(kv store.KV) bool { return kv.Key == key })
	if i < 0 {
		w.configKV, w.configErr = store.KV{}, noConfig(w.prefix)
		return
	}
	var networks store.KV
	if i := slices.IndexFunc(s.KVs, func(kv store.KV) bool { return kv.Key == ServicesKey(w.prefix) }); i >= 0 {
		networks = s.KVs[i]
	}
	if kv := s.KVs[i]; newEpoch || kv.ModRevision != w.configKV.ModRevision || networks.ModRevision != w.serviceKV.ModRevision {
		w.configKV, w.serviceKV, w.serviceErr = kv, networks, nil
		c, err := ParseConfig(kv.Value)
		if err == nil && c.Services == nil && networks.Key != "" {
			c.Services, w.serviceErr = servicesAt(networks, c.Ranges)
		}
		if err == nil && w.accept != nil {
			err = w.accept(c)
		}
		if w.configErr = err; err == nil {
			w.config, w.settled = c, false
			w.front, w.back, w.disjoint = 0, 0, false
			for _, r := range w.records {
				r.judged = false
			}
		}
	}
}

// takeLeases reads what is new or was written again. Parsing depends on the
// record alone, so the key and its revision tell whether it is known; but only
// within an epoch: a restored store numbers other writes with the same
// revisions.
func (w *viewer) takeLeases(s store.Snapshot, newEpoch bool) {
	if newEpoch {
		w.kvs, w.records, w.used, w.claims = nil, nil, nil, nil
		w.front, w.back, w.disjoint = 0, 0, false
	}
	front, back := store.Unchanged(w.kvs, s.KVs, func(a, b *store.KV) bool { return a.ModRevision == b.ModRevision && a.Key == b.Key })
	old, now := w.records[front:len(w.records)-back], s.KVs[front:len(s.KVs)-back]
	w.revision, w.kvs = s.Revision, s.KVs
	if len(old)+len(now) == 0 {
		return
	}
	subnets := SubnetsPrefix(w.prefix)
	records := make([]*leaseRecord, 0, len(now))
	var added, removed []*leaseRecord
	for _, kv := range now {
		for len(old) > 0 && old[0].lease.Key < kv.Key {
			removed = append(removed, old[0])
			old = old[1:]
		}
		var r *leaseRecord
		if len(old) > 0 && old[0].lease.Key == kv.Key {
			r, old = old[0], old[1:]
		} else {
			r = &leaseRecord{lease: &Lease{}}
			added = append(added, r)
		}
		records = append(records, r)
		if r.lease.Key == "" || r.lease.Revision != kv.ModRevision {
			l, err := parseLease(subnets, kv)
			r.lease, r.err, r.judged = &l, err, false
		}
	}
	removed = append(removed, old...)
	w.used = slices.Replace(w.used, front, len(w.used)-back, make([]*Lease, len(records))...)
	w.records = slices.Replace(w.records, front, len(w.records)-back, records...)
	w.front, w.back, w.settled = min(w.front, front), min(w.back, back), false
	w.unclaim(removed)
	w.claim(added)
}

// few records are found in claims by searching.
const few = 32

// unclaim keeps claims equal to records.
func (w *viewer) unclaim(removed []*leaseRecord) {
	if len(removed) > few {
		for _, r := range removed {
			r.gone = true
		}
		w.claims = slices.DeleteFunc(w.claims, func(c claim) bool { return c.record.gone })
		return
	}
	for _, r := range removed {
		for _, s := range r.lease.Subnets {
			i, _ := slices.BinarySearchFunc(w.claims, claim{prefix: s}, compareClaims)
			for w.claims[i].record != r { // of those that claim the same
				i++
			}
			w.claims = slices.Delete(w.claims, i, i+1)
		}
	}
}

// claim keeps claims equal to records, and in order.
func (w *viewer) claim(added []*leaseRecord) {
	for _, r := range added {
		for _, s := range r.lease.Subnets {
			c := claim{prefix: s, record: r}
			i := len(w.claims)
			if len(added) <= few {
				i, _ = slices.BinarySearchFunc(w.claims, c, compareClaims)
			}
			w.claims = slices.Insert(w.claims, i, c)
		}
	}
	if len(added) > few {
		slices.SortFunc(w.claims, compareClaims)
	}
}

func (w *viewer) takeHosts(s store.Snapshot, newEpoch bool) {
	w.hostsRevision = s.Revision
	known := w.hostRecs
	w.hosts = make(map[string]Host, len(s.KVs))
	w.hostRecs = make(map[string]hostRecord, len(s.KVs))
	w.hostProblems = nil
	for _, kv := range s.KVs {
		name := strings.TrimPrefix(kv.Key, HostsPrefix(w.prefix))
		r, ok := known[name]
		if !ok || newEpoch || r.revision != kv.ModRevision {
			r = hostRecord{revision: kv.ModRevision, session: kv.Session}
			r.host, r.err = parseHost(name, kv)
		}
		w.hostRecs[name] = r
		if r.err != nil {
			w.hostProblems = append(w.hostProblems, r.err)
			continue
		}
		w.hosts[name] = r.host
	}
}

func parseHost(name string, kv store.KV) (Host, error) {
	var h Host
	if len(kv.Value) > maxHostSize {
		return h, &RecordError{Key: kv.Key, Value: fmt.Sprintf("%d bytes", len(kv.Value)), Remedy: "the value must be at most 64 KiB; delete the key"}
	}
	if err := json.Unmarshal(kv.Value, &h); err != nil {
		return Host{}, &RecordError{Key: kv.Key, Value: clip(kv.Value), Remedy: "the value must be a host's JSON object (" + clip([]byte(err.Error())) + "); delete the key"}
	}
	switch {
	case h.Name != name:
		return Host{}, &RecordError{kv.Key, "Name", clip([]byte(h.Name)), "must be the key's last part; delete the key"}
	case h.Identity == "" || h.Instance == "":
		return Host{}, &RecordError{kv.Key, "Identity, Instance", "", "must not be empty; delete the key"}
	case kv.Session == 0:
		return Host{}, &RecordError{Key: kv.Key, Remedy: "is bound to no etcd lease: the host would live for ever; delete the key"}
	}
	h.Name, h.Version = printable(h.Name, mostName), printable(h.Version, mostWord)
	for i, d := range h.Drivers {
		h.Drivers[i] = printable(d, mostWord)
	}
	return h, nil
}

// view is the present state. What it shares with earlier views is immutable.
func (w *viewer) view() View {
	w.settle()
	v := View{
		Config: w.config, ConfigErr: w.configErr, Hosts: w.hosts,
		Epoch: w.epochs[subnetsPrefix], Revision: w.revision, hostsRevision: w.hostsRevision,
		Fresh: slices.MinFunc(w.fresh[:], time.Time.Compare), hostRecs: w.hostRecs,
	}
	v.Leases = make([]*Lease, 0, len(w.records))
	var problems []error
	for i, l := range w.used {
		if l != nil {
			v.Leases = append(v.Leases, l)
			continue
		}
		r := w.records[i]
		err := r.static
		if err == nil {
			err = r.clash
		}
		if err != nil {
			problems = append(problems, err)
		}
		v.skipped = append(v.skipped, r.lease)
	}
	if w.serviceErr != nil {
		problems = append(problems, w.serviceErr)
	}
	v.Problems = slices.Concat(problems, w.hostProblems)
	return v
}

// settle decides which records count under the present configuration. Where
// few changed it looks at these alone: what was apart stays so.
func (w *viewer) settle() {
	if w.settled || len(w.config.Ranges) == 0 {
		return
	}
	w.settled = true
	fresh := w.records[w.front : len(w.records)-w.back]
	for _, r := range fresh {
		if !r.judged {
			r.judge(w.config)
		}
	}
	if !w.disjoint || !w.apart(fresh) {
		w.front, w.back = 0, 0
		w.compare()
	}
	for i := w.front; i < len(w.records)-w.back; i++ {
		if r := w.records[i]; r.static == nil && r.clash == nil {
			w.used[i] = r.used
		} else {
			w.used[i] = nil
		}
	}
	w.front, w.back = len(w.records), len(w.records)
}

// apart says that no record of fresh is in the way of any, where all others
// are apart; false: it may be.
func (w *viewer) apart(fresh []*leaseRecord) bool {
	if len(fresh) > few {
		return false
	}
	for _, r := range fresh {
		if r.inside && r.static == nil {
			return false
		}
		for _, s := range r.lease.Subnets {
			if c := (claim{prefix: s, record: r}); c.counts(w.config) && !c.fits(w.claims, w.config) {
				return false
			}
		}
	}
	return true
}

// compare looks at all records together.
func (w *viewer) compare() {
	inside := false
	for _, r := range w.records {
		r.clash = nil
		inside = inside || r.inside && r.static == nil
	}
	claims := w.claims
	if inside {
		claims = w.withAddresses()
	}
	w.disjoint = !inside && !overlapping(claims, w.config)
	if !w.disjoint {
		resolve(claims, w.config)
	}
}

// judge finds out whether the record is usable by itself.
func (r *leaseRecord) judge(c Config) {
	r.judged, r.inside = true, false
	r.used, r.static = r.lease, r.err
	if r.err != nil {
		return
	}
	used, err := r.lease.under(c)
	if r.static = err; !slices.Equal(used.Subnets, r.lease.Subnets) {
		r.used = &used
	}
	for _, ip := range r.used.PublicIPs {
		for _, rg := range c.Ranges {
			r.inside = r.inside || rg.Network.Contains(ip)
		}
	}
}

// withAddresses is the claims and the public addresses that lie inside the
// pod network.
func (w *viewer) withAddresses() []claim {
	claims := slices.Clone(w.claims)
	for _, r := range w.records {
		if !r.inside || r.static != nil {
			continue
		}
		for _, ip := range r.used.PublicIPs {
			claims = append(claims, claim{prefix: netip.PrefixFrom(ip, ip.BitLen()), record: r, address: true})
		}
	}
	slices.SortFunc(claims, compareClaims)
	return claims
}
