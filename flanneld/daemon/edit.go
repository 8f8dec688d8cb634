package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/flanneld/flanneld/dns/zone"
	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/flanneld/server"
	"github.com/flanneld/flanneld/service"
	"github.com/flanneld/flanneld/store"
)

var _ server.Names = (*names)(nil)

// Services implements server.Names.
func (n *names) Services(context.Context) ([]server.ServiceState, error) {
	show := n.shown.Load()
	if show.state.Partial {
		return nil, errUnheard()
	}
	out := make([]server.ServiceState, len(show.state.Services))
	for i, svc := range show.state.Services {
		out[i].Service = svc
		if show.zone != nil {
			out[i].Endpoints, out[i].LeftOut = show.zone.Behind(svc.Network, svc.Name)
		}
	}
	return out, nil
}

// AddedNames implements server.Names.
func (n *names) AddedNames(context.Context) ([]*zone.Name, error) {
	s := n.shown.Load().state
	if s.Partial {
		return nil, errUnheard()
	}
	return s.Names, nil
}

// errUnheard: this daemon has not seen etcd since it was started.
func errUnheard() error {
	return api.Unavailable("etcd could not be asked since flanneld was started, so that nothing is known: flanneld status tells why")
}

// EditService implements server.Names.
func (n *names) EditService(ctx context.Context, tenant, network, name string, change func(*service.Service) (*service.Service, error)) error {
	none := &service.Service{Tenant: tenant, Network: network, Name: name}
	k := kind[service.Service]{service.Parse, (*service.Service).Marshal, func(have, want *service.Service) (store.Txn, error) {
		return n.claim(ctx, have, want, none, have == none)
	}}
	return edit(ctx, n, none.Key(n.cfg.Etcd.Prefix), none, k, change)
}

// EditName implements server.Names.
func (n *names) EditName(ctx context.Context, tenant, network, name string, change func(*zone.Name) (*zone.Name, error)) error {
	none := &zone.Name{Tenant: tenant, Network: network, Name: name}
	k := kind[zone.Name]{parse: zone.ParseName, marshal: (*zone.Name).Marshal}
	return edit(ctx, n, none.Key(n.cfg.Etcd.Prefix), none, k, change)
}

// kind is how records of one type are read and written.
type kind[T any] struct {
	parse   func(etcdPrefix string, kv store.KV) (*T, error)
	marshal func(*T) ([]byte, error)
	// beside is what is written along with a record; it may complete want. nil:
	// nothing. It is asked about records that stay as they are, too. Its errors
	// are for the client if they are *api.Error or *service.FieldError, else the
	// store's.
	beside func(have, want *T) (store.Txn, error)
}

// edit changes one record. One that cannot be parsed counts as none, which has
// nothing but its name, so that it can be replaced or removed.
func edit[T any](ctx context.Context, n *names, key string, none *T, k kind[T], change func(*T) (*T, error)) error {
	if err := n.shown.Load().storeErr; err != nil {
		return api.Unavailable("etcd is out of reach, nothing was changed: %v", err)
	}
	var wrong error
	seen := &committed{Store: n.store}
	_, err := store.Update(ctx, seen, key, func(kv store.KV) (t store.Txn, err error) {
		var have *T
		if kv.ModRevision != 0 {
			if have, err = k.parse(n.cfg.Etcd.Prefix, kv); err != nil {
				have = none
			}
		}
		want, err := change(have)
		dry := errors.Is(err, server.ErrDryRun)
		switch {
		case err != nil && !dry:
			wrong = err
			return store.Txn{}, err
		case want == have && (dry || have == nil || have == none):
			return store.Txn{}, nil
		}
		if k.beside != nil {
			if t, err = k.beside(have, want); err != nil {
				if isRefusal(err) {
					wrong = err
				}
				return store.Txn{}, err
			}
		}
		if dry {
			return store.Txn{}, nil
		}
		if want == have {
			return t, nil
		}
		if want == nil {
			t.Delete = append(t.Delete, key)
			return t, nil
		}
		value, err := k.marshal(want)
		t.Put = append(t.Put, store.Put{Key: key, Value: store.KeepUnknown(value, kv.Value, fields[T]())})
		return t, err
	})
	switch {
	case err == nil || wrong != nil:
		return err
	case errors.Is(err, store.ErrConflict):
		return api.Unavailable("others change the same again and again, nothing was changed: try again: %v", err)
	case !seen.unsure:
		return api.Unavailable("etcd could not be read, nothing was changed: %v", err)
	}
	return api.Unavailable("etcd did not confirm the change, it may have been made all the same: look before you try again: %v", err)
}

// committed is a store, and whether its last commit may have been made although
// it was not confirmed.
type committed struct {
	store.Store
	unsure bool
}

// Commit implements store.Store.
func (c *committed) Commit(ctx context.Context, t store.Txn) (int64, error) {
	revision, err := c.Store.Commit(ctx, t)
	c.unsure = err != nil && !errors.Is(err, store.ErrConflict)
	return revision, err
}

// isRefusal tells whether err says what is wrong with a request.
func isRefusal(err error) bool {
	_, field := errors.AsType[*service.FieldError](err)
	_, whole := errors.AsType[*api.Error](err)
	return field || whole
}

// fields names what a record may hold in the store.
func fields[T any]() []string {
	var out []string
	for f := range reflect.TypeFor[T]().Fields() {
		if f.IsExported() && f.Tag.Get("json") != "-" {
			out = append(out, f.Name)
		}
	}
	return out
}

// Lookup implements server.Names.
func (n *names) Lookup(ctx context.Context, name string, qtype uint16) (api.Lookup, error) {
	if n.cfg.DNS.Off {
		return api.Lookup{}, api.Unavailable("names are not answered on this host (--no-dns): ask a host that answers them")
	}
	z := n.shown.Load().zone
	if z == nil {
		return api.Lookup{}, api.Unavailable("names are not known yet: flanneld status tells what it waits for")
	}
	x := z.Explain(name, qtype)
	l := api.Lookup{Name: x.Name, Type: x.Type, Rcode: x.Rcode, View: endpoint.DefaultNetwork, Zone: x.Zone, Notes: x.Notes, Answers: []api.Record{}}
	for _, r := range x.Answers {
		l.Answers = append(l.Answers, api.Record(r))
	}
	for _, r := range x.Additional {
		l.Additional = append(l.Additional, api.Record(r))
	}
	for _, o := range x.LeftOut {
		l.LeftOut = append(l.LeftOut, api.LeftOut(o))
	}
	outside := cmp.Or(x.Outside, x.Name)
	if _, ok := zone.Wire(name); x.Zone != "" && x.Outside == "" || !ok {
		return l, nil
	}
	a, err := n.out.Ask(ctx, outside, qtype)
	if err != nil {
		return l, fmt.Errorf("ask upstream for %s: %w", outside, err)
	}
	if l.Rcode = a.Rcode; x.Outside != "" && l.Rcode != "NOERROR" && l.Rcode != "NXDOMAIN" { // as the server does it
		l.Rcode, l.Answers = "SERVFAIL", []api.Record{}
	}
	for _, r := range a.Records {
		l.Answers = append(l.Answers, api.Record{Name: r.Name, TTL: r.TTL, Type: r.Type, Data: r.Data})
	}
	var asked []string
	for _, u := range n.out.Upstreams() {
		asked = append(asked, u.String())
	}
	l.Upstream = strings.Join(asked, ", ")
	return l, nil
}

// status is how names are answered here; nil if they are not.
func (n *names) status() *api.DNS {
	s := n.shown.Load()
	if n.cfg.DNS.Off || s.zone == nil {
		return nil
	}
	d := &api.DNS{
		Domain: n.cfg.DNS.Domain, Addresses: s.at, Upstreams: []api.Upstream{},
		Endpoints: len(s.state.Endpoints), Services: len(s.state.Services), Names: len(s.state.Names),
		Problems: n.server.Errors(),
	}
	for _, e := range s.state.Endpoints {
		if len(e.Unhealthy) > 0 || s.state.Dead[e.Host] != "" {
			d.LeftOut++
		}
	}
	asked := n.out.Upstreams() // not this daemon itself
	for _, u := range n.out.Stats().Upstreams {
		if slices.Contains(asked, u.Addr) {
			d.Upstreams = append(d.Upstreams, api.Upstream{Addr: u.Addr, Healthy: !u.Down})
		}
	}
	return d
}
