package endpoint

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"

	"github.com/flanneld/flanneld/store"
	"github.com/flanneld/flanneld/subnet"
)

// reader parses endpoints, of which there are many. What several of them
// have, it keeps once. It belongs to one goroutine.
type reader struct {
	prefix string            // of their keys
	texts  map[string]string // namespaces, identities of hosts
	labels map[string]map[string]string
	v      value // that is being read
}

// maxKept bounds each of a reader's maps: what does not fit is as good, and
// larger.
const maxKept = 4096

// value is an endpoint's JSON.
type value struct {
	Host, Identity, Container, IfName string
	Addresses                         []string
	MAC, Namespace                    string
	Names                             []string
	Labels                            json.RawMessage
	Unhealthy                         map[string]string
}

func newReader(etcdPrefix string) *reader {
	return &reader{prefix: Prefix(etcdPrefix), texts: map[string]string{}, labels: map[string]map[string]string{}}
}

// parse is Parse. The endpoint shares memory with the key, none with the value.
func (r *reader) parse(kv store.KV) (*Endpoint, error) {
	e := &Endpoint{revision: kv.ModRevision}
	if err := e.parseKey(r.prefix, kv.Key); err != nil {
		return nil, err
	}
	if len(kv.Value) > maxSize {
		return nil, &subnet.RecordError{Key: kv.Key, Value: fmt.Sprintf("%d bytes", len(kv.Value)), Remedy: "the value must be at most 64 KiB; delete the key"}
	}
	labels, err := r.decode(kv.Value)
	if err != nil {
		return nil, &subnet.RecordError{Key: kv.Key, Value: quote(string(kv.Value)), Remedy: "the value must be an endpoint's JSON object (" + quote(err.Error()) + "); delete the key"}
	}
	v := &r.v
	e.Host, e.Identity, e.Container, e.IfName = v.Host, v.Identity, v.Container, v.IfName
	e.MAC, e.Namespace, e.Names, e.Labels = v.MAC, v.Namespace, v.Names, labels
	if len(v.Unhealthy) > 0 {
		e.Unhealthy = v.Unhealthy
	}
	if len(v.Addresses) > 0 {
		e.Addresses = make([]netip.Addr, 0, len(v.Addresses))
	}
	for _, s := range v.Addresses {
		a, err := netip.ParseAddr(s)
		if err != nil || !usable(a) {
			return nil, &subnet.RecordError{Key: kv.Key, Field: "Addresses", Value: quote(s), Remedy: "must be unicast addresses of the container; delete the key"}
		}
		e.Addresses = append(e.Addresses, a)
	}
	if field, value, remedy := e.wrong(); remedy != "" {
		return nil, &subnet.RecordError{Key: kv.Key, Field: field, Value: value, Remedy: remedy + "; delete the key"}
	}
	r.settle(e)
	return e, nil
}

// decode reads a value and returns its labels.
func (r *reader) decode(b []byte) (labels map[string]string, err error) {
	r.v = value{Addresses: r.v.Addresses[:0], Names: r.v.Names[:0]}
	p := plain{rest: string(b)}
	if p.value(&r.v) {
		return r.labelsOf(p.labels)
	}
	r.v = value{}
	if err := json.Unmarshal(b, &r.v); err != nil {
		return nil, err
	}
	return r.labelsOf(string(r.v.Labels))
}

// labelsOf reads labels. Containers of one image have the same ones.
func (r *reader) labelsOf(text string) (map[string]string, error) {
	if text == "" {
		return nil, nil
	}
	if labels, ok := r.labels[text]; ok {
		return labels, nil
	}
	var labels map[string]string
	if err := json.Unmarshal([]byte(text), &labels); err != nil {
		return nil, err
	}
	if len(labels) == 0 {
		labels = nil
	}
	if len(r.labels) < maxKept {
		r.labels[strings.Clone(text)] = labels
	}
	return labels, nil
}

// settle gives a valid e texts that it may keep: parts of its key, those that
// are known already, and copies of the others, all in one place.
func (r *reader) settle(e *Endpoint) {
	host, rest := e.ID[:len(e.Host)], e.ID[len(e.Host)+1:]
	e.Host, e.Container, e.IfName = host, rest[:len(e.Container)], rest[len(e.Container)+1:]
	e.Identity, e.Namespace = r.keep(e.Identity), r.keep(e.Namespace)
	var b strings.Builder
	size := len(e.MAC)
	for _, n := range e.Names {
		size += len(n)
	}
	b.Grow(size)
	b.WriteString(e.MAC)
	for _, n := range e.Names {
		b.WriteString(n)
	}
	text := b.String()
	e.MAC, text = text[:len(e.MAC)], text[len(e.MAC):]
	if len(e.Names) == 0 {
		e.Names = nil
		return
	}
	names := make([]string, len(e.Names))
	for i, n := range e.Names {
		names[i], text = text[:len(n)], text[len(n):]
	}
	e.Names = names
}

// keep returns a text that is equal to s and is there once.
func (r *reader) keep(s string) string {
	if s == "" {
		return ""
	}
	if kept, ok := r.texts[s]; ok {
		return kept
	}
	s = strings.Clone(s)
	if len(r.texts) < maxKept {
		r.texts[s] = s
	}
	return s
}

// plain reads the JSON that a Publisher writes, far faster than encoding/json,
// which reads the rest: other fields (of those that are ill, which are few),
// another order, escapes, nulls, spaces.
// What it finds are parts of the text.
type plain struct {
	rest   string
	bad    bool   // it is not plain
	labels string // their JSON
}

// value reads a whole object.
func (p *plain) value(v *value) bool {
	p.need(`{"Host":`)
	v.Host = p.text()
	p.need(`,"Identity":`)
	v.Identity = p.text()
	p.need(`,"Container":`)
	v.Container = p.text()
	p.need(`,"IfName":`)
	v.IfName = p.text()
	p.need(`,"Addresses":`)
	v.Addresses = p.list(v.Addresses)
	p.need(`,"MAC":`)
	v.MAC = p.text()
	if p.has(`,"Namespace":`) {
		v.Namespace = p.text()
	}
	if p.has(`,"Names":`) {
		v.Names = p.list(v.Names)
	}
	if p.has(`,"Labels":`) {
		p.labels = p.object()
	}
	p.need("}")
	return !p.bad && p.rest == ""
}

func (p *plain) has(s string) bool {
	rest, ok := strings.CutPrefix(p.rest, s)
	p.rest = rest
	return ok
}

func (p *plain) need(s string) { p.bad = !p.has(s) || p.bad }

func (p *plain) text() string {
	p.need(`"`)
	for i, c := range []byte(p.rest) {
		switch {
		case c == '"':
			s := p.rest[:i]
			p.rest = p.rest[i+1:]
			return s
		case c < ' ' || c == '\\' || c >= utf8.RuneSelf:
			p.bad = true
			return ""
		}
	}
	p.bad = true
	return ""
}

// list appends to into.
func (p *plain) list(into []string) []string {
	p.need("[")
	if p.has("]") {
		return into
	}
	for more := true; more && !p.bad; more = p.has(",") {
		into = append(into, p.text())
	}
	p.need("]")
	return into
}

// object passes over one of texts and returns it.
func (p *plain) object() string {
	began := p.rest
	p.need("{")
	if p.has("}") {
		return ""
	}
	for more := true; more && !p.bad; more = p.has(",") {
		p.text()
		p.need(":")
		p.text()
	}
	p.need("}")
	return began[:len(began)-len(p.rest)]
}
