package service

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/kernel/rules"
)

// Problem is what keeps a Table from making something as it is asked for.
type Problem struct {
	// Service, Published or Endpoint has it, the others are nil.
	Service   *Service
	Published *Publication
	Endpoint  *endpoint.Endpoint
	Text      string // what it is, and what would cure it
}

func (p *Problem) Error() string {
	if e := p.Endpoint; e != nil {
		return fmt.Sprintf("container %.12s on %.60s: %s", e.Container, e.Host, p.Text)
	}
	return (&taker{service: p.Service, published: p.Published}).text() + ": " + p.Text
}

func (k *taker) text() string {
	if s := k.service; s != nil {
		return "service " + s.Name + " of network " + s.Network
	}
	return fmt.Sprintf("published port %d/%s of %.60s", k.published.Port, k.published.Protocol, k.published.Host)
}

// trouble notes the problems of k, instead of those that it had.
func (t *Table) trouble(k *taker, problems []error) {
	if len(k.problems)+len(problems) == 0 {
		return
	}
	t.problemsOld = true
	if k.problems = problems; len(problems) > 0 {
		t.troubled[k] = true
	} else {
		delete(t.troubled, k)
	}
}

// listProblems makes the list of all.
func (t *Table) listProblems() []error {
	var list []error
	for k := range t.troubled {
		list = append(list, k.problems...)
	}
	for at := range t.contested {
		first := t.places[at]
		for o := first.next; o != nil; o = o.next {
			if o.by != first.by {
				list = append(list, &Problem{Service: o.by.service, Published: o.by.published, Text: lost(o.front, first.by)})
			}
		}
	}
	for e := range t.odd {
		list = append(list, &Problem{Endpoint: e, Text: fmt.Sprintf("its label %s is %s and counts as 1: it must be from 1 to %d", LabelWeight, quote(e.Labels[LabelWeight]), maxWeight)})
	}
	slices.SortFunc(list, func(a, b error) int { return cmp.Compare(a.Error(), b.Error()) })
	return slices.CompactFunc(list, func(a, b error) bool { return a.Error() == b.Error() })
}

// lost says that a frontend is another's already. A node port is one thing at
// however many addresses.
func lost(f *rules.Frontend, holder *taker) string {
	what, other := fmt.Sprintf("port %d/%s at %s", f.Port, protocolName(f.Protocol), f.Addr), "another address or port"
	if f.Node {
		what, other = fmt.Sprintf("port %d/%s of this host", f.Port, protocolName(f.Protocol)), "another port"
	}
	return what + " is taken by " + holder.text() + ": give one of the two " + other
}
