package server

import (
	"context"
	"maps"
	"net/http"
	"slices"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/service"
)

// Endpoints is what the server asks about containers. Its methods may be called
// concurrently. What they return is not written to.
type Endpoints interface {
	// Endpoints returns those of all hosts, sorted by key.
	Endpoints(ctx context.Context) ([]EndpointState, error)
	// Label changes the labels of a container that is attached to this host, by
	// one of its names or by the beginning of its id. What cannot be done is an
	// *api.Error.
	Label(ctx context.Context, container string, change api.Relabel) (done api.Relabelled, err error)
}

// EndpointState is an endpoint, and why it is not ready; "": it is.
type EndpointState struct {
	*endpoint.Endpoint
	NotReady string
}

// endpointsAPI is the handlers of everything about containers.
type endpointsAPI struct{ endpoints Endpoints }

func (a *endpointsAPI) routes() routes {
	return routes{
		"GET /v1/endpoints":                     a.list,
		"POST /v1/endpoints/{container}/labels": a.label,
	}
}

func (a *endpointsAPI) list(r *http.Request) (any, error) {
	all, err := a.endpoints.Endpoints(r.Context())
	out := api.EndpointList{Endpoints: make([]api.Endpoint, 0, len(all))}
	for _, e := range all {
		out.Endpoints = append(out.Endpoints, api.Endpoint{
			Tenant: e.Tenant, Network: e.Network, Container: e.Container, Interface: e.IfName, Host: e.Host, Namespace: e.Namespace,
			Names: e.Names, Addresses: e.Addresses, Labels: e.Labels, NotReady: e.NotReady,
		})
	}
	return out, err
}

func (a *endpointsAPI) label(r *http.Request) (any, error) {
	var body api.Relabel
	if err := read(r, &body); err != nil {
		return nil, err
	}
	if len(body.Set)+len(body.Remove) == 0 {
		return nil, api.Invalid("labels", "", "give at least one to set or to remove")
	}
	for _, k := range slices.Sorted(maps.Keys(body.Set)) {
		if slices.Contains(body.Remove, k) {
			return nil, api.Invalid("label", k, "is to be set and removed: leave one out")
		}
		if err := service.CheckEndpointLabel(k, body.Set[k]); err != nil {
			return nil, err
		}
	}
	return a.endpoints.Label(r.Context(), r.PathValue("container"), body)
}
