package manifest

import (
	"fmt"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// object is a mapping that is read field by field.
type object struct {
	line   int
	prefix string // of its fields' paths: "spec."
	fields []pair
}

type pair struct {
	key, value *yaml.Node
	used       bool
}

// resolve follows an alias, which never leads to another.
func resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode && n.Alias != nil {
		return n.Alias
	}
	return n
}

// object makes a mapping of n, called path; nil if it is none, which is a
// mistake, and without fields if it is null.
func (r *reader) object(n *yaml.Node, path string) *object {
	n = resolve(n)
	o := &object{line: n.Line}
	if path != "" {
		o.prefix = path + "."
	}
	if isNull(n) {
		return o
	}
	if n.Kind != yaml.MappingNode {
		r.fail(n.Line, path, "", "must be a mapping: lines of field: value")
		return nil
	}
	first := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		switch before, twice := first[k.Value]; {
		case k.Kind != yaml.ScalarNode || k.Tag == "!!merge":
			r.fail(k.Line, path, "", "has a field whose name is no text: merged and complex keys are not understood, write the fields out")
		case twice:
			r.fail(k.Line, o.prefix+clean(k.Value), "", fmt.Sprintf("is there twice, first in line %d", before))
		default:
			first[k.Value] = k.Line
			o.fields = append(o.fields, pair{key: k, value: resolve(n.Content[i+1])})
		}
	}
	return o
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

// at is the value of a field; nil: it is not there.
func (o *object) at(name string) *yaml.Node {
	for _, p := range o.fields {
		if p.key.Value == name {
			return p.value
		}
	}
	return nil
}

func (o *object) has(name string) bool { return o.at(name) != nil }

// place of a field that is there, or that should be.
func (o *object) place(name string) place {
	p := place{o.line, o.prefix + name}
	if n := o.at(name); n != nil {
		p.line = n.Line
	}
	return p
}

// take is at, and the field counts as understood.
func (o *object) take(name string) *yaml.Node {
	for i, p := range o.fields {
		if p.key.Value == name {
			o.fields[i].used = true
			return p.value
		}
	}
	return nil
}

// unused are the keys of the fields that nobody took.
func (o *object) unused() (out []*yaml.Node) {
	for _, p := range o.fields {
		if !p.used {
			out = append(out, p.key)
		}
	}
	return out
}

// rest notes that what was not taken is ignored; reasons are by field, and
// otherwise is what is said of others.
func (r *reader) rest(o *object, reasons map[string]string, otherwise string) {
	for _, k := range o.unused() {
		why, ok := reasons[k.Value]
		if !ok {
			why = otherwise
		}
		r.note(k.Line, o.prefix+clean(k.Value), why)
	}
}

// child is a mapping within o; without fields if it is not there.
func (r *reader) child(o *object, name string) *object {
	if n := o.take(name); n != nil {
		if c := r.object(n, o.prefix+name); c != nil {
			return c
		}
	}
	return &object{line: o.line, prefix: o.prefix + name + "."}
}

// list is a sequence within o, or nothing.
func (r *reader) list(o *object, name string) []*yaml.Node {
	n := o.take(name)
	if n == nil || isNull(n) {
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		r.fail(n.Line, o.prefix+name, "", "must be a list: lines that begin with a dash")
		return nil
	}
	return n.Content
}

// text of a field; false if it is not there, null or no text.
func (r *reader) text(o *object, name string) (string, bool) {
	n := o.take(name)
	if n == nil || isNull(n) {
		return "", false
	}
	return r.str(n, o.prefix+name)
}

// str is the text that n is.
func (r *reader) str(n *yaml.Node, path string) (string, bool) {
	n = resolve(n)
	switch {
	case n.Kind != yaml.ScalarNode:
		r.fail(n.Line, path, "", "must be a text")
	case n.Tag != "!!str":
		r.fail(n.Line, path, clean(n.Value), "must be a text: put it in quotes")
	default:
		return n.Value, true
	}
	return "", false
}

// number of a field, within bounds; 0 if it is not there, null or wrong.
func (r *reader) number(o *object, name string, least, most int) int {
	n := o.take(name)
	if n == nil || isNull(n) {
		return 0
	}
	v, err := strconv.Atoi(n.Value)
	switch {
	case n.Kind != yaml.ScalarNode:
		r.fail(n.Line, o.prefix+name, "", "must be a number")
	case n.Tag != "!!int":
		r.fail(n.Line, o.prefix+name, quote(n.Value), "must be a number, without quotes")
	case err != nil || v < least || v > most:
		r.fail(n.Line, o.prefix+name, clean(n.Value), fmt.Sprintf("must be from %d to %d", least, most))
	default:
		return v
	}
	return 0
}

// labels is a mapping of texts.
func (r *reader) labels(n *yaml.Node, path string) map[string]string {
	o := r.object(n, path)
	if o == nil || len(o.fields) == 0 {
		return nil
	}
	out := map[string]string{}
	for _, p := range o.fields {
		if v, ok := r.str(p.value, o.prefix+clean(p.key.Value)); ok {
			out[p.key.Value] = v
		}
	}
	return out
}

// clean is s as it is, or in quotes if it does not fit into a line.
func clean(s string) string {
	if len(s) > 60 || strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsGraphic(r) || r == '\ufffd' }) {
		return quote(s)
	}
	return s
}
