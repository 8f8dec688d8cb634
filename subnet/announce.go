package subnet

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"

	"github.com/flanneld/flanneld/store"
)

// announcer decides about this host's record under hosts/: pure, given what
// a Keeper knows.
type announcer struct {
	prefix string
	waits  *waits
	alias  bool // the name is in use: the identity is appended
	// written is the revision of the last write in epoch.
	written int64
	epoch   store.Epoch
	session store.SessionID // that the record is to be bound to; 0: none yet
}

// name is the name of the record.
func (a *announcer) name(s Self) string {
	if a.alias {
		return alias(s.Host.Name, s.Host.Identity)
	}
	return s.Host.Name
}

// announcement is what to do about the record.
type announcement struct {
	verdict verdict
	host    Host
	cond    store.Cond // write
	alias   bool       // begin again under the other name
	until   time.Time
	err     error
	confirm store.KV
}

// decide is the rules of the host's record: it says that this very daemon
// lives. A name belongs to the first live host that has it.
func (a *announcer) decide(v View, s Self, now time.Time) announcement {
	a.waits.begin()
	defer a.waits.end()
	if v.Epoch == a.epoch && v.hostsRevision < a.written {
		return announcement{} // older than the record
	}
	want := s.Host
	want.Name = a.name(s)
	key := HostKey(a.prefix, want.Name)
	rec, ok := v.hostRecs[want.Name]
	put := announcement{verdict: write, host: want, cond: store.Cond{Key: key, ModRevision: rec.revision}}
	switch {
	case !ok || rec.err != nil:
		return put
	case rec.host.Instance == want.Instance:
		if rec.session == a.session && rec.host.same(want) {
			return announcement{verdict: keep}
		}
		return put
	case rec.host.Identity == want.Identity && sharesAddress(rec.host.PublicIPs, want.PublicIPs):
		if a.written != 0 && a.epoch == v.Epoch {
			return announcement{verdict: fail, confirm: store.KV{Key: key, ModRevision: rec.revision}, err: &InUseError{
				What: "the identity", Mine: want.Name, Other: rec.host.Name + " at " + joinAddrs(rec.host.PublicIPs),
				Remedy: "another daemon of this host was started, or of a copy of it; stop one of the two",
			}}
		}
		return put // the record of this host's last daemon
	}
	end := a.waits.first(key+" "+rec.host.Instance, v, now).Add(patience)
	other := rec.host.Name + " at " + joinAddrs(rec.host.PublicIPs)
	switch {
	case now.Before(end):
		return announcement{until: end, err: fmt.Errorf("the name %s is in use by %s: waiting whether it is alive", want.Name, other)}
	case rec.host.Identity == want.Identity:
		return announcement{verdict: fail, confirm: store.KV{Key: key, ModRevision: rec.revision}, err: fmt.Errorf("%w: %s", ErrClone, other)}
	case s.NodeNameExplicit || a.alias:
		return announcement{verdict: fail, confirm: store.KV{Key: key, ModRevision: rec.revision}, err: &InUseError{
			What: "the name", Mine: want.Name + " at " + joinAddrs(want.PublicIPs), Other: other,
			Remedy: "give each host a name of its own with --node-name",
		}}
	}
	return announcement{alias: true}
}

// same compares two records as they are written.
func (h Host) same(o Host) bool {
	a, errA := json.Marshal(h)
	b, errB := json.Marshal(o)
	return errA == nil && errB == nil && bytes.Equal(a, b)
}

// aliased is what to tell as long as the host goes by another name.
func (a *announcer) aliased(s Self) error {
	if !a.alias {
		return nil
	}
	return fmt.Errorf("the name %s is in use by another live host; this one goes by %s: give it a name of its own with --node-name", s.Host.Name, a.name(s))
}

// put is the write of an announcement.
func (p announcement) put(session store.SessionID) (store.Txn, error) {
	value, err := json.Marshal(p.host)
	if err != nil {
		return store.Txn{}, fmt.Errorf("host record %s: %w", p.cond.Key, err)
	}
	return store.Txn{If: []store.Cond{p.cond}, Put: []store.Put{{Key: p.cond.Key, Value: value, Session: session}}}, nil
}
