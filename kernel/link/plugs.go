package link

import (
	"errors"
	"slices"
)

// plugs is what a Monitor knows of the bridges that it watches, and of their
// ports.
type plugs struct {
	names   []string
	bridges map[int]struct{} // those that exist, by index
	ports   map[int]struct{} // that are on one of them, or were
	// What is to be told unless it is mended before the delay ends.
	broken bool             // a bridge
	loose  map[int]struct{} // ports that are down or off
}

func newPlugs(names []string) plugs {
	return plugs{names: names, bridges: map[int]struct{}{}, ports: map[int]struct{}{}, loose: map[int]struct{}{}}
}

// WatchBridges replaces the bridges that Unplugged tells of. How they are now
// is not told: look after the call. It must be called from a thread in the
// monitor's network namespace, and may be called while Run runs.
func (m *Monitor) WatchBridges(names []string) error {
	p, err := OpenPorts()
	if err != nil {
		return err
	}
	defer p.Close()
	now := newPlugs(slices.Clone(names))
	for _, name := range names {
		br, err := p.Port(name)
		if errors.Is(err, ErrNoLink) {
			continue
		}
		if err != nil {
			return err
		}
		now.bridges[br.Index] = struct{}{}
		on, err := p.On(br.Index)
		if err != nil {
			return err
		}
		for _, port := range on {
			now.ports[port.Index] = struct{}{}
		}
	}
	m.mu.Lock()
	m.plugs = now
	m.mu.Unlock()
	m.refilter()
	return nil
}

// link takes a notification of a link, and reports whether a bridge came or
// went.
func (p *plugs) link(gone bool, l *Link) (changed bool) {
	if len(p.names) == 0 {
		return false
	}
	_, was := p.bridges[l.Index]
	is := !gone && slices.Contains(p.names, l.Name)
	if is {
		p.bridges[l.Index] = struct{}{}
	} else {
		delete(p.bridges, l.Index)
	}
	p.broken = p.broken || was && !is || is && !l.Up
	if gone {
		delete(p.ports, l.Index)
		delete(p.loose, l.Index)
		return was != is
	}
	_, on := p.bridges[l.Master]
	_, port := p.ports[l.Index]
	switch {
	case on && l.Up:
		p.ports[l.Index] = struct{}{}
		delete(p.loose, l.Index)
	case on || port:
		p.ports[l.Index], p.loose[l.Index] = struct{}{}, struct{}{}
	}
	return was != is
}

// settle reports whether there is something to tell, once.
func (p *plugs) settle() bool {
	tell := p.broken || len(p.loose) > 0
	p.broken = false
	clear(p.loose)
	return tell
}

func (m *Monitor) plugsPending() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.plugs.broken || len(m.plugs.loose) > 0
}

// unaddressed is told that a link lost an address.
func (m *Monitor) unaddressed(index int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.plugs.bridges[index]; ok {
		m.plugs.broken = true
	}
}

func (m *Monitor) tellUnplugged() {
	select {
	case m.unplugged <- struct{}{}:
	default: // told already
	}
}
