package server

import (
	"cmp"
	"errors"
	"net/http"
	"slices"
	"strings"

	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/service"
)

func (n *namesAPI) services(r *http.Request) (any, error) {
	all, err := n.names.Services(r.Context())
	out := api.ServiceList{Services: []api.Service{}}
	for _, s := range all {
		w := Wire(s.Service)
		w.State = &api.ServiceState{Endpoints: s.Endpoints, LeftOut: s.LeftOut}
		out.Services = append(out.Services, w)
	}
	return out, err
}

// service tells about one service, or, with stored, reads it from the store.
func (n *namesAPI) service(r *http.Request) (any, error) {
	k, err := serviceKey(r)
	if err != nil {
		return nil, err
	}
	out := api.ServiceDetail{FQDN: n.serviceName(k), Behind: []api.Behind{}}
	if r.URL.Query().Get("stored") == "true" {
		return &out, n.names.EditService(r.Context(), k.tenant, k.network, k.name, func(have *service.Service) (*service.Service, error) {
			switch {
			case have == nil:
				return nil, noService(k)
			case damaged(have):
				return nil, damage(k)
			}
			out.Service = Wire(have)
			return have, ErrDryRun
		})
	}
	d, err := n.names.Describe(r.Context(), k.tenant, k.network, k.name)
	if err != nil {
		return nil, err
	}
	if d == nil {
		return nil, noService(k)
	}
	out.Service, out.Problems = Wire(d.Service), d.Problems
	out.Behind = append(out.Behind, d.Behind...)
	ready := map[string]bool{} // endpoints, whatever the number of their addresses
	for _, b := range d.Behind {
		of := cmp.Or(b.ID, b.Address.String())
		ready[of] = ready[of] || b.Ready
	}
	out.State = &api.ServiceState{}
	for _, yes := range ready {
		if yes {
			out.State.Endpoints++
		} else {
			out.State.LeftOut++
		}
	}
	return &out, nil
}

func noService(k key) error {
	return api.NotFound("there is no service %s in network %s: flanneld service list shows them", k.name, k.network)
}

// damaged tells whether have stands for a record that cannot be read, see
// Names.EditService. No service that can be read and is of use has nothing.
func damaged(have *service.Service) bool {
	return have != nil && len(differences(Wire(have), Wire(&service.Service{}))) == 0
}

func damage(k key) error {
	return api.Conflict("the record of service %s is damaged, it cannot be read: nothing was changed; write it anew with flanneld service create %s --replace, or remove it with flanneld service delete %s",
		k.name, k.name, k.name)
}

// serviceName is the full name of a service.
func (n *namesAPI) serviceName(k key) string { return k.name + "." + k.network + ".svc." + n.domain }

func (n *namesAPI) putService(r *http.Request) (any, error) {
	k, err := serviceKey(r)
	if err != nil {
		return nil, err
	}
	var body api.Service
	if err := read(r, &body); err != nil {
		return nil, err
	}
	if err := k.same(body.Tenant, body.Network, body.Name); err != nil {
		return nil, err
	}
	body.Tenant, body.Network, body.Name = k.tenant, k.network, k.name
	query := r.URL.Query()
	dry := query.Get("dry_run") == "true"
	ch := api.Change{FQDN: n.serviceName(k)}
	var now *service.Service
	err = n.names.EditService(r.Context(), k.tenant, k.network, k.name, func(have *service.Service) (*service.Service, error) {
		want, changes, err := wanted(body, have)
		if err != nil {
			return nil, err
		}
		now, ch.Fields, ch.Note = want, nil, ""
		for _, d := range changes {
			ch.Fields = append(ch.Fields, d.field)
		}
		ch.Created, ch.Changed = have == nil, have == nil || len(changes) > 0
		if damaged(have) {
			ch.Note = "there is a record of this name that could not be read, or says nothing: it is replaced"
		}
		switch {
		case !ch.Changed && dry:
			now = have
			return have, ErrDryRun
		case !ch.Changed:
			now = have
			return have, nil
		case damaged(have) && query.Get("replace") != "true":
			return nil, damage(k)
		case have != nil && query.Get("replace") != "true":
			return nil, api.Conflict("there is a service %s already, which differs (%s): nothing was changed; add --replace to make it as you say, or delete it first with flanneld service delete %s",
				k.name, joined(changes, "; "), k.name)
		case dry:
			asked := *want // what would be chosen may be something else next time
			asked.Ports = slices.Clone(want.Ports)
			now = &asked
			return want, ErrDryRun
		}
		return want, nil
	})
	if err != nil && !errors.Is(err, ErrDryRun) {
		return nil, err
	}
	// EditService has filled in what it chose.
	w := Wire(now)
	ch.Service, ch.Addresses = &w, w.VirtualIPs
	if ch.Created || slices.Contains(ch.Fields, "node ports") {
		notes := n.names.NodePortNotes(now)
		if ch.Note != "" {
			notes = append(notes, ch.Note)
		}
		ch.Note = strings.Join(notes, "; ")
	}
	return &ch, nil
}

// wanted is what a client asks for, given what there is (nil: nothing).
func wanted(body api.Service, have *service.Service) (*service.Service, []difference, error) {
	if body.Version != "" && (have == nil || version(have) != body.Version) {
		return nil, nil, &api.Error{Status: http.StatusPreconditionFailed, Message: "service " + body.Name +
			" was changed or deleted by somebody else meanwhile: nothing was changed; look at it and try again"}
	}
	want := Domain(body)
	var changes []difference
	if have != nil {
		keep(want, have, body.VirtualIPsAuto)
	}
	if err := want.ValidateNew(); err != nil {
		return nil, nil, err
	}
	if have != nil {
		changes = differences(Wire(have), Wire(want))
	}
	return want, changes, nil
}

func (n *namesAPI) deleteService(r *http.Request) (any, error) {
	k, err := serviceKey(r)
	if err != nil {
		return nil, err
	}
	ch := api.Change{Changed: true, FQDN: n.serviceName(k)}
	return &ch, n.names.EditService(r.Context(), k.tenant, k.network, k.name, func(have *service.Service) (*service.Service, error) {
		if have == nil {
			return nil, noService(k)
		}
		if ch.Note = ""; damaged(have) {
			ch.Note = "the record could not be read, or said nothing: it is removed"
		}
		return nil, nil
	})
}

// serviceKey is the key of a request about a service, whose name is a label.
func serviceKey(r *http.Request) (key, error) {
	k, err := pathKey(r)
	if err == nil && service.CheckLabel("name", k.name) != nil {
		err = api.Invalid("name", r.PathValue("name"), "use letters, digits and dashes, at most 63, such as frontend")
	}
	return k, err
}
