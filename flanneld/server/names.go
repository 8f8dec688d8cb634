package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/flanneld/flanneld/dns/zone"
	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/service"
)

// ErrDryRun is returned by an edit, together with what it would have written:
// all is checked and chosen, and nothing is written.
var ErrDryRun = errors.New("only to see what would happen")

// Names is what the server asks about services and names. Its methods may be
// called concurrently. What they return is not written to.
type Names interface {
	// Services and AddedNames return what the newest snapshot of the store has,
	// of all tenants, sorted by key; also while the store is out of reach.
	// They may lag an edit by some milliseconds.
	Services(ctx context.Context) ([]ServiceState, error)
	AddedNames(ctx context.Context) ([]*zone.Name, error)
	// Describe says of one service of the same snapshot what is behind it; nil:
	// there is none of that name.
	Describe(ctx context.Context, tenant, network, name string) (*Described, error)
	// EditService and EditName read one key from the store, hand what they
	// found (nil: nothing) to edit, and write what it returns (nil: the key
	// goes; the same pointer: nothing is written, but claims of a service that
	// are lost), provided that nobody else
	// wrote the key meanwhile; else again from the start. edit may be called
	// several times, and its error, but ErrDryRun, is returned as it is. What it
	// returns of a service is a new one each time and belongs to EditService, which
	// fills in what it chooses. While the store is
	// known to be out of reach they return an api.Unavailable at once, which
	// says that nothing was changed.
	EditService(ctx context.Context, tenant, network, name string, edit func(have *service.Service) (*service.Service, error)) error
	EditName(ctx context.Context, tenant, network, name string, edit func(have *zone.Name) (*zone.Name, error)) error
	// NodePortNotes say what may surprise about the node ports of a service.
	NodePortNotes(s *service.Service) []string
	// Lookup says what the pod network's view answers to a name (lower case,
	// without the dot at the end; "" is the root) and why. Names of others are
	// asked upstream. A name that does not exist is no error; one that nobody
	// answers for is.
	Lookup(ctx context.Context, name string, qtype uint16) (api.Lookup, error)
}

// ServiceState is a service and how many endpoints it has.
type ServiceState struct {
	*service.Service
	Endpoints int // that are answers
	LeftOut   int // selected, but unhealthy or on a silent host
}

// Described is a service, with its endpoints.
type Described struct {
	*service.Service
	Behind   []api.Behind // that are selected or listed, sorted by address
	Problems []string     // what of the service does not work here, with remedies
}

// editPatience is how long the store may take.
const editPatience = 5 * time.Second

// namesAPI is the handlers of everything about names.
type namesAPI struct {
	names  Names
	domain string
}

func (n *namesAPI) routes() routes {
	return routes{
		"GET /v1/services":                              n.services,
		"GET /v1/services/{tenant}/{network}/{name}":    n.service,
		"PUT /v1/services/{tenant}/{network}/{name}":    n.putService,
		"DELETE /v1/services/{tenant}/{network}/{name}": n.deleteService,
		"GET /v1/names":                                 n.list,
		"PUT /v1/names/{tenant}/{network}/{name}":       n.addName,
		"DELETE /v1/names/{tenant}/{network}/{name}":    n.removeName,
		"GET /v1/lookup":                                n.lookup,
	}
}

func (n *namesAPI) list(r *http.Request) (any, error) {
	all, err := n.names.AddedNames(r.Context())
	out := api.NameList{Names: []api.Name{}}
	for _, a := range all {
		out.Names = append(out.Names, api.Name{Tenant: a.Tenant, Network: a.Network, Name: a.Name, Addresses: a.Addresses,
			FQDN: key{a.Tenant, a.Network, a.Name}.fqdn(n.domain)})
	}
	return out, err
}

// mostAddresses of a name: the answer still fits into one message by TCP.
const mostAddresses = 256

func (n *namesAPI) addName(r *http.Request) (any, error) {
	k, err := n.nameKey(r)
	if err != nil {
		return nil, err
	}
	var body api.Name
	if err := read(r, &body); err != nil {
		return nil, err
	}
	if len(body.Addresses) == 0 {
		return nil, api.Invalid("addresses", "", "give at least one, such as 192.0.2.7")
	}
	for i, a := range body.Addresses {
		body.Addresses[i] = a.Unmap()
		if !a.IsValid() || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() {
			return nil, api.Invalid("address", a.String(), "nobody is reached there: give a host's address, such as 192.0.2.7 or 2001:db8::7")
		}
	}
	ch := api.Change{FQDN: k.fqdn(n.domain)}
	return &ch, n.names.EditName(r.Context(), k.tenant, k.network, k.name, func(have *zone.Name) (*zone.Name, error) {
		want := &zone.Name{Tenant: k.tenant, Network: k.network, Name: k.name, Addresses: slices.Clone(body.Addresses)}
		if ch.Note = ""; have != nil {
			want.Addresses = append(want.Addresses, have.Addresses...)
			if len(have.Addresses) == 0 { // every name that can be read has one
				ch.Note = "there was a record of this name that could not be read: it was replaced, with what it may have held"
			}
		}
		slices.SortFunc(want.Addresses, netip.Addr.Compare)
		want.Addresses = slices.Compact(want.Addresses)
		ch.Addresses = want.Addresses
		if len(want.Addresses) > mostAddresses {
			return nil, api.Invalid("addresses", fmt.Sprint(len(want.Addresses)), fmt.Sprintf("a name has at most %d", mostAddresses))
		}
		if err := want.Validate(); err != nil { // else every daemon would skip the record, and the name be gone
			return nil, err
		}
		ch.Changed = have == nil || len(want.Addresses) > len(have.Addresses)
		if !ch.Changed {
			return have, nil
		}
		return want, nil
	})
}

func (n *namesAPI) removeName(r *http.Request) (any, error) {
	k, err := n.nameKey(r)
	if err != nil {
		return nil, err
	}
	var remove []netip.Addr
	for _, text := range r.URL.Query()["address"] {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return nil, api.Invalid("address", text, "give an IP address of the name")
		}
		remove = append(remove, a.Unmap())
	}
	ch := api.Change{Changed: true, FQDN: k.fqdn(n.domain)}
	return &ch, n.names.EditName(r.Context(), k.tenant, k.network, k.name, func(have *zone.Name) (*zone.Name, error) {
		if have == nil {
			return nil, api.NotFound("nobody added a name %s in network %s: flanneld dns list shows those that were", k.name, k.network)
		}
		if len(remove) == 0 {
			return nil, nil
		}
		for _, a := range remove {
			if !slices.Contains(have.Addresses, a) {
				return nil, api.NotFound("%s has no address %s, only %s: nothing was changed", k.name, a, texts(have.Addresses))
			}
		}
		want := *have
		want.Addresses = slices.DeleteFunc(slices.Clone(have.Addresses), func(a netip.Addr) bool { return slices.Contains(remove, a) })
		ch.Addresses = want.Addresses
		if len(want.Addresses) == 0 {
			return nil, nil
		}
		return &want, nil
	})
}

// key of a service or a name.
type key struct{ tenant, network, name string }

// pathKey is the path's key. There is one network yet.
func pathKey(r *http.Request) (key, error) {
	k := key{strings.ToLower(r.PathValue("tenant")), strings.ToLower(r.PathValue("network")), strings.ToLower(r.PathValue("name"))}
	if k.tenant != endpoint.DefaultTenant || k.network != endpoint.DefaultNetwork {
		return k, api.NotFound("there is no network %q of tenant %q: the pod network is %q", k.network, k.tenant, endpoint.DefaultNetwork)
	}
	return k, nil
}

// same refuses a body that is about something else.
func (k key) same(tenant, network, name string) error {
	if cmp.Or(tenant, k.tenant) != k.tenant || cmp.Or(network, k.network) != k.network || !strings.EqualFold(cmp.Or(name, k.name), k.name) {
		return api.Invalid("name", tenant+"/"+network+"/"+name, "the path says "+k.tenant+"/"+k.network+"/"+k.name+": leave it out, or make them equal")
	}
	return nil
}

// fqdn is the full name of an added name.
func (k key) fqdn(domain string) string {
	if k.tenant != endpoint.DefaultTenant {
		return k.name + "." + k.network + "." + k.tenant + "." + domain
	}
	return k.name + "." + k.network + "." + domain
}

func texts[T fmt.Stringer](xs []T) string { return joined(xs, " ") }

func joined[T fmt.Stringer](xs []T, between string) string {
	var out []string
	for _, x := range xs {
		out = append(out, x.String())
	}
	return strings.Join(out, between)
}
