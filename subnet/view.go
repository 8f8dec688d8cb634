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

	records []*leaseRecord // by key
	claims  []claim        // their subnets, in address order
	settled bool           // nothing changed since settle

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
	if kv := s.KVs[i]; newEpoch || kv.ModRevision != w.configKV.ModRevision {
		w.configKV = kv
		c, err := ParseConfig(kv.Value)
		if err == nil && w.accept != nil {
			err = w.accept(c)
		}
		if w.configErr = err; err == nil {
			w.config, w.settled = c, false
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
	old := w.records
	if newEpoch {
		old, w.claims = nil, nil
	}
	w.revision = s.Revision
	w.records = make([]*leaseRecord, 0, len(s.KVs))
	subnets := SubnetsPrefix(w.prefix)
	var added []*leaseRecord
	removed := 0
	for _, kv := range s.KVs {
		for len(old) > 0 && old[0].lease.Key < kv.Key {
			old[0].gone = true
			removed++
			old = old[1:]
		}
		var r *leaseRecord
		if len(old) > 0 && old[0].lease.Key == kv.Key {
			r, old = old[0], old[1:]
		} else {
			r = &leaseRecord{lease: &Lease{}}
			added = append(added, r)
		}
		w.records = append(w.records, r)
		if r.lease.Key == "" || r.lease.Revision != kv.ModRevision {
			l, err := parseLease(subnets, kv)
			r.lease, r.err = &l, err
			r.judged, w.settled = false, false
		}
	}
	for _, r := range old {
		r.gone = true
		removed++
	}
	w.claim(added, removed > 0)
}

// claim keeps claims equal to records and in order.
func (w *viewer) claim(added []*leaseRecord, removed bool) {
	if removed {
		w.claims = slices.DeleteFunc(w.claims, func(c claim) bool { return c.record.gone })
		w.settled = false
	}
	const few = 32
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
	for _, r := range w.records {
		err := r.static
		if err == nil {
			err = r.clash
		}
		switch {
		case err == nil && len(w.config.Ranges) > 0:
			v.Leases = append(v.Leases, r.used)
			continue
		case err != nil:
			problems = append(problems, err)
		}
		v.skipped = append(v.skipped, r.lease)
	}
	v.Problems = slices.Concat(problems, w.hostProblems)
	return v
}

// settle decides which records count under the present configuration.
func (w *viewer) settle() {
	if w.settled || len(w.config.Ranges) == 0 {
		return
	}
	w.settled = true
	inside := false
	for _, r := range w.records {
		if !r.judged {
			r.judge(w.config)
		}
		r.clash = nil
		inside = inside || r.inside && r.static == nil
	}
	claims := w.claims
	if inside {
		claims = w.withAddresses()
	}
	if inside || overlapping(claims, w.config) {
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
