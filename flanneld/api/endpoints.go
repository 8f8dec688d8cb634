package api

import (
	"context"
	"net/http"
	"net/netip"
	"net/url"
)

// Endpoint is a container's interface in a network.
type Endpoint struct {
	Tenant    string            `json:"tenant"`
	Network   string            `json:"network"`
	Container string            `json:"container"` // its id
	Interface string            `json:"interface"`
	Host      string            `json:"host"`
	Namespace string            `json:"namespace,omitempty"`
	Names     []string          `json:"names,omitempty"`
	Addresses []netip.Addr      `json:"addresses"`
	Labels    map[string]string `json:"labels,omitempty"`
	// NotReady says why it must not be an answer, or not for some service; "":
	// it is ready.
	NotReady string `json:"not_ready,omitempty"`
}

// EndpointList is GET /v1/endpoints.
type EndpointList struct {
	Endpoints []Endpoint `json:"endpoints"`
}

// Relabel is POST /v1/endpoints/<name or container id>/labels. Labels that are
// neither set nor removed stay.
type Relabel struct {
	Set    map[string]string `json:"set,omitempty"`
	Remove []string          `json:"remove,omitempty"`
}

// Relabelled is the answer to it.
type Relabelled struct {
	// Changed is false if the labels were so before.
	Changed   bool              `json:"changed"`
	Container string            `json:"container"`
	Labels    map[string]string `json:"labels"` // all that it has now
}

// Endpoints lists the endpoints of all hosts, by tenant, network and host.
func (c *Client) Endpoints(ctx context.Context) ([]Endpoint, error) {
	var l EndpointList
	err := c.do(ctx, http.MethodGet, "/v1/endpoints", nil, &l)
	return l.Endpoints, err
}

// Label changes the labels of a container of the daemon's host. A name that
// several have, or a container of another host, is an *Error with
// StatusConflict.
func (c *Client) Label(ctx context.Context, container string, to Relabel) (Relabelled, error) {
	var done Relabelled
	return done, c.do(ctx, http.MethodPost, "/v1/endpoints/"+url.PathEscape(container)+"/labels", to, &done)
}
