package endpoint

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/flanneld/flanneld/ipam"
)

// FromRecord is the endpoint of the pod network that an attachment of this
// host is. What the engine gave and cannot be part of one is left out; Notes
// tells what. It is nil if no key can be made of r.
func FromRecord(r ipam.Record, host, identity string) *Endpoint {
	n := namesOf(r)
	e := &Endpoint{
		Tenant: DefaultTenant, Network: DefaultNetwork, ID: id(host, r.ContainerID, r.IfName),
		Host: host, Identity: identity, Container: r.ContainerID, IfName: r.IfName, MAC: mac(r.MAC),
		Namespace: n.namespace, Names: n.names,
	}
	for _, p := range r.Addresses {
		a := p.Addr().Unmap()
		if usable(a) && !slices.Contains(e.Addresses, a) && len(e.Addresses) < maxAddresses {
			e.Addresses = append(e.Addresses, a)
		}
	}
	e.Labels, _ = labelsOf(r)
	if _, _, remedy := e.wrong(); remedy != "" {
		return nil
	}
	return e
}

// Notes say which names and labels FromRecord left out, and why. They are
// stable text, none if nothing was.
func Notes(r ipam.Record) []string {
	_, notes := labelsOf(r)
	notes = slices.Concat(namesOf(r).notes, notes)
	for i, n := range notes {
		notes[i] = fmt.Sprintf("container %.12s, interface %.15s: %s", r.ContainerID, r.IfName, n)
	}
	return notes
}

// named is what becomes of a record's names.
type named struct {
	namespace string
	names     []string
	notes     []string
}

func namesOf(r ipam.Record) named {
	var n named
	if r.Namespace != "" {
		ns, ok := Label(r.Namespace)
		if !ok {
			n.note("namespace", r.Namespace, "is no DNS label: the container has no names")
			return n
		}
		if n.namespace = ns; Reserved(ns) {
			n.note("namespace", r.Namespace, "is reserved for services and addresses of pods: the container has no names")
			return n
		}
	}
	// An engine may give the beginning of the id as an alias. That name every
	// container has. As its own name, which is the first, it counts.
	short := strings.ToLower(r.ContainerID[:min(12, len(r.ContainerID))])
	for i, s := range r.Names {
		name, ok := Label(s)
		switch {
		case !ok:
			n.note("name", s, "is no DNS label (up to 63 letters, digits, - and _): it is left out")
		case i > 0 && name == short || slices.Contains(n.names, name):
		case len(n.names) == maxNames:
			n.note("name", s, fmt.Sprintf("is one more than %d: it is left out", maxNames))
		default:
			n.names = append(n.names, name)
		}
	}
	return n
}

func (n *named) note(what, value, why string) {
	n.notes = append(n.notes, what+" "+quote(value)+" "+why)
}

// labelsOf takes labels in the order of their keys until there is no more
// space.
func labelsOf(r ipam.Record) (labels map[string]string, notes []string) {
	size := 0
	for _, k := range slices.Sorted(maps.Keys(r.Labels)) {
		v := r.Labels[k]
		switch {
		case !isLabelPair(k, v):
			notes = append(notes, "label "+quote(k)+" is empty, too long or not printable: it is left out")
		case size+len(k)+len(v) > maxLabels:
			notes = append(notes, fmt.Sprintf("label %s is left out: more than %d bytes of labels", quote(k), maxLabels))
		default:
			if labels == nil {
				labels = make(map[string]string, len(r.Labels))
			}
			labels[k] = v
			size += len(k) + len(v)
		}
	}
	return labels, notes
}
