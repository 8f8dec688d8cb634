package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/nlbatch"
)

// frame is what the kernel holds of the table but for elements.
type frame struct {
	exists bool
	flags  uint32            // of the table: none of ours has any
	rules  map[string]uint64 // chains that have rules, with their digests
	chains map[string]hook   // all chains
	sets   map[string]definition
}

// reader asks about the table of services.
type reader struct {
	conn *nlbatch.Conn
}

// dump asks for all of a kind in the table; each gets the attributes.
func (r reader) dump(kind uint16, more func(*nlbatch.Batch), each func(attrs []byte) error) error {
	const table = 1 // of all kinds: NFTA_RULE_TABLE, NFTA_CHAIN_TABLE, NFTA_SET_TABLE, NFTA_SET_ELEM_LIST_TABLE
	var b nlbatch.Batch
	ask(&b, kind, unix.NLM_F_DUMP)
	b.String(table, ServicesTable)
	if more != nil {
		more(&b)
	}
	return r.conn.Dump(&b, func(body []byte) error { return each(after4(body)) })
}

// table looks for the table and its flags.
func (r reader) table() (exists bool, flags uint32, err error) {
	var b nlbatch.Batch
	ask(&b, unix.NFT_MSG_GETTABLE, 0)
	b.String(unix.NFTA_TABLE_NAME, ServicesTable)
	for body, err := range r.conn.Get(&b) {
		if errors.Is(err, unix.ENOENT) {
			return false, 0, nil
		}
		if err != nil {
			return false, 0, fmt.Errorf("look for the table: %w", err)
		}
		return true, uint32(bigEndian(attr(after4(body), unix.NFTA_TABLE_FLAGS))), nil
	}
	return false, 0, nil
}

// rules returns the digests of all chains that have rules.
func (r reader) rules() (map[string]uint64, error) {
	chains := map[string]uint64{}
	h, last := fnv.New64a(), ""
	err := r.dump(unix.NFT_MSG_GETRULE, nil, func(attrs []byte) error {
		if name := attr(attrs, unix.NFTA_RULE_CHAIN); string(name) != last {
			h.Reset()
			last = string(name)
		}
		for _, e := range nlbatch.Attrs(attr(attrs, unix.NFTA_RULE_EXPRESSIONS)) {
			h.Write(attr(e, unix.NFTA_EXPR_NAME))
		}
		h.Write(attr(attrs, unix.NFTA_RULE_USERDATA))
		chains[last[:max(len(last)-1, 0)]] = h.Sum64()
		return nil
	})
	return chains, wrapDump("list rules", err)
}

// chain returns the hook of a chain; it is not there if there is none.
func (r reader) chain(name string) (h hook, there bool, err error) {
	var b nlbatch.Batch
	ask(&b, unix.NFT_MSG_GETCHAIN, 0)
	b.String(unix.NFTA_CHAIN_TABLE, ServicesTable)
	b.String(unix.NFTA_CHAIN_NAME, name)
	for body, err := range r.conn.Get(&b) {
		if errors.Is(err, unix.ENOENT) {
			return hook{}, false, nil
		}
		if err != nil {
			return hook{}, false, fmt.Errorf("look for chain %s: %w", name, err)
		}
		return parseHook(after4(body)), true, nil
	}
	return hook{}, false, nil
}

func parseHook(attrs []byte) hook {
	at := attr(attrs, unix.NFTA_CHAIN_HOOK)
	if at == nil {
		return hook{}
	}
	const drop = 0 // NF_DROP
	return hook{
		typ:      nftables.ChainType(text(attr(attrs, unix.NFTA_CHAIN_TYPE))),
		num:      nftables.ChainHook(bigEndian(attr(at, unix.NFTA_HOOK_HOOKNUM))),
		priority: nftables.ChainPriority(int32(bigEndian(attr(at, unix.NFTA_HOOK_PRIORITY)))),
		drops:    bigEndian(attr(attrs, unix.NFTA_CHAIN_POLICY)) == drop,
	}
}

// frame reads everything but elements.
func (r reader) frame() (f frame, err error) {
	if f.exists, f.flags, err = r.table(); err != nil || !f.exists {
		return f, err
	}
	f.chains, f.sets = map[string]hook{}, map[string]definition{}
	if f.rules, err = r.rules(); err != nil {
		return f, err
	}
	err = r.dump(unix.NFT_MSG_GETCHAIN, nil, func(attrs []byte) error {
		if text(attr(attrs, unix.NFTA_CHAIN_TABLE)) == ServicesTable { // the kernel lists all tables'
			f.chains[text(attr(attrs, unix.NFTA_CHAIN_NAME))] = parseHook(attrs)
		}
		return nil
	})
	if err := wrapDump("list chains", err); err != nil {
		return f, err
	}
	err = r.dump(unix.NFT_MSG_GETSET, nil, func(attrs []byte) error {
		number := func(kind uint16) uint32 { return uint32(bigEndian(attr(attrs, kind))) }
		d := definition{number(unix.NFTA_SET_FLAGS),
			number(unix.NFTA_SET_KEY_TYPE), number(unix.NFTA_SET_KEY_LEN), number(unix.NFTA_SET_DATA_TYPE), number(unix.NFTA_SET_DATA_LEN)}
		if d.dataType == unix.NFT_DATA_VERDICT {
			d.dataLen = 0
		}
		f.sets[text(attr(attrs, unix.NFTA_SET_NAME))] = d
		return nil
	})
	return f, wrapDump("list sets", err)
}

// fits tells whether the table can be mended piece by piece: hooks and types of
// what exists cannot be changed.
func (f frame) fits(plan table) bool {
	if f.flags != 0 {
		return false
	}
	for s := range setID(sets) {
		if d, there := f.sets[s.name()]; !there || d != s.spec().definition() {
			return false
		}
	}
	for _, c := range plan.chains {
		if h, there := f.chains[c.name]; there && h != c.hook {
			return false
		}
	}
	return true
}

// sound is the short look at the table, without elements: whether the rules are
// all there and no others, and run where they should.
func (r reader) sound(want map[string]uint64, plan table) (bool, error) {
	exists, flags, err := r.table()
	if err != nil || !exists || flags != 0 {
		return false, err
	}
	for _, c := range plan.chains {
		if c.hook == (hook{}) {
			continue
		}
		h, there, err := r.chain(c.name)
		if err != nil || !there || h != c.hook {
			return false, err
		}
	}
	have, err := r.rules()
	return err == nil && maps.Equal(have, want), err
}

// elements reads a set; key and data are valid during the call only. Of a map
// to verdicts data is the chain.
func (r reader) elements(s setID, each func(key, data []byte)) error {
	d := s.spec().definition()
	err := r.dump(unix.NFT_MSG_GETSETELEM,
		func(b *nlbatch.Batch) { b.String(unix.NFTA_SET_ELEM_LIST_SET, s.name()) },
		func(attrs []byte) error {
			for _, e := range nlbatch.Attrs(attr(attrs, unix.NFTA_SET_ELEM_LIST_ELEMENTS)) {
				key, data := cutElement(e)
				if len(key) == int(d.keyLen) && (s == shapes || len(data) == int(d.dataLen)) {
					each(key, data)
				}
			}
			return nil
		})
	return wrapDump("list set "+s.name(), err)
}

func cutElement(e []byte) (key, data []byte) {
	for kind, v := range nlbatch.Attrs(e) {
		switch kind {
		case unix.NFTA_SET_ELEM_KEY:
			key = first(v, unix.NFTA_DATA_VALUE)
		case unix.NFTA_SET_ELEM_DATA:
			if data = first(v, unix.NFTA_DATA_VALUE); data == nil {
				data = attr(attr(v, unix.NFTA_DATA_VERDICT), unix.NFTA_VERDICT_CHAIN)
			}
		}
	}
	return key, data
}

// first is attr for the only attribute there is, quicker: there are hundreds of
// thousands of them.
func first(b []byte, kind uint16) []byte {
	if len(b) < 4 {
		return nil
	}
	n := int(binary.NativeEndian.Uint16(b))
	if binary.NativeEndian.Uint16(b[2:])&^unix.NLA_F_NESTED&^unix.NLA_F_NET_BYTEORDER != kind || n < 4 || n > len(b) {
		return nil
	}
	return b[4:n]
}

// wrapDump leaves out that something changed during a dump: what counts is
// asked of the ledger, which goes on being asked.
func wrapDump(what string, err error) error {
	if err == nil || errors.Is(err, nlbatch.ErrInterrupted) {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}
