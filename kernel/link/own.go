package link

import (
	"net/netip"
	"sync"
	"time"

	"github.com/flanneld/flanneld/kernel/nlbatch"
	"golang.org/x/sys/unix"
)

// Own remembers what the handles of this process did lately, so that a
// Monitor can tell it from what others did. Its methods may be called
// concurrently; those on a nil Own do nothing.
type Own struct {
	mu    sync.Mutex
	ports map[*nlbatch.Conn]uint32
	// recent and older are what was written and comes back as notifications
	// that do not tell who did it.
	recent, older map[echo]struct{}
	turned        time.Time
	links         map[int]linkState // as last read by a handle
	names         map[string]int    // index of each of links
	watchers      map[*Monitor]struct{}
}

// echo is a change as its notification will tell it.
type echo struct {
	kind uint16
	link int
	mac  MAC // of forwarding entries only
	addr netip.Addr
}

// linkState is the part of a link whose change is news; zero: no such link.
type linkState struct {
	name   string
	mtu    int
	mac    MAC
	up     bool
	parent int
	master int
}

// echoTime is how long a change may take to come back, at least.
const echoTime = 2 * time.Second

// Record makes o remember what h does from now on, until h is closed.
func (h *Handle) Record(o *Own) error {
	if o == nil {
		return nil
	}
	port, err := h.conn.Port()
	if err != nil {
		return err
	}
	h.own = o
	o.mu.Lock()
	if o.ports == nil {
		o.ports = map[*nlbatch.Conn]uint32{}
	}
	o.ports[h.conn] = port
	o.mu.Unlock()
	o.told()
	return nil
}

func (o *Own) forget(c *nlbatch.Conn) {
	if o == nil {
		return
	}
	o.mu.Lock()
	delete(o.ports, c)
	o.mu.Unlock()
	o.told()
}

// told lets the monitors filter by the ports there are now.
func (o *Own) told() {
	o.mu.Lock()
	var all []*Monitor
	for m := range o.watchers {
		all = append(all, m)
	}
	o.mu.Unlock()
	for _, m := range all {
		m.refilter()
	}
}

func (o *Own) watch(m *Monitor, on bool) {
	if o == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.watchers == nil {
		o.watchers = map[*Monitor]struct{}{}
	}
	if on {
		o.watchers[m] = struct{}{}
	} else {
		delete(o.watchers, m)
	}
}

func (o *Own) portIDs() []uint32 {
	if o == nil {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	out := make([]uint32, 0, len(o.ports))
	for _, p := range o.ports {
		out = append(out, p)
	}
	return out
}

// wrote notes a change whose notification will not say that it is ours.
func (o *Own) wrote(e echo) {
	if o == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.watchers) == 0 {
		return
	}
	o.turn()
	o.recent[e] = struct{}{}
}

// heard reports whether a notification tells what we did.
func (o *Own) heard(e echo) bool {
	if o == nil {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.turn()
	_, recent := o.recent[e]
	_, older := o.older[e]
	if e.kind == unix.RTM_NEWNEIGH || e.kind == unix.RTM_DELNEIGH { // told once; addresses more than once
		delete(o.recent, e)
		delete(o.older, e)
	}
	return recent || older
}

// turn drops what is older than echoTime.
func (o *Own) turn() {
	if now := time.Now(); o.recent == nil || now.Sub(o.turned) > echoTime {
		o.older, o.recent, o.turned = o.recent, map[echo]struct{}{}, now
	}
}

// sawLink and sawNoLink note how a handle found a link: news that brings the
// link to that state is none.
func (o *Own) sawLink(l *Link) {
	if o == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.links == nil {
		o.links, o.names = map[int]linkState{}, map[string]int{}
	}
	o.unsee(l.Index)
	if index, ok := o.names[l.Name]; ok {
		o.unsee(index)
	}
	o.links[l.Index], o.names[l.Name] = stateOf(l), l.Index
}

// sawNoLink is told what was looked for, one of the two.
func (o *Own) sawNoLink(index int, name string) {
	if o == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.unsee(index)
	if i, ok := o.names[name]; ok {
		o.unsee(i)
	}
}

// changed notes what a handle made of a link that it saw.
func (o *Own) changed(index int, change func(*linkState)) {
	if o == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if s, ok := o.links[index]; ok {
		change(&s)
		o.links[index] = s
	}
}

func (o *Own) unsee(index int) {
	delete(o.names, o.links[index].name)
	delete(o.links, index)
}

// linkAsSeen is the state that a handle last found.
func (o *Own) linkAsSeen(index int) linkState {
	if o == nil {
		return linkState{}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.links[index]
}

// dropped reports whether a handle removed a link, or never saw it: what
// vanishes with it is no news.
func (o *Own) dropped(index int) bool { return o != nil && o.linkAsSeen(index) == linkState{} }

func stateOf(l *Link) linkState {
	return linkState{name: l.Name, mtu: l.MTU, mac: l.MAC, up: l.Up, parent: l.Parent, master: l.Master}
}
