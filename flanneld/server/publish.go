package server

import (
	"cmp"
	"context"
	"net/http"
	"strconv"
	"strings"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/service"
)

// Publications is what the server asks about ports of hosts that lead to
// containers. Its methods may be called concurrently. What they return is not
// written to.
type Publications interface {
	// Publications returns all of the newest snapshot, as Names.Services does it.
	Publications(ctx context.Context) ([]PublicationState, error)
	// CheckPublication refuses one that its host cannot have, and says of one
	// that it can what may surprise.
	CheckPublication(ctx context.Context, p *service.Publication) (notes []string, err error)
	// EditPublication is as Names.EditName, for the key that of has.
	EditPublication(ctx context.Context, of *service.Publication, edit func(have *service.Publication) (*service.Publication, error)) error
}

// PublicationState is a publication and how many containers it leads to.
type PublicationState struct {
	*service.Publication
	Containers int // of its name
	LeftOut    int // of these, on a silent host
}

// publishAPI is the handlers of everything about published ports.
type publishAPI struct{ publications Publications }

func (a *publishAPI) routes() routes {
	return routes{
		"GET /v1/publications": a.list,
		"PUT /v1/publications/{tenant}/{host}/{protocol}/{port}":    a.publish,
		"DELETE /v1/publications/{tenant}/{host}/{protocol}/{port}": a.remove,
	}
}

func (a *publishAPI) list(r *http.Request) (any, error) {
	all, err := a.publications.Publications(r.Context())
	out := api.PublicationList{Publications: []api.Publication{}}
	for _, p := range all {
		w := wirePublication(p.Publication)
		w.State = &api.PublicationState{Containers: p.Containers, LeftOut: p.LeftOut}
		out.Publications = append(out.Publications, w)
	}
	return out, err
}

func wirePublication(p *service.Publication) api.Publication {
	return api.Publication{Tenant: p.Tenant, Host: p.Host, Protocol: p.Protocol, Port: p.Port,
		Network: p.Network, Target: p.Target, TargetPort: p.TargetPort}
}

// publicationKey is what the path says.
func publicationKey(r *http.Request) (*service.Publication, error) {
	p := &service.Publication{Tenant: r.PathValue("tenant"), Host: r.PathValue("host"), Protocol: strings.ToLower(r.PathValue("protocol"))}
	if p.Tenant != endpoint.DefaultTenant {
		return nil, api.NotFound("there is no tenant %q: there is %q", p.Tenant, endpoint.DefaultTenant)
	}
	port, err := strconv.ParseUint(r.PathValue("port"), 10, 16)
	if err != nil || port == 0 {
		return nil, api.Invalid("port", r.PathValue("port"), "give a number from 1 to 65535")
	}
	p.Port = uint16(port)
	return p, nil
}

func (a *publishAPI) publish(r *http.Request) (any, error) {
	want, err := publicationKey(r)
	if err != nil {
		return nil, err
	}
	var body api.Publication
	if err := read(r, &body); err != nil {
		return nil, err
	}
	if cmp.Or(body.Tenant, want.Tenant) != want.Tenant || cmp.Or(body.Host, want.Host) != want.Host ||
		cmp.Or(strings.ToLower(body.Protocol), want.Protocol) != want.Protocol || cmp.Or(body.Port, want.Port) != want.Port {
		return nil, api.Invalid("port", body.At(), "the path says "+wirePublication(want).At()+": leave it out, or make them equal")
	}
	want.Network, want.TargetPort = cmp.Or(body.Network, endpoint.DefaultNetwork), body.TargetPort
	if want.Network != endpoint.DefaultNetwork {
		return nil, api.NotFound("there is no network %q: the pod network is %q", want.Network, endpoint.DefaultNetwork)
	}
	want.Target = body.Target
	if name, ok := endpoint.Label(body.Target); ok {
		want.Target = name
	}
	if err := want.Validate(); err != nil {
		return nil, err
	}
	var done api.Published
	if done.Notes, err = a.publications.CheckPublication(r.Context(), want); err != nil {
		return nil, err
	}
	return &done, a.publications.EditPublication(r.Context(), want, func(have *service.Publication) (*service.Publication, error) {
		w := wirePublication(want)
		switch {
		case have == nil || have.Target == "": // none that can be read
			done.Changed = true
			return want, nil
		case wirePublication(have) == w:
			done.Changed = false
			return have, nil
		}
		return nil, api.Conflict("%s already leads to %s: nothing was changed; flanneld publish remove %s first", w.At(), wirePublication(have).To(), w.At())
	})
}

func (a *publishAPI) remove(r *http.Request) (any, error) {
	of, err := publicationKey(r)
	if err != nil {
		return nil, err
	}
	return api.Published{Changed: true}, a.publications.EditPublication(r.Context(), of, func(have *service.Publication) (*service.Publication, error) {
		if have == nil {
			return nil, api.NotFound("nothing is published at %s: flanneld publish list shows what is", wirePublication(of).At())
		}
		return nil, nil
	})
}
