package subnet

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/flanneld/flanneld/store"
)

// Keeper owns this host's lease and its record under hosts/: from the latest
// View and the latest Self it makes the store say the right thing. First
// start, restart, a lost lease, a wiped store and a changed address are one
// code path.
type Keeper struct {
	Store  store.Store
	Prefix string // of all keys, as --etcd-prefix
	// Report is told what keeps the Keeper from its aim or what it waits for,
	// when that changes, and nil when all is well. It must not block. nil: quiet.
	Report func(error)
	// Rand chooses subnets; nil: the runtime's source.
	Rand *rand.Rand
}

// callTimeout bounds one call to the store.
const callTimeout = 5 * time.Second

// Run keeps the lease until ctx ends; it returns nil then. The host's record
// vanishes at once, the lease stays until it expires. Views that come with an
// error of Watch must not be sent.
//
// It calls held, from its own goroutine, with the lease whenever what is held
// changes, also the first time. Errors of the store do not end Run, they are
// reported and the call is tried again. It returns *InUseError, ErrClone,
// ErrTaken, or, if it never held a lease, ErrNoSubnet.
func (k *Keeper) Run(ctx context.Context, self <-chan Self, views <-chan View, held func(Lease)) error {
	r := &keeping{
		Keeper: k, held: held,
		claimant:  claimant{prefix: k.Prefix, rnd: k.Rand, waits: &waits{}},
		announcer: announcer{prefix: k.Prefix, waits: &waits{}},
	}
	defer r.leave(context.WithoutCancel(ctx))
	timer := time.NewTimer(idle)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case s := <-self:
			r.hear(s)
		case v := <-views:
			r.see(v)
		case <-done(r.lease):
			r.lease = nil
		case <-done(r.host):
			r.host = nil
		case <-timer.C:
		}
		for more := true; more; { // only the latest counts
			select {
			case s := <-self:
				r.hear(s)
			case v := <-views:
				r.see(v)
			default:
				more = false
			}
		}
		next, err := r.step(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		timer.Reset(max(0, time.Until(next)))
	}
}

// idle is long: without a reason to act nothing is to be done.
const idle = time.Hour

// keeping is the state of one Run.
type keeping struct {
	*Keeper
	held      func(Lease)
	claimant  claimant
	announcer announcer

	self    Self
	hasSelf bool
	view    View
	views   int // how many were seen

	lease, host         store.Session // nil: none
	leaseTry, hostTry   attempt
	leaseNote, hostNote error
	reported            string
}

func (r *keeping) hear(s Self) { r.self, r.hasSelf = s, true }

func (r *keeping) see(v View) {
	if !v.Fresh.Equal(r.view.Fresh) { // the store is back
		r.leaseTry, r.hostTry = attempt{}, attempt{}
	}
	r.view = v
	r.views++
}

// step does what is due and returns when to be called at the latest.
func (r *keeping) step(ctx context.Context) (time.Time, error) {
	next := time.Now().Add(idle)
	if !r.hasSelf || r.views == 0 {
		return next, nil
	}
	for _, part := range []func(context.Context, time.Time) (time.Time, error){r.stepLease, r.stepHost} {
		at, err := part(ctx, time.Now())
		if err != nil {
			return next, err
		}
		if !at.IsZero() && at.Before(next) {
			next = at
		}
	}
	r.report()
	return next, nil
}

// stepLease makes the store right about the lease.
func (r *keeping) stepLease(ctx context.Context, now time.Time) (time.Time, error) {
	if at := r.leaseTry.at(r.views, now); !at.IsZero() {
		return at, nil
	}
	r.claimant.node = r.announcer.name(r.self)
	d := r.claimant.decide(r.view, r.self, now)
	r.leaseNote = d.err
	var err error
	switch d.verdict {
	case wait:
		return d.until, nil
	case keep:
		err = r.keepLease(ctx, d)
	case write:
		err = r.writeLease(ctx, d)
	case fail:
		if err = r.confirm(ctx, d.confirm); err == nil {
			return time.Time{}, d.err
		}
	}
	if err != nil && !errors.Is(err, store.ErrConflict) {
		r.leaseNote = err
	}
	return r.leaseTry.result(err, r.views), nil
}

// keepLease sees to it that the session of a lease that is right is renewed.
func (r *keeping) keepLease(ctx context.Context, d decision) error {
	if err := r.bind(ctx, &d); err != nil {
		return err
	}
	if id(r.lease) != d.lease.Session { // the record's is lost
		d.lease.Session = 0
		return r.writeLease(ctx, d)
	}
	r.hold(d.lease)
	return nil
}

// bind makes r.lease the session for d: that of the record if it still
// exists, else another.
func (r *keeping) bind(ctx context.Context, d *decision) error {
	have := id(r.lease)
	if !d.bound {
		r.letGo()
		return nil
	}
	if have != 0 && (have == d.lease.Session || d.lease.Session == 0) {
		return nil
	}
	s, err := r.Store.Session(ctx, LeaseTTL, d.lease.Session)
	if errors.Is(err, store.ErrSessionLost) && d.lease.Session != 0 {
		if r.lease != nil {
			return nil
		}
		s, err = r.Store.Session(ctx, LeaseTTL, 0)
	}
	if err != nil {
		return err
	}
	r.letGo()
	r.lease = s
	return nil
}

// letGo stops renewing the lease's session.
func (r *keeping) letGo() {
	if r.lease != nil {
		r.lease.Leave()
		r.lease = nil
	}
}

// writeLease commits d, in a new session if the one it was to be in is lost.
func (r *keeping) writeLease(ctx context.Context, d decision) error {
	err := r.commitLease(ctx, d)
	if errors.Is(err, store.ErrSessionLost) {
		r.letGo()
		d.lease.Session = 0
		err = r.commitLease(ctx, d)
	}
	return err
}

func (r *keeping) commitLease(ctx context.Context, d decision) error {
	if err := r.bind(ctx, &d); err != nil {
		return err
	}
	value, err := MarshalLease(d.lease)
	if err != nil {
		return err
	}
	d.lease.Session, d.lease.value = id(r.lease), value
	d.lease.Revision, err = r.commit(ctx, store.Txn{If: d.cond, Delete: d.drop,
		Put: []store.Put{{Key: d.lease.Key, Value: value, Session: d.lease.Session}}})
	if err != nil {
		return fmt.Errorf("write lease: %w", err)
	}
	if d.lease.Created == 0 {
		d.lease.Created = d.lease.Revision
	}
	r.hold(d.lease)
	return nil
}

// hold remembers what the store has and tells it if it is news.
func (r *keeping) hold(l Lease) {
	old := r.claimant.held
	r.claimant.remember(l, r.view.Epoch, r.self)
	r.leaseNote = nil
	if old.Key != l.Key || !slices.Equal(old.Subnets, l.Subnets) || !old.says(l) {
		r.held(l)
	}
}

// stepHost makes the store right about the host's record.
func (r *keeping) stepHost(ctx context.Context, now time.Time) (time.Time, error) {
	if at := r.hostTry.at(r.views, now); !at.IsZero() {
		return at, nil
	}
	r.announcer.session = id(r.host)
	d := r.announcer.decide(r.view, r.self, now)
	r.hostNote = d.err
	var err error
	switch {
	case d.alias:
		r.announcer.alias = true
		return now, nil // again, the lease too: it bears the name
	case d.verdict == wait:
		return d.until, nil
	case d.verdict == write:
		err = r.announce(ctx, d)
	case d.verdict == fail:
		if err = r.confirm(ctx, d.confirm); err == nil {
			return time.Time{}, d.err
		}
	}
	if err != nil && !errors.Is(err, store.ErrConflict) {
		r.hostNote = err
	}
	return r.hostTry.result(err, r.views), nil
}

// announce commits d, in a new session if the one there was is lost.
func (r *keeping) announce(ctx context.Context, d announcement) error {
	err := r.commitHost(ctx, d)
	if errors.Is(err, store.ErrSessionLost) && r.host != nil {
		r.host.Leave()
		r.host = nil
		err = r.commitHost(ctx, d)
	}
	return err
}

func (r *keeping) commitHost(ctx context.Context, d announcement) error {
	if r.host == nil {
		s, err := r.Store.Session(ctx, HostTTL, 0)
		if err != nil {
			return err
		}
		r.host = s
	}
	t, err := d.put(r.host.ID())
	if err != nil {
		return err
	}
	revision, err := r.commit(ctx, t)
	if err != nil {
		return fmt.Errorf("write host record: %w", err)
	}
	r.announcer.written, r.announcer.epoch = revision, r.view.Epoch
	return nil
}

func (r *keeping) commit(ctx context.Context, t store.Txn) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return r.Store.Commit(ctx, t)
}

// confirm asks the store whether a key still is what the view says: nothing
// ends because of what was true before an outage. ErrConflict if it is not.
func (r *keeping) confirm(ctx context.Context, kv store.KV) error {
	if kv.Key == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	now, err := r.Store.Get(ctx, kv.Key)
	if err == nil && now.ModRevision != kv.ModRevision {
		err = store.ErrConflict
	}
	return err
}

// report tells what is in the way when that changes.
func (r *keeping) report() {
	err := errors.Join(r.leaseNote, r.hostNote, r.announcer.aliased(r.self))
	if store.Turned(&r.reported, err) && r.Report != nil {
		r.Report(err)
	}
}

// leave ends the host's session, so that the others know at once, and leaves
// the lease's to expire in its time.
func (r *keeping) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout/2)
	defer cancel()
	// Errors only mean that the sessions end by themselves.
	if r.host != nil {
		_ = r.host.Close(ctx)
	}
	if r.lease != nil && r.claimant.held.Key == "" {
		_ = r.lease.Close(ctx) // nothing that is used is bound to it
	}
	r.letGo()
}

// id is the session's, 0 for none.
func id(s store.Session) store.SessionID {
	if s == nil {
		return 0
	}
	return s.ID()
}

func done(s store.Session) <-chan struct{} {
	if s == nil {
		return nil
	}
	return s.Done()
}

// attempt paces the calls to the store about one thing.
type attempt struct {
	errors, races store.Backoff
	after         time.Time // not before
	old           int       // after a conflict: the view that was too old
	oldUntil      time.Time // at the latest then it is tried again on it
}

// at is when the next attempt is due, zero for now.
func (a *attempt) at(views int, now time.Time) time.Time {
	if now.Before(a.after) {
		return a.after
	}
	if a.old == views && now.Before(a.oldUntil) {
		return a.oldUntil
	}
	return time.Time{}
}

// result notes how an attempt went and returns when to look again, zero for
// no time.
func (a *attempt) result(err error, views int) time.Time {
	now := time.Now()
	switch {
	case err == nil:
		*a = attempt{}
	case errors.Is(err, store.ErrConflict):
		// Everybody who starts at once is in everybody's way: a short pause
		// of random length spreads them, and a newer view shows what is left.
		a.races.Min, a.races.Max = 8*time.Millisecond, 500*time.Millisecond
		a.after, a.old, a.oldUntil = now.Add(a.races.Next()), views, now.Add(time.Second)
	default:
		a.after = now.Add(a.errors.Next())
	}
	return a.after
}
