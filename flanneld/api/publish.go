package api

import (
	"cmp"
	"context"
	"net/http"
	"strconv"
)

// Publication is a port of one host that leads to containers of a name:
// /v1/publications/<tenant>/<host>/<protocol>/<port>.
type Publication struct {
	Tenant   string `json:"tenant"`
	Host     string `json:"host"`
	Protocol string `json:"protocol"` // tcp, udp or sctp; "" in a request: tcp
	Port     uint16 `json:"port"`

	Network    string `json:"network"`
	Target     string `json:"target"` // a container's name, or the beginning of its id
	TargetPort uint16 `json:"target_port"`

	// State is told by the daemon and ignored in a request.
	State *PublicationState `json:"state,omitempty"`
}

// PublicationState is what is behind a publication now.
type PublicationState struct {
	Containers int `json:"containers"`
	LeftOut    int `json:"left_out,omitempty"` // of these, on a silent host
}

// PublicationList is GET /v1/publications.
type PublicationList struct {
	Publications []Publication `json:"publications"`
}

// Published is the answer to a publication.
type Published struct {
	// Changed is false if all was as asked for before.
	Changed bool `json:"changed"`
	// Notes say what may surprise.
	Notes []string `json:"notes,omitempty"`
}

// At is the published port as the command line takes it: HOST:PORT, and its
// protocol if it is not tcp.
func (p Publication) At() string { return p.Host + ":" + port(p.Port, p.Protocol) }

// To is where it leads, likewise.
func (p Publication) To() string { return p.Target + ":" + strconv.Itoa(int(p.TargetPort)) }

func port(n uint16, protocol string) string {
	if protocol = cmp.Or(protocol, "tcp"); protocol != "tcp" {
		return strconv.Itoa(int(n)) + "/" + protocol
	}
	return strconv.Itoa(int(n))
}

func (p Publication) path() string {
	return "/v1/publications/" + keyPath(p.Tenant, p.Host, cmp.Or(p.Protocol, "tcp"), strconv.Itoa(int(p.Port)))
}

// Publications lists all published ports, by tenant, host and port.
func (c *Client) Publications(ctx context.Context) ([]Publication, error) {
	var l PublicationList
	err := c.do(ctx, http.MethodGet, "/v1/publications", nil, &l)
	return l.Publications, err
}

// Publish makes a port of a host lead to containers. One that leads elsewhere is
// an *Error with StatusConflict.
func (c *Client) Publish(ctx context.Context, p Publication) (Published, error) {
	var done Published
	return done, c.do(ctx, http.MethodPut, p.path(), p, &done)
}

// Unpublish takes a published port back, wherever it leads; an *Error with
// StatusNotFound if it is not published.
func (c *Client) Unpublish(ctx context.Context, p Publication) error {
	return c.do(ctx, http.MethodDelete, p.path(), nil, nil)
}
