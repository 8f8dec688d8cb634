package api

import (
	"context"
	"net/http"
	"net/netip"
)

// Service is a name for endpoints that are chosen by their labels:
// /v1/services/<tenant>/<network>/<name>.
type Service struct {
	Tenant  string `json:"tenant"`
	Network string `json:"network"`
	Name    string `json:"name"`

	Ports []Port `json:"ports,omitempty"`
	// Selector: endpoints with all of these labels belong to the service.
	Selector map[string]string `json:"selector,omitempty"`
	// Endpoints are listed by hand, beside those of the Selector.
	Endpoints []netip.Addr `json:"endpoints,omitempty"`
	Headless  bool         `json:"headless,omitempty"`
	External  string       `json:"external,omitempty"` // a name elsewhere, and then nothing else
	// VirtualIPs at most one per family; those not asked for are chosen by the
	// daemon, and kept when the service is altered.
	VirtualIPs []netip.Addr `json:"virtual_ips,omitempty"`
	// VirtualIPsAuto asks for others than the service has, chosen by the daemon.
	VirtualIPsAuto bool `json:"virtual_ips_auto,omitempty"`
	// Affinity: for how many seconds a client stays at its endpoint; 0: it does not.
	Affinity int     `json:"affinity_seconds,omitempty"`
	Local    string  `json:"local,omitempty"`   // local or prefer-local; "": cluster
	Balance  string  `json:"balance,omitempty"` // round-robin or hash; "": random
	Health   *Health `json:"health,omitempty"`

	// Version changes with the service. If it is given when the service is
	// altered, and not what is there, nothing is: StatusPreconditionFailed.
	Version string `json:"version,omitempty"`
	// State is told by the daemon and ignored when a service is made.
	State *ServiceState `json:"state,omitempty"`
}

// Health is how the endpoints of a service are checked. 0 is what is usual.
type Health struct {
	Type      string `json:"type"` // tcp or http
	Path      string `json:"path,omitempty"`
	Interval  int    `json:"interval_seconds,omitempty"`
	Timeout   int    `json:"timeout_seconds,omitempty"`
	Threshold int    `json:"threshold,omitempty"`
}

// ServiceState is what is behind a service now.
type ServiceState struct {
	Endpoints int `json:"endpoints"`          // that are answers
	LeftOut   int `json:"left_out,omitempty"` // selected, but unhealthy or on a silent host
}

// Port is one port of a service.
type Port struct {
	Name   string `json:"name,omitempty"`
	Port   uint16 `json:"port"`
	Target uint16 `json:"target,omitempty"` // on the endpoints; 0: Port, or TargetName's
	// TargetName is a port as containers name it: label flanneld.io/port-<name>.
	TargetName string `json:"target_name,omitempty"`
	Protocol   string `json:"protocol"`            // tcp, udp or sctp
	NodePort   uint16 `json:"node_port,omitempty"` // of every host; 0: none
	// NodePortAuto asks for a NodePort that the daemon chooses, or the one that
	// the port has already.
	NodePortAuto bool `json:"node_port_auto,omitempty"`
}

// ServiceList is GET /v1/services.
type ServiceList struct {
	Services []Service `json:"services"`
}

// ServiceDetail is GET /v1/services/<tenant>/<network>/<name>: what a service
// is and all that is, or could be, behind it.
type ServiceDetail struct {
	Service
	FQDN   string   `json:"fqdn"`
	Behind []Behind `json:"behind"`
	// Problems say what of the service does not work on this host, each with its
	// remedy.
	Problems []string `json:"problems,omitempty"`
}

// Behind is an address of an endpoint that is selected or listed.
type Behind struct {
	Address netip.Addr `json:"address"` // invalid, and "" as JSON, if it has none of use
	// ID of the endpoint, which may have an address of each family, Host and Name
	// of the container; "" for addresses that are listed.
	ID    string `json:"id,omitempty"`
	Host  string `json:"host,omitempty"`
	Name  string `json:"name,omitempty"`
	Ready bool   `json:"ready"` // connections go to it
	// Why they do not, or which ports do not lead to it.
	Why string `json:"why,omitempty"`
}

// Services lists all services, by tenant, network and name.
func (c *Client) Services(ctx context.Context) ([]Service, error) {
	var l ServiceList
	err := c.do(ctx, http.MethodGet, "/v1/services", nil, &l)
	return l.Services, err
}

// Service tells about one service, as this host's daemon knows it: it may lag a
// change by some milliseconds.
func (c *Client) Service(ctx context.Context, tenant, network, name string) (ServiceDetail, error) {
	var d ServiceDetail
	return d, c.do(ctx, http.MethodGet, "/v1/services/"+keyPath(tenant, network, name), nil, &d)
}

// StoredService is a service as the store has it now, with its Version, so that
// it can be altered.
func (c *Client) StoredService(ctx context.Context, tenant, network, name string) (Service, error) {
	var d ServiceDetail
	err := c.do(ctx, http.MethodGet, "/v1/services/"+keyPath(tenant, network, name)+"?stored=true", nil, &d)
	return d.Service, err
}

// CreateService makes a service. Another one of that name is an *Error with
// StatusConflict; an equal one is no error and stays.
func (c *Client) CreateService(ctx context.Context, s Service) (Change, error) {
	return c.putService(ctx, s, "")
}

// ReplaceService makes a service, whatever there was; with dryRun it only says
// what would change, and what would be refused.
func (c *Client) ReplaceService(ctx context.Context, s Service, dryRun bool) (Change, error) {
	if dryRun {
		return c.putService(ctx, s, "?dry_run=true&replace=true")
	}
	return c.putService(ctx, s, "?replace=true")
}

func (c *Client) putService(ctx context.Context, s Service, query string) (Change, error) {
	var ch Change
	return ch, c.do(ctx, http.MethodPut, "/v1/services/"+keyPath(s.Tenant, s.Network, s.Name)+query, s, &ch)
}

// DeleteService removes a service; an *Error with StatusNotFound if there is
// none.
func (c *Client) DeleteService(ctx context.Context, tenant, network, name string) (Change, error) {
	var ch Change
	return ch, c.do(ctx, http.MethodDelete, "/v1/services/"+keyPath(tenant, network, name), nil, &ch)
}
