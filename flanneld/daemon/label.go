package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/flanneld/server"
	"github.com/flanneld/flanneld/ipam"
	"github.com/flanneld/flanneld/service"
)

var _ server.Endpoints = (*names)(nil)

// Endpoints implements server.Endpoints.
func (n *names) Endpoints(context.Context) ([]server.EndpointState, error) {
	s := n.shown.Load().state
	if s.Partial {
		return nil, errUnheard()
	}
	out := make([]server.EndpointState, len(s.Endpoints))
	for i, e := range s.Endpoints {
		out[i] = server.EndpointState{Endpoint: e, NotReady: s.Dead[e.Host]}
		if out[i].NotReady != "" {
			continue
		}
		var why []string
		for _, name := range slices.Sorted(maps.Keys(e.Unhealthy)) {
			why = append(why, "unhealthy for "+name+": "+e.Unhealthy[name])
		}
		out[i].NotReady = strings.Join(why, "; ")
	}
	return out, nil
}

// Label implements server.Endpoints.
func (n *names) Label(_ context.Context, container string, change api.Relabel) (api.Relabelled, error) {
	found, err := n.find(container)
	if err != nil {
		return api.Relabelled{}, err
	}
	done := api.Relabelled{Container: found[0].Container}
	for _, e := range found {
		labels, changed, err := n.relabel(e, change)
		if err != nil {
			return done, err
		}
		done.Labels, done.Changed = labels, done.Changed || changed
	}
	return done, nil
}

// find returns the interfaces of the one container of this host that is called
// so, or whose id begins so.
func (n *names) find(container string) ([]*endpoint.Endpoint, error) {
	show := n.shown.Load()
	name, _ := endpoint.Label(container)
	var found []*endpoint.Endpoint
	var list []string // of containers
	for _, e := range show.state.Endpoints {
		const short = 12 // as engines show it
		byID := e.Container == container || len(container) >= short && strings.HasPrefix(e.Container, container)
		if e.Tenant != endpoint.DefaultTenant || !byID && !slices.Contains(e.Names, name) {
			continue
		}
		if found = append(found, e); !slices.Contains(list, which(e)) {
			list = append(list, which(e))
		}
	}
	switch {
	case len(found) == 0 && show.state.Partial:
		return nil, errUnheard()
	case len(found) == 0:
		return nil, api.NotFound("no container is called %s, and no id begins so: flanneld endpoint list shows them", container)
	case len(list) > 1:
		return nil, api.Conflict("%s are %d containers: %s; give the id of one, on its host", container, len(list), strings.Join(list, ", "))
	case found[0].Host != show.ground.self.Name:
		return nil, api.Conflict("%s is attached to %s: run flanneld endpoint label there", container, found[0].Host)
	}
	return found, nil
}

// which says which container of which host e is of.
func which(e *endpoint.Endpoint) string { return fmt.Sprintf("%.12s on %s", e.Container, e.Host) }

// relabel changes the record that e was made of. It is watched, and published
// from there.
func (n *names) relabel(e *endpoint.Endpoint, change api.Relabel) (labels map[string]string, changed bool, err error) {
	all, err := ipam.Networks(n.dir)
	if err != nil {
		return nil, false, err
	}
	key := ipam.Key{ContainerID: e.Container, IfName: e.IfName}
	for _, name := range all {
		network, err := ipam.Open(n.dir, name)
		if err != nil {
			return nil, false, err
		}
		network.Wait = labelPatience
		if r, ok, err := network.Peek(key); err != nil || !ok || !isOf(e, r) {
			continue // of another network, or released since
		}
		found, err := network.Relabel(key, func(r ipam.Record, to map[string]string) error {
			maps.Copy(to, change.Set)
			for _, k := range change.Remove {
				delete(to, k)
			}
			labels, changed = to, !maps.Equal(to, r.Labels)
			return fit(r, to)
		})
		switch {
		case errors.Is(err, ipam.ErrBusy):
			return nil, false, api.Unavailable("container %s is being attached or detached: try again", which(e))
		case found || err != nil:
			return labels, changed, err
		}
	}
	return nil, false, api.NotFound("container %s is not attached any more", which(e))
}

// labelPatience is how long an engine may work on an attachment meanwhile.
const labelPatience = 2 * time.Second

// isOf tells whether e was made of r.
func isOf(e *endpoint.Endpoint, r ipam.Record) bool {
	return slices.ContainsFunc(r.Addresses, func(p netip.Prefix) bool { return slices.Contains(e.Addresses, p.Addr().Unmap()) })
}

// fit refuses labels that would be left out of the endpoint.
func fit(r ipam.Record, labels map[string]string) error {
	was := endpoint.Notes(r)
	r.Labels = labels
	for _, note := range endpoint.Notes(r) {
		if !slices.Contains(was, note) {
			return &service.FieldError{Field: "labels", Remedy: note + ": nothing was changed"}
		}
	}
	return nil
}
