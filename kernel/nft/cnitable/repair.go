package cnitable

import (
	"errors"

	"github.com/flanneld/flanneld/kernel/nlbatch"
	"golang.org/x/sys/unix"
)

// Present is what the tables held at one moment.
type Present struct {
	elements map[slot]struct{}
	rules    map[chain]int // how many
}

type slot struct {
	family uint8
	set    string
	key    string
}

type chain struct {
	family uint8
	name   string
}

// Present reads both tables: some requests, however many attachments there
// are.
func (c *Table) Present() (*Present, error) {
	p := &Present{elements: map[slot]struct{}{}, rules: map[chain]int{}}
	for _, family := range []uint8{unix.NFPROTO_INET, unix.NFPROTO_BRIDGE} {
		if err := c.countRules(family, p.rules); err != nil {
			return nil, err
		}
	}
	for _, s := range cniSets {
		list, err := c.list(s)
		if err != nil {
			return nil, err
		}
		for _, e := range list {
			p.elements[slot{s.family, s.name, string(e.key)}] = struct{}{}
		}
	}
	return p, nil
}

// countRules counts the rules of one table by chain.
func (c *Table) countRules(family uint8, count map[chain]int) error {
	var m messages
	m.message(unix.NFT_MSG_GETRULE, family, unix.NLM_F_DUMP)
	m.String(unix.NFTA_RULE_TABLE, Name)
	for b, err := range c.c.Get(&m.Batch) {
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return filterError(err)
		}
		if len(b) < 4 {
			continue
		}
		for kind, data := range nlbatch.Attrs(b[4:]) {
			if kind == unix.NFTA_RULE_CHAIN {
				count[chain{family, unix.ByteSliceToString(data)}]++
			}
		}
	}
	return nil
}

// Lacks tells whether something of an attachment was not there.
func (p *Present) Lacks(a Attachment) bool {
	if p.lacksRules(a) {
		return true
	}
	for _, e := range elementsOf(a) {
		if _, ok := p.elements[slot{e.family, e.set, string(e.key)}]; !ok {
			return true
		}
	}
	return false
}

// lacksRules compares exactly: in tables of ours a rule more is as wrong as
// one less.
func (p *Present) lacksRules(a Attachment) bool {
	for _, ch := range chainsOf(a) {
		if p.rules[chain{ch.family, ch.name}] != ch.rules {
			return true
		}
	}
	return false
}

// Repair puts back what Lacks found lacking. The caller keeps others from
// removing the attachment meanwhile.
func (c *Table) Repair(a Attachment, p *Present) error {
	if !p.lacksRules(a) {
		return c.Add(a, nil)
	}
	if err := c.write(a, []Attachment{a}); err != nil {
		return err
	}
	for _, ch := range chainsOf(a) {
		p.rules[chain{ch.family, ch.name}] = ch.rules
	}
	return nil
}
