package daemon

import (
	"context"
	"errors"
	"slices"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/flanneld/server"
	"github.com/flanneld/flanneld/service"
)

// Describe implements server.Names.
func (n *names) Describe(_ context.Context, tenant, network, name string) (*server.Described, error) {
	show := n.balancer.shown.Load()
	if show.state.Host == "" {
		return nil, errUnheard()
	}
	i := slices.IndexFunc(show.state.Services, func(s *service.Service) bool {
		return s.Tenant == tenant && s.Network == network && s.Name == name
	})
	if i < 0 {
		return nil, nil
	}
	d := &server.Described{Service: show.state.Services[i]}
	for _, c := range service.Behind(d.Service, show.state) {
		b := api.Behind{Address: c.Addr, Ready: c.Ready, Why: c.Why}
		if c.Endpoint != nil {
			b.ID, b.Host, b.Name = c.Endpoint.ID, c.Endpoint.Host, called(c.Endpoint)
		}
		d.Behind = append(d.Behind, b)
	}
	slices.SortStableFunc(d.Behind, func(a, b api.Behind) int { return a.Address.Compare(b.Address) })
	for _, p := range show.problems {
		if p, ok := errors.AsType[*service.Problem](p); ok && p.Service != nil && p.Service.Key("") == d.Key("") {
			d.Problems = append(d.Problems, p.Text)
		}
	}
	return d, nil
}

// called is what people know a container by.
func called(e *endpoint.Endpoint) string {
	if len(e.Names) > 0 {
		return e.Names[0]
	}
	return e.Container[:min(len(e.Container), 12)]
}
