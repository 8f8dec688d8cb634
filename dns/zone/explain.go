package zone

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/service"
)

// Explanation is an answer with what it comes from, for people.
type Explanation struct {
	Name string `json:"name"` // in full, with the dot at the end
	Type string `json:"type"`
	// Zone of ours that the name is in; "" if it is asked upstream.
	Zone       string   `json:"zone,omitempty"`
	Rcode      string   `json:"rcode,omitempty"` // NOERROR, NXDOMAIN or SERVFAIL; "" without Zone
	Answers    []Record `json:"answers"`
	Additional []Record `json:"additional,omitempty"`
	// Outside is the name of another's zone, in full, that the last of Answers,
	// an alias, leads to: upstreams are asked what it has.
	Outside string `json:"outside,omitempty"`
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
	// frontend", "added by hand"; "" if from the zone itself.
	Source string `json:"source,omitempty"`
}

// LeftOut is what is no answer.
type LeftOut struct {
	Data   string `json:"data"`
	Source string `json:"source,omitempty"`
	Why    string `json:"why"`
}

// mostLeftOut are shown; the Notes tell how many more there are.
const mostLeftOut = 50

// Explain is Lookup for people. name is written with dots, in any case, and
// may lack the one at the end.
func (z *Zone) Explain(name string, qtype uint16) Explanation {
	x := Explanation{Name: name, Type: typeText(qtype)}
	wire, ok := Wire(name)
	if !ok {
		x.Notes = []string{fmt.Sprintf("%.300q is not a name", name)}
		return x
	}
	x.Name = Text(wire)
	a, ours := z.Lookup(wire, qtype)
	if !ours {
		return x
	}
	x.Zone, x.Rcode = Text(a.Apex), "NOERROR"
	p, _ := z.find(wire)
	e := explainer{z: z, x: &x, p: &p, wire: wire, qtype: qtype}
	x.Answers = e.records(a.sets())
	x.Additional = e.records(a.Extra)
	if a.Outside != nil {
		x.Outside = Text(a.Outside)
	}
	switch {
	case p.aliased():
		e.alias(&a)
	case a.Unknown:
		e.unknown()
	case a.NameError:
		x.Rcode = "NXDOMAIN"
		e.others(wire)
	case p.kind == between:
		e.note("there are names below this one, but it has no records itself")
	case p.svc != nil && (p.kind == serving || p.kind == ported):
		e.service(p.svc)
	case p.node != nil:
		for i := range p.node.len() {
			if ep, ok := p.node.source(i).(*endpoint.Endpoint); ok {
				e.leftOut(ep, p.svc)
			}
		}
	}
	if a.NoData && a.Set.Type == 0 && p.kind != nothing && p.kind != between && len(x.LeftOut) == 0 {
		e.note("the name exists, but has no records of type " + x.Type)
	}
	if n := len(x.LeftOut) - mostLeftOut; n > 0 {
		x.LeftOut = x.LeftOut[:mostLeftOut]
		e.note(fmt.Sprintf("%d more are left out", n))
	}
	return x
}

// explainer fills in x for one question.
type explainer struct {
	z     *Zone
	x     *Explanation
	p     *place
	wire  []byte
	qtype uint16
}

func (e *explainer) note(text string) { e.x.Notes = append(e.x.Notes, text) }

// records are sets as text.
func (e *explainer) records(sets []Set) []Record {
	var list []Record
	for _, s := range sets {
		owner, at := e.x.Name, e
		if s.Owner != nil {
			owner = Text(s.Owner)
			p, _ := e.z.find(s.Owner)
			at = &explainer{z: e.z, p: &p}
		}
		for _, d := range s.data() {
			list = append(list, Record{Name: owner, TTL: e.z.ttl, Type: typeText(s.Type), Data: dataText(s.Type, d), Source: at.sourceOf(s.Type, d)})
		}
	}
	return list
}

// sets are the answer section.
func (a *Answer) sets() []Set {
	if a.Set.Type == 0 {
		return nil
	}
	return append([]Set{a.Set}, a.More...)
}

// data is that of each record.
func (s *Set) data() [][]byte {
	all := s.Data
	for _, a := range s.Addrs {
		all = append(all, a.AsSlice())
	}
	return all
}

// sourceOf tells where a record comes from.
func (e *explainer) sourceOf(t uint16, data []byte) string {
	switch t {
	case typeSRV, typeCNAME:
		return text(e.p.svc.of)
	case typePTR:
		for _, n := range e.z.pointersTo(e.p.node, e.p.addr) {
			if n.of != nil && slices.Equal(n.name, data) {
				return text(n.of)
			}
		}
		return "this host's name server"
	case typeA, typeAAAA:
	default:
		return ""
	}
	a, _ := netip.AddrFromSlice(data)
	if e.p.kind == top || e.p.kind == server {
		return "this host's name server"
	}
	if v := e.p.svc; v != nil && (!v.direct() || slices.Contains(v.of.Endpoints, a)) {
		return text(v.of)
	}
	n, ok := e.z.byAddress(a)
	if !ok {
		return ""
	}
	for i := range n.len() {
		if s := n.source(i); e.has(s) {
			return text(s)
		}
	}
	return ""
}

// has tells whether the answer may come from s.
func (e *explainer) has(s source) bool {
	ep, ok := s.(*endpoint.Endpoint)
	if e.p.svc != nil {
		return ok && e.p.svc.of.Selects(ep) && !e.z.state.outOf(e.p.svc.of, ep)
	}
	if e.p.node == nil || ok && e.z.state.out(ep) {
		return false
	}
	for i := range e.p.node.len() {
		if e.p.node.source(i) == s {
			return true
		}
	}
	return false
}

// text is how a source is called.
func text(s source) string {
	switch s := s.(type) {
	case *endpoint.Endpoint:
		name := ""
		namesOf(s, func(label string) bool {
			name = label
			return false
		})
		if name == "" {
			name = fmt.Sprintf("%.12s", s.Container)
		}
		return "container " + name + " on " + s.Host
	case *service.Service:
		return "service " + s.Name
	}
	return "added by hand"
}

// leftOut notes why an endpoint is no answer, if it is none, for a service or,
// without one, for its own names.
func (e *explainer) leftOut(ep *endpoint.Endpoint, v *serviceNode) {
	var sick []string
	for _, name := range slices.Sorted(maps.Keys(ep.Unhealthy)) {
		if v == nil || name == v.of.Name {
			sick = append(sick, "service "+name+": "+ep.Unhealthy[name])
		}
	}
	switch {
	case e.z.state.dead(ep):
		e.leave(ep, e.z.state.Dead[ep.Host])
	case len(sick) > 0:
		e.leave(ep, "unhealthy for "+strings.Join(sick, "; "))
	}
}

// leave notes that ep is no answer.
func (e *explainer) leave(ep *endpoint.Endpoint, why string) {
	for _, a := range ep.Addresses {
		if e.p.addr.IsValid() && e.p.addr != a || (e.qtype == typeA || e.qtype == typeAAAA) && e.qtype != typeOf(a) {
			continue
		}
		e.x.LeftOut = append(e.x.LeftOut, LeftOut{Data: a.String(), Source: text(ep), Why: why})
	}
}

// service tells which endpoints of a service are no answers.
func (e *explainer) service(v *serviceNode) {
	if !v.direct() {
		e.note(fmt.Sprintf("service %s stands for its virtual IP, with %d endpoints behind it", v.of.Name, e.usable(v)))
	}
	for _, m := range v.members {
		if e.leftOut(m, v); e.p.port != nil {
			e.unnamed(m, v)
		}
	}
	if len(v.of.Selector) == 0 {
		e.note("service " + v.of.Name + " has no selector: its endpoints are those that are listed")
		return
	}
	// Who was perhaps meant: some of the labels, or the service's own name.
	for _, ep := range e.z.state.Endpoints {
		if ep.Tenant != v.of.Tenant || ep.Network != v.of.Network {
			continue
		}
		matching := 0
		var missing []string
		for k, want := range v.of.Selector {
			if have, ok := ep.Labels[k]; ok && have == want {
				matching++
			} else if ok {
				missing = append(missing, fmt.Sprintf("%s is %s, not %s", k, have, want))
			} else {
				missing = append(missing, fmt.Sprintf("%s=%s is missing", k, want))
			}
		}
		if len(missing) == 0 || matching == 0 && !slices.Contains(ep.Names, v.of.Name) {
			continue
		}
		slices.Sort(missing)
		e.leave(ep, "labels do not match: "+strings.Join(missing, ", "))
	}
}

// unnamed notes that an endpoint lacks the port that is asked for.
func (e *explainer) unnamed(ep *endpoint.Endpoint, v *serviceNode) {
	i := slices.IndexFunc(v.of.Ports, func(p service.Port) bool { return p.Name == e.p.port.name && p.Protocol == e.p.port.proto })
	name := v.of.Ports[i].TargetName
	if name == "" || namedPort(ep, name) > 0 || e.z.state.outOf(v.of, ep) {
		return
	}
	if have, ok := ep.Labels[service.LabelPort+name]; ok {
		e.leave(ep, fmt.Sprintf("its label %s%s is %s, which is no port", service.LabelPort, name, have))
	} else {
		e.leave(ep, fmt.Sprintf("it has no port %s: label %s%s is missing", name, service.LabelPort, name))
	}
}

// alias tells where an alias leads.
func (e *explainer) alias(a *Answer) {
	svc := e.p.svc.of
	switch {
	case a.Outside != nil:
		e.note(fmt.Sprintf("service %s is an alias of %s, which upstreams are asked for", svc.Name, e.x.Outside))
	case a.Unknown && e.z.state.Partial:
		e.unknown()
	case a.Unknown:
		e.x.Rcode = "SERVFAIL"
		e.note(fmt.Sprintf("service %s is an alias of %s, which leads in a circle: flanneld service update %s --external another name", svc.Name, Text(e.p.svc.alias), svc.Name))
	case a.NameError:
		e.x.Rcode = "NXDOMAIN"
		e.note(fmt.Sprintf("service %s is an alias of %s, and there is no such name", svc.Name, Text(e.p.svc.alias)))
	case a.NoData:
		e.note(fmt.Sprintf("service %s is an alias of %s, which has no records of type %s", svc.Name, Text(e.p.svc.alias), e.x.Type))
	default:
		e.note(fmt.Sprintf("service %s is an alias of %s", svc.Name, Text(e.p.svc.alias)))
	}
}

// unknown tells that nothing can be told yet.
func (e *explainer) unknown() {
	e.x.Rcode = "SERVFAIL"
	e.note("etcd could not be asked since flanneld was started: whether the name exists is not known")
}

// usable counts the answers behind a service.
func (e *explainer) usable(v *serviceNode) int {
	n := len(v.of.Endpoints)
	for _, m := range v.members {
		if !e.z.state.outOf(v.of, m) {
			n++
		}
	}
	return n
}

// others notes where a name that does not exist may have been looked for.
func (e *explainer) others(wire []byte) {
	var at [maxLabels]uint8
	n, _ := split(wire, &at)
	if n <= e.z.labels || e.x.Zone != Text(e.z.apex) {
		return
	}
	first := string(label(wire, at[0]))
	const most = 10
	note := func(name []byte, s source) {
		if name != nil && len(e.x.Notes) < most {
			e.note(fmt.Sprintf("%s is %s", Text(name), text(s)))
		}
	}
	st := &e.z.state
	for _, ep := range st.Endpoints {
		if ep.Tenant != st.Tenant {
			continue
		}
		parent := st.parent(ep)
		namesOf(ep, func(label string) bool {
			if label == first && parent == "" && len(e.x.Notes) < most {
				e.note(fmt.Sprintf("%s has no names: its namespace %s is reserved", text(ep), st.podSpace(ep)))
			} else if label == first {
				note(compose(e.z.base, label, parent), ep)
			}
			return true
		})
	}
	for _, s := range st.Services {
		if s.Tenant == st.Tenant && s.Name == first {
			note(e.z.serviceName(s), s)
		}
	}
}
