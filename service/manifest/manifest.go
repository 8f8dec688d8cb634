package manifest

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/service"
)

// File is what a manifest says.
type File struct {
	Services []Parsed
	Ignored  []Note // by line
}

// Parsed is a service, valid as service.ValidateNew has it, of the default
// tenant. Where the file leaves the choice, VirtualIPs are none and node ports
// service.AutoPort.
type Parsed struct {
	Service *service.Service
	Line    int
	places  places
}

// Place is the line of a field of the service, as a service.FieldError names
// it, and what it is called in the file; the service's own line and "" if it is
// not there.
func (p Parsed) Place(field string) (line int, name string) {
	if at, ok := p.places.find(field); ok {
		return at.line, at.path
	}
	return p.Line, ""
}

// Note is a field that is ignored.
type Note struct {
	Line  int
	Field string
	Why   string
}

func (n Note) String() string {
	return fmt.Sprintf("line %d: %s is ignored: %s", n.Line, n.Field, n.Why)
}

// Error is a mistake in a manifest.
type Error struct {
	Line   int
	Field  string // as the file calls it; "" of the file itself
	Value  string // fit for one line; "" if it is missing
	Remedy string
}

func (e *Error) Error() string {
	out := fmt.Sprintf("line %d: ", e.Line) + e.Field
	if e.Value != "" {
		out += " = " + e.Value
	}
	if e.Field == "" {
		return out + e.Remedy
	}
	return out + ": " + e.Remedy
}

// place is where in the file a field is.
type place struct {
	line int
	path string
}

// places by the fields of service.Service.
type places map[string]place

// find looks for a field, and if it is not there for what it is part of.
func (p places) find(field string) (place, bool) {
	for field != "" {
		if at, ok := p[field]; ok {
			return at, true
		}
		field = field[:max(strings.LastIndexAny(field, ".["), 0)]
	}
	return place{}, false
}

// Parse reads one or more documents of YAML or JSON. Each is a service in the
// words of the command line (kind: Service, name, and the names of Fields), or
// Kubernetes' (apiVersion: v1, kind: Service or List), of which what does not
// exist here is noted as ignored. All mistakes are told, by line; what is
// returned beside them is of no use.
func Parse(text []byte) (File, []*Error) {
	r := &reader{names: map[string]int{}, claims: map[string]int{}}
	d := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var doc yaml.Node
		err := d.Decode(&doc)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			r.errs = append(r.errs, syntax(err, text))
			break
		}
		for _, n := range doc.Content {
			r.document(n, "", true)
		}
	}
	if len(r.file.Services)+len(r.errs) == 0 {
		r.fail(1, "", "", "there is no service in the file")
	}
	slices.SortStableFunc(r.file.Ignored, func(a, b Note) int { return cmp.Compare(a.Line, b.Line) })
	slices.SortStableFunc(r.errs, func(a, b *Error) int { return cmp.Compare(a.Line, b.Line) })
	return r.file, r.errs
}

// syntax is an error of the YAML library, whose texts are "yaml: line 3: …".
func syntax(err error, text []byte) *Error {
	e := &Error{Line: 1, Remedy: strings.TrimPrefix(err.Error(), "yaml: ")}
	if m := regexp.MustCompile(`^line (\d+): `).FindStringSubmatch(e.Remedy); m != nil {
		e.Line, _ = strconv.Atoi(m[1]) // digits
		e.Remedy = e.Remedy[len(m[0]):]
	}
	if strings.Contains(e.Remedy, "tab character") || strings.Contains(e.Remedy, "cannot start any token") {
		lines := strings.Split(string(text), "\n")
		for line := e.Line; line <= min(e.Line+1, len(lines)); line++ { // the library tells of either
			said := lines[line-1]
			if indent := said[:len(said)-len(strings.TrimLeft(said, " \t"))]; strings.Contains(indent, "\t") {
				return &Error{Line: line, Remedy: "indent with spaces, YAML has no tabs"}
			}
		}
	}
	e.Remedy = "is neither YAML nor JSON: " + clean(e.Remedy)
	return e
}

// reader reads a file.
type reader struct {
	file   File
	errs   []*Error
	names  map[string]int // keys of services, by the line of the first
	claims map[string]int // virtual addresses and node ports, too
}

func (r *reader) fail(line int, field, value, remedy string) {
	r.errs = append(r.errs, &Error{line, field, value, remedy})
}

func (r *reader) note(line int, field, why string) {
	r.file.Ignored = append(r.file.Ignored, Note{line, field, why})
}

// document reads one, or an item of a list, whose path ends in a dot.
func (r *reader) document(n *yaml.Node, path string, lists bool) {
	o := r.object(n, strings.TrimSuffix(path, "."))
	if o == nil || len(o.fields) == 0 {
		return // an empty document
	}
	o.prefix = path
	version, hasVersion := r.text(o, "apiVersion")
	kind, hasKind := r.text(o, "kind")
	switch {
	case !hasVersion && (o.has("metadata") || o.has("spec")):
		r.fail(o.line, path+"apiVersion", "", "is missing: v1 for a Kubernetes Service")
	case !hasKind:
		r.fail(o.line, path+"kind", "", "is missing: Service")
	case !hasVersion && kind == "Service":
		r.own(o)
	case !hasVersion:
		r.fail(o.at("kind").Line, path+"kind", quote(kind), "must be Service")
	case version == "v1" && kind == "List" && lists:
		for i, item := range r.list(o, "items") {
			r.document(item, fmt.Sprintf("items[%d].", i), false)
		}
	case version == "v1" && kind == "Service":
		r.kubernetes(o)
	default:
		r.note(o.line, path+"kind "+clean(kind)+" of "+clean(version), "only Service and List of v1 are applied")
	}
}

// done takes a service that was read without mistakes, if it is valid.
func (r *reader) done(s *service.Service, line int, at places, check func(*service.Service) error) {
	if err := check(s); err != nil {
		e, ok := errors.AsType[*service.FieldError](err)
		if !ok {
			e = &service.FieldError{Remedy: err.Error()}
		}
		p, ok := at.find(e.Field)
		if !ok {
			p = place{line, cmp.Or(NameOf(e.Field), e.Field)}
		}
		r.fail(p.line, p.path, e.Value, e.Remedy)
		return
	}
	key := s.Key("")
	if first, ok := r.names[key]; ok {
		r.fail(line, "name", s.Name, fmt.Sprintf("is there twice: the service in line %d has it too", first))
		return
	}
	r.names[key] = line
	for _, c := range s.Claims("") {
		if first, ok := r.claims[c]; ok {
			r.fail(line, s.Name, c[strings.LastIndexByte(c, '/')+1:], fmt.Sprintf("is there twice: the service in line %d has it too", first))
			return
		}
		r.claims[c] = line
	}
	r.file.Services = append(r.file.Services, Parsed{s, line, at})
}

// own reads a service in the words of the command line.
func (r *reader) own(o *object) {
	s := &service.Service{Tenant: endpoint.DefaultTenant, Network: endpoint.DefaultNetwork}
	at, before := places{}, len(r.errs)
	name, ok := r.text(o, "name")
	if !ok {
		r.fail(o.line, o.prefix+"name", "", "is missing")
	}
	s.Name = name
	at["Name"] = o.place("name")
	if network, ok := r.text(o, "network"); ok {
		s.Network = network
		at["Network"] = o.place("network")
	}
	known := []string{"name", "network"}
	for _, f := range Fields() {
		known = append(known, f.Name)
		if !o.has(f.Name) {
			continue
		}
		at[f.Of] = o.place(f.Name)
		r.ownField(o, f, s)
		if f.Of == "Ports" {
			portPlaces(o, s, at)
		}
	}
	for _, k := range o.unused() {
		r.fail(k.Line, o.prefix+clean(k.Value), "", "there is no such field, only "+strings.Join(known, ", "))
	}
	if len(r.errs) > before {
		return
	}
	for i := range s.Ports {
		at[fmt.Sprintf("Ports[%d].NodePort", i)] = cmp.Or(at["NodePort"], at["Ports"])
	}
	r.done(s, o.line, at, Complete)
}

// portPlaces says where each port is, if each is an item of a list.
func portPlaces(o *object, s *service.Service, at places) {
	items := o.at("port").Content
	for i := range s.Ports {
		p := at["Ports"]
		if len(items) == len(s.Ports) {
			p.line = items[i].Line
		}
		p.path = fmt.Sprintf("%s[%d]", p.path, i)
		at[fmt.Sprintf("Ports[%d]", i)] = p
		at[fmt.Sprintf("Ports[%d].Name", i)] = place{p.line, "name of " + p.path}
	}
}

// ownField sets a field of s to the value, or values, it has in o.
func (r *reader) ownField(o *object, f Field, s *service.Service) {
	n := o.take(f.Name)
	if f.Name == "selector" && n.Kind == yaml.MappingNode {
		s.Selector = r.labels(n, o.prefix+f.Name)
		return
	}
	values := []*yaml.Node{n}
	if n.Kind == yaml.SequenceNode && f.list() {
		values = n.Content
	}
	var texts []string
	for i, v := range values {
		v = resolve(v)
		if v.Kind != yaml.ScalarNode {
			r.fail(v.Line, o.prefix+f.Name, "", "must be as on the command line: "+strings.ReplaceAll(f.Usage, "`", ""))
			return
		}
		if v.Tag == "!!null" {
			v = &yaml.Node{Line: v.Line}
		}
		values[i], texts = v, append(texts, v.Value)
	}
	err := f.Set(s, texts)
	if err == nil {
		return
	}
	e, ok := errors.AsType[*ValueError](err)
	if !ok {
		e = &ValueError{"", err.Error()}
	}
	line := n.Line
	for _, v := range values {
		if slices.Contains(parts([]string{v.Value}), e.Value) {
			line = v.Line
			break
		}
	}
	r.fail(line, o.prefix+f.Name, quote(e.Value), e.Remedy)
}
