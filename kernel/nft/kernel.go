package nft

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// elementsPerMessage keeps the list of elements below the 64 KiB that an
// attribute can hold.
const elementsPerMessage = 2000

// elementsPerCommit keeps a transaction well inside the send buffer.
const elementsPerCommit = 100_000

// ours is the table as the library wants it.
func (t table) ours() *nftables.Table { return &nftables.Table{Name: Table, Family: t.family} }

// read returns what the kernel has in our tables.
func (f *Filter) read() (have tables, err error) {
	for i, family := range families() {
		if have[i], err = f.readTable(family); err != nil {
			return have, err
		}
	}
	return have, nil
}

// readTable returns what the kernel has in one of them; nothing if there is
// none. The expressions of rules are not read, their comments tell them.
func (f *Filter) readTable(family nftables.TableFamily) (table, error) {
	t := table{family: family}
	found, err := f.conn.ListTableOfFamily(Table, family)
	if errors.Is(err, fs.ErrNotExist) {
		return t, nil
	} else if err != nil {
		return t, fmt.Errorf("look for the table: %w", err)
	}
	t.exists = true
	// Flags (dormant) are not ours, nor is what this library cannot parse.
	t.broken = found.Flags != 0 || f.readContents(&t) != nil
	return t, nil
}

func (f *Filter) readContents(t *table) error {
	chains, err := f.conn.ListChainsOfTableFamily(t.family)
	if err != nil {
		return fmt.Errorf("list chains: %w", err)
	}
	for _, c := range chains {
		if c.Table.Name != Table {
			continue
		}
		have := chain{name: c.Name, hook: hookOf(c)}
		rs, err := f.conn.GetRules(t.ours(), c)
		if err != nil {
			return fmt.Errorf("list rules of chain %s: %w", c.Name, err)
		}
		for _, r := range rs {
			comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
			have.rules = append(have.rules, rule{comment: comment})
		}
		t.chains = append(t.chains, have)
	}
	sets, err := f.conn.GetSets(t.ours())
	if err != nil {
		return fmt.Errorf("list sets: %w", err)
	}
	for _, s := range sets {
		have := set{name: s.Name, typ: s.KeyType}
		if s.KeyType.Bytes > 0 {
			if have.keys, err = f.gen.elements(t.family, s.Name, int(s.KeyType.Bytes)); err != nil {
				return err
			}
		}
		t.sets = append(t.sets, have)
	}
	return nil
}

func hookOf(c *nftables.Chain) hook {
	if c.Hooknum == nil || c.Priority == nil {
		return hook{}
	}
	return hook{c.Type, *c.Hooknum, *c.Priority, c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop}
}

// write turns have into want and returns how many transactions it took: none
// for tables that are equal, one for each other unless there are very many
// elements.
func (f *Filter) write(have, want tables) (commits int, err error) {
	for i := range want {
		n, err := f.writeTable(have[i], want[i])
		if commits += n; err != nil {
			f.noARP = f.noARP || want[i].family == nftables.TableFamilyARP && lacksFamily(err)
			return commits, err
		}
	}
	return commits, nil
}

// lacksFamily tells whether the kernel may have no tables of a family.
func lacksFamily(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT)
}

func (f *Filter) writeTable(have, want table) (commits int, err error) {
	w := writer{conn: f.conn, table: want.ours()}
	if !want.exists {
		if have.exists {
			f.conn.DelTable(w.table)
			w.pending++
		}
		w.commit()
		return w.commits, w.err
	}
	if !have.fits(want) {
		f.conn.AddTable(w.table)
		f.conn.DelTable(w.table)
		have = table{}
	}
	if !have.exists {
		f.conn.AddTable(w.table)
		w.pending++
	}
	// What lets packets pass comes before the rules, what no longer does after
	// them: if it takes several transactions no packet of a peer is dropped in
	// between.
	gone := map[string][]string{}
	for _, s := range want.sets {
		old, there := find(have.sets, s.name)
		if !there {
			w.addSet(s)
		}
		var added []string
		added, gone[s.name] = diff(old.keys, s.keys, strings.Compare)
		w.elements(s, added, true)
	}
	w.chains(have.chains, want.chains)
	for _, s := range have.sets {
		if keys, wanted := gone[s.name]; wanted {
			w.elements(s, keys, false)
		} else {
			f.conn.DelSet(&nftables.Set{Table: w.table, Name: s.name})
			w.pending++
		}
	}
	w.commit()
	return w.commits, w.err
}

// fits tells whether t can be turned into want piece by piece: hooks and key
// types of what exists cannot be changed.
func (t table) fits(want table) bool {
	if t.broken {
		return false
	}
	for _, c := range t.chains {
		if i := slices.IndexFunc(want.chains, func(w chain) bool { return w.name == c.name }); i >= 0 && want.chains[i].hook != c.hook {
			return false
		}
	}
	for _, s := range t.sets {
		if w, ok := find(want.sets, s.name); ok && w.typ.Bytes != s.typ.Bytes {
			return false
		}
	}
	return true
}

func find(sets []set, name string) (set, bool) {
	for _, s := range sets {
		if s.name == name {
			return s, true
		}
	}
	return set{}, false
}

// diff compares two sorted lists.
func diff[T comparable](have, want []T, compare func(a, b T) int) (added, gone []T) {
	for len(have) > 0 && len(want) > 0 {
		switch {
		case have[0] == want[0]:
			have, want = have[1:], want[1:]
		case compare(have[0], want[0]) < 0:
			gone, have = append(gone, have[0]), have[1:]
		default:
			added, want = append(added, want[0]), want[1:]
		}
	}
	return append(added, want...), append(gone, have...)
}

// writer collects messages and commits them.
type writer struct {
	conn    *nftables.Conn
	table   *nftables.Table
	pending int // messages not committed
	elems   int // elements in them
	commits int
	err     error
}

// commit sends what was collected, unless something went wrong before.
func (w *writer) commit() {
	if w.err != nil || w.pending == 0 {
		return
	}
	w.pending, w.elems = 0, 0
	w.commits++
	if err := w.conn.Flush(); err != nil {
		w.err = fmt.Errorf("commit: %w", err)
	}
}

func (w *writer) addSet(s set) {
	w.pending++
	k := &nftables.Set{Table: w.table, Name: s.name, KeyType: s.typ, Concatenation: s.name == guard4 || s.name == guard6}
	if err := w.conn.AddSet(k, nil); err != nil && w.err == nil {
		w.err = err
	}
}

func (w *writer) elements(s set, keys []string, add bool) {
	k := &nftables.Set{Table: w.table, Name: s.name, KeyType: s.typ}
	for chunk := range slices.Chunk(keys, elementsPerMessage) {
		els := make([]nftables.SetElement, len(chunk))
		for i, key := range chunk {
			els[i].Key = []byte(key)
		}
		change := w.conn.SetAddElements
		if !add {
			change = w.conn.SetDeleteElements
		}
		if err := change(k, els); err != nil && w.err == nil {
			w.err = err
		}
		w.pending++
		if w.elems += len(chunk); w.elems >= elementsPerCommit {
			w.commit()
		}
	}
}

func (w *writer) chains(have, want []chain) {
	changed := func(c chain) bool {
		i := slices.IndexFunc(have, func(h chain) bool { return h.name == c.name })
		return i < 0 || !slices.EqualFunc(have[i].rules, c.rules, func(a, b rule) bool { return a.comment == b.comment })
	}
	var gone []chain
	for _, h := range have {
		if !slices.ContainsFunc(want, func(c chain) bool { return c.name == h.name }) {
			gone = append(gone, h)
		}
	}
	if len(gone) == 0 && !slices.ContainsFunc(want, changed) {
		return
	}
	// A chain that is jumped to is made before the jump and goes after it.
	for _, c := range want {
		w.conn.AddChain(c.spec(w.table))
	}
	for _, c := range have {
		w.conn.FlushChain(c.spec(w.table))
	}
	for _, c := range want {
		for _, r := range c.rules {
			w.conn.AddRule(&nftables.Rule{Table: w.table, Chain: c.spec(w.table), Exprs: r.exprs,
				UserData: userdata.AppendString(nil, userdata.TypeComment, r.comment)})
		}
	}
	for _, c := range gone {
		w.conn.DelChain(c.spec(w.table))
	}
	w.pending++
}

func (c chain) spec(t *nftables.Table) *nftables.Chain {
	s := &nftables.Chain{Name: c.name, Table: t}
	if c.hook != (hook{}) {
		policy := nftables.ChainPolicyAccept
		s.Type, s.Hooknum, s.Priority, s.Policy = c.hook.typ, &c.hook.num, &c.hook.priority, &policy
	}
	return s
}
