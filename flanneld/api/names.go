package api

import (
	"fmt"
	"net/http"
	"net/netip"
)

// DNS is how names are answered on this host.
type DNS struct {
	Domain string `json:"domain"`
	// Addresses of this host at which names are answered.
	Addresses []netip.Addr `json:"addresses"`
	Upstreams []Upstream   `json:"upstreams"`
	// How many the zone is made of. LeftOut are endpoints that are no answers:
	// unhealthy, or on a host that is silent.
	Endpoints int `json:"endpoints"`
	LeftOut   int `json:"left_out,omitempty"`
	Services  int `json:"services"`
	Names     int `json:"names"` // added by hand
	// Problems say what is not answered, each with its remedy; they are among
	// the Status's Reasons too.
	Problems []string `json:"problems,omitempty"`
}

// Upstream is a server that is asked for names that are not the cluster's.
type Upstream struct {
	Addr    netip.AddrPort `json:"addr"`
	Healthy bool           `json:"healthy"`
}

// Name is a name that was added by hand: /v1/names/<tenant>/<network>/<name>.
type Name struct {
	Tenant    string       `json:"tenant"`
	Network   string       `json:"network"`
	Name      string       `json:"name"`
	FQDN      string       `json:"fqdn,omitempty"` // told by the daemon
	Addresses []netip.Addr `json:"addresses"`
}

// NameList is GET /v1/names.
type NameList struct {
	Names []Name `json:"names"`
}

// Change is the answer to what makes, alters or removes something.
type Change struct {
	// Changed is false if all was as asked for before; Created: it was not there.
	Changed bool `json:"changed"`
	Created bool `json:"created,omitempty"`
	// Name in full, under which it is answered, and the addresses that it has
	// now: those of a name added by hand, or the virtual ones of a service.
	FQDN      string       `json:"fqdn"`
	Addresses []netip.Addr `json:"addresses,omitempty"`
	// Fields are what changed of a service that was there.
	Fields []string `json:"fields,omitempty"`
	// Note is what nobody asked for, or may surprise: a record that could not be
	// read was replaced, a program has a service's node port.
	Note string `json:"note,omitempty"`
	// Service as it is now; nil of other things, and if it is gone.
	Service *Service `json:"service,omitempty"`
}

// Lookup is GET /v1/lookup?name=&type=: what a container of the pod network
// is told, and why.
type Lookup struct {
	Name string `json:"name"` // in full, with the dot at the end
	Type string `json:"type"`
	// Tried are names in full that were asked before Name, as a container's
	// resolver does with its search list, and do not exist.
	Tried   []string `json:"tried,omitempty"`
	Rcode   string   `json:"rcode"` // NOERROR, NXDOMAIN, SERVFAIL, …
	Answers []Record `json:"answers"`
	// Additional records come along unasked.
	Additional []Record `json:"additional,omitempty"`

	View string `json:"view"` // whose zone answers
	// Zone is the zone of ours that the name is in; "" if it is asked upstream.
	Zone string `json:"zone,omitempty"`
	// Upstream is the server that was asked, or whose answer was kept.
	Upstream string `json:"upstream,omitempty"`
	// LeftOut are records that the name would have, and why it has not.
	LeftOut []LeftOut `json:"left_out,omitempty"`
	// Notes say what else explains the answer.
	Notes []string `json:"notes,omitempty"`
}

// Record of an answer, as text.
type Record struct {
	Name string `json:"name"`
	TTL  uint32 `json:"ttl"`
	Type string `json:"type"`
	Data string `json:"data"`
	// Source is where it comes from: "container web-1 on host2", "service
	// frontend", "added by hand"; "" for upstreams' records.
	Source string `json:"source,omitempty"`
}

// LeftOut is what is no answer.
type LeftOut struct {
	Data   string `json:"data"`
	Source string `json:"source,omitempty"`
	Why    string `json:"why"`
}

// Error is what the daemon says when it does not do what it was asked.
type Error struct {
	Status int `json:"-"` // http.StatusBadRequest, NotFound, Conflict, PreconditionFailed, ServiceUnavailable
	// Message says what is wrong of which thing and what cures it, in one or
	// more sentences.
	Message string `json:"error"`
	// Field and Value are what is wrong in the request, for programs.
	Field string `json:"field,omitempty"`
	Value string `json:"value,omitempty"`
}

func (e *Error) Error() string { return e.Message }

// Invalid is a mistake in the request.
func Invalid(field, value, remedy string) *Error {
	return &Error{Status: http.StatusBadRequest, Message: fmt.Sprintf("%s %q: %s", field, value, remedy), Field: field, Value: value}
}

// NotFound is for what is not there.
func NotFound(format string, a ...any) *Error {
	return &Error{Status: http.StatusNotFound, Message: fmt.Sprintf(format, a...)}
}

// Conflict is for what is there already and is not what was asked for.
func Conflict(format string, a ...any) *Error {
	return &Error{Status: http.StatusConflict, Message: fmt.Sprintf(format, a...)}
}

// Unavailable is for what the daemon cannot do at present.
func Unavailable(format string, a ...any) *Error {
	return &Error{Status: http.StatusServiceUnavailable, Message: fmt.Sprintf(format, a...)}
}
