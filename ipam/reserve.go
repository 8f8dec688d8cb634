package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Request asks for one address out of each set.
type Request struct {
	Sets []Set // canonical; none: the record is kept without an allocation
	// Want are addresses asked for by name; each must belong to a set of its
	// own. The other sets choose.
	Want []netip.Addr
	// Fill completes the record once its addresses are known; may be nil.
	Fill func(*Record)
	// Stale is asked, when addresses run short, about a record that nobody
	// works on: may it be given up? It removes what else belongs to it. Nil:
	// only records of another boot are given up.
	Stale func(Record) bool
}

// Errors of Reserve that callers branch on.
var (
	// ErrExists: the attachment has a record. Find it and decide.
	ErrExists = errors.New("attachment exists")
	// ErrFull: every address of a set is taken.
	ErrFull = errors.New("no free address")
	// ErrTaken: an address that was asked for is taken.
	ErrTaken = errors.New("address is taken")
	// ErrOutside: an address that was asked for is in no range.
	ErrOutside = errors.New("address is in no range")
)

// Reserve takes addresses for r (whose Network, ContainerID and IfName say for
// whom) and writes its record, complete or not at all, whenever the process
// is killed. The record stays locked until Held is closed.
func (n *Network) Reserve(r Record, q Request) (*Held, error) {
	d, err := n.lock()
	if err != nil {
		return nil, err
	}
	defer d.Close()
	entries, err := list(d)
	if err != nil {
		return nil, err
	}
	k := Key{r.ContainerID, r.IfName}
	taken := make(map[netip.Addr]string, len(entries))
	for _, e := range entries {
		if e.is(k) {
			return nil, fmt.Errorf("container %s, interface %s in network %s: %w", k.ContainerID, k.IfName, n.Name, ErrExists)
		}
		for _, a := range e.addresses {
			taken[a] = e.name
		}
	}
	a := allocation{n: n, q: q, taken: taken, hint: n.readHint()}
	if a.hint.boot != n.boot && len(entries) > 0 {
		a.sweep(entries)
	}
	chosen, err := a.choose()
	if err != nil {
		return nil, err
	}
	if len(q.Sets) > 0 {
		r.Addresses, r.Gateways = nil, nil
		for _, c := range chosen {
			r.Addresses = append(r.Addresses, netip.PrefixFrom(c.addr, c.from.Subnet.Bits()))
			r.Gateways = append(r.Gateways, c.from.Gateway)
		}
	}
	r.Attached = false
	r.Network, r.BootID, r.Created = n.Name, n.boot, time.Now().UTC().Round(0)
	if q.Fill != nil {
		q.Fill(&r)
	}
	h, err := n.write(r)
	if err != nil {
		return nil, err
	}
	a.saveHint(chosen)
	return h, nil
}

// write makes the record's file under the network's lock.
func (n *Network) write(r Record) (*Held, error) {
	b, err := r.encode()
	if err != nil {
		return nil, err
	}
	name, err := r.fileName()
	if err != nil {
		return nil, err
	}
	tmp, path := filepath.Join(n.dir, newFile), filepath.Join(n.dir, name)
	// What a killed process left there is nobody's: it is only ever there
	// under the network's lock.
	_ = os.Remove(tmp)
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("write attachment record: %w", err)
	}
	if err := lockWithin(f, 0); err != nil {
		return nil, err
	}
	if _, err = f.Write(b); err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		f.Close()
		return nil, errors.Join(fmt.Errorf("write attachment record: %w", err), os.Remove(tmp))
	}
	return &Held{Record: r, Intact: true, f: f, path: path}, nil
}

type choice struct {
	addr netip.Addr
	from Range
}

// allocation is one Reserve at work, under the network's lock.
type allocation struct {
	n     *Network
	q     Request
	taken map[netip.Addr]string // file name of the holder
	hint  hint
}

func (a *allocation) choose() ([]choice, error) {
	want := slices.Clone(a.q.Want)
	var out []choice
	for i, s := range a.q.Sets {
		at := slices.IndexFunc(want, func(w netip.Addr) bool { _, ok := s.in(w); return ok })
		var c choice
		var err error
		if at >= 0 {
			c, err = a.static(s, want[at])
			want = slices.Delete(want, at, at+1)
		} else {
			c, err = a.free(i, s)
		}
		if err != nil {
			return nil, err
		}
		a.taken[c.addr] = "" // sets do not overlap, but be sure
		out = append(out, c)
	}
	if len(want) > 0 {
		return nil, fmt.Errorf("requested address %s: %w of network %s that is not yet served by another requested address", want[0], ErrOutside, a.n.Name)
	}
	return out, nil
}

func (a *allocation) static(s Set, w netip.Addr) (choice, error) {
	r, _ := s.in(w)
	if w == r.Gateway {
		return choice{}, fmt.Errorf("requested address %s is network %s's gateway: %w", w, a.n.Name, ErrTaken)
	}
	if name, held := a.taken[w]; held && !a.reclaim(name) {
		return choice{}, fmt.Errorf("requested address %s: %w in network %s by %s", w, ErrTaken, a.n.Name, holder(name))
	}
	return choice{w, r}, nil
}

func (a *allocation) free(i int, s Set) (choice, error) {
	if addr, r, ok := s.next(a.hint.last(i), a.taken); ok {
		return choice{addr, r}, nil
	}
	for addr, name := range a.taken {
		if _, ok := s.in(addr); ok && name != "" && a.reclaim(name) {
			delete(a.taken, addr)
		}
	}
	if addr, r, ok := s.next(a.hint.last(i), a.taken); ok {
		return choice{addr, r}, nil
	}
	return choice{}, a.full(s)
}

// full says who has all the addresses, and a few of them by name.
func (a *allocation) full(s Set) error {
	var holders []string
	n := 0
	for addr, name := range a.taken {
		if _, ok := s.in(addr); ok {
			n++
			holders = append(holders, addr.String()+" by "+holder(name))
		}
	}
	slices.Sort(holders)
	const shown = 3
	more := ""
	if len(holders) > shown {
		holders, more = holders[:shown], ", …"
	}
	return fmt.Errorf("network %s, %s-%s: %w: all %d are taken (%s%s): remove containers, run GC, or widen the range; records are in %s",
		a.n.Name, s[0].Start, s[len(s)-1].End, ErrFull, n, strings.Join(holders, ", "), more, a.n.dir)
}

func holder(name string) string {
	if e, ok := parseName(name); ok {
		return e.id + " " + e.ifName
	}
	return "this attachment"
}

// reclaim gives up a record if it is stale.
func (a *allocation) reclaim(name string) bool {
	e, ok := parseName(name)
	if !ok {
		return false
	}
	h, err := a.n.hold(e, 0)
	if err != nil {
		return false
	}
	if h == nil {
		return true
	}
	defer h.Close()
	old := h.Intact && h.Record.BootID != a.n.boot
	if !old && (h.Record.HostLink == "" || a.q.Stale == nil || !a.q.Stale(h.Record)) {
		return false
	}
	if old && a.q.Stale != nil {
		a.q.Stale(h.Record)
	}
	return h.Release() == nil
}

// sweep gives up every record of another boot.
func (a *allocation) sweep(entries []entry) {
	for _, e := range entries {
		h, err := a.n.hold(e, 0)
		if err != nil || h == nil {
			continue
		}
		stale := h.Record.BootID != a.n.boot
		if !h.Intact {
			stale = a.q.Stale == nil || a.q.Stale(h.Record)
		}
		if stale && h.Release() == nil {
			for _, addr := range e.addresses {
				delete(a.taken, addr)
			}
		}
		h.Close()
	}
}

// hint is where the last allocation ended: addresses are not used again at
// once. Losing it does no harm.
type hint struct {
	boot  string
	addrs []netip.Addr
}

func (h hint) last(set int) netip.Addr {
	if set < len(h.addrs) {
		return h.addrs[set]
	}
	return netip.Addr{}
}

func (n *Network) readHint() hint {
	b, err := os.ReadFile(filepath.Join(n.dir, hintFile))
	if err != nil {
		return hint{}
	}
	return parseHint(string(b))
}

func parseHint(s string) hint {
	fields := strings.Fields(s)
	if len(fields) == 0 {
		return hint{}
	}
	h := hint{boot: fields[0]}
	for _, f := range fields[1:] {
		a, _ := netip.ParseAddr(f) // invalid: no hint
		h.addrs = append(h.addrs, a)
	}
	return h
}

func (a *allocation) saveHint(chosen []choice) {
	var b strings.Builder
	b.WriteString(a.n.boot)
	for i := range max(len(chosen), len(a.hint.addrs)) {
		last := a.hint.last(i)
		if i < len(chosen) {
			last = chosen[i].addr
		}
		b.WriteByte(' ')
		b.WriteString(last.String())
	}
	_ = os.WriteFile(filepath.Join(a.n.dir, hintFile), []byte(b.String()+"\n"), 0o600)
}

// Usage tells how many addresses of a set are taken.
func (n *Network) Usage(s Set) (taken int, err error) {
	entries, err := n.entries()
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		for _, a := range e.addresses {
			if _, ok := s.in(a); ok {
				taken++
			}
		}
	}
	return taken, nil
}
