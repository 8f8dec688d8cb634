// Package nft makes kernel/rules true with nftables, by netlink alone: no
// program is run.
//
// Everything is in one table, inet flanneld, but for what concerns ARP, which
// is in arp flanneld if there is any. Other tables are read only (see Watch).
// What our tables must hold are plain values (plan.go); Sync compares them with
// what the kernel holds and writes the difference in one transaction each, so
// that every packet sees either the old rules or the new ones.
package nft

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/rules"
)

// Table is the name of our tables, of families inet and arp.
const Table = "flanneld"

// tables are ours, one of each of families.
type tables [2]table

func families() [2]nftables.TableFamily {
	return [2]nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyARP}
}

// sendBuffer bounds one transaction: the elements of 100,000 peers and more.
const sendBuffer = 8 << 20

// receiveBuffer holds the kernel's answers to every message of a transaction.
const receiveBuffer = 2 << 20

// Filter is our tables in one network namespace. It is not safe for
// concurrent use.
type Filter struct {
	conn   *nftables.Conn
	gen    *generation // its socket reads elements
	ledger *Ledger
	own    bool // the ledger is nobody else's

	last rules.Rules
	// have is what the kernel held when the ledger said seen; nil: not known.
	have *tables
	seen uint64
	// noARP: the kernel has no tables of family arp (CONFIG_NF_TABLES_ARP).
	// What would be in ours can be done without.
	noARP bool
}

var _ rules.Filter = (*Filter)(nil)

// New returns the filter of the calling thread's network namespace, which is
// l's; nil: nobody else of this process writes there. It returns rules.ErrNotSupported, with the reason, if the kernel lacks
// nf_tables or an expression that we need; Linux 5.2 with CONFIG_NF_TABLES_INET,
// NFT_NAT, NFT_MASQ and NFT_FIB_INET has them all. It leaves nothing in the kernel.
func New(l *Ledger) (*Filter, error) {
	f, err := open(l)
	if err != nil {
		return nil, err
	}
	if err := f.probe(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func open(l *Ledger) (*Filter, error) {
	f := &Filter{}
	err := f.open(l)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (f *Filter) open(l *Ledger) (err error) {
	if f.ledger, f.own, err = shared(l); err != nil {
		return err
	}
	if f.gen, err = openGeneration(); err != nil {
		return err
	}
	f.conn, err = dial()
	return err
}

func dial() (*nftables.Conn, error) {
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
		return errors.Join(c.SetWriteBuffer(sendBuffer), c.SetReadBuffer(receiveBuffer))
	}))
	if err != nil {
		return nil, fmt.Errorf("open nf_tables socket: %w", err)
	}
	return conn, nil
}

// Close lets go of the sockets; the rules stay.
func (f *Filter) Close() error {
	var errs []error
	if f.conn != nil {
		errs = append(errs, f.conn.CloseLasting())
	}
	if f.gen != nil {
		errs = append(errs, f.gen.Close())
	}
	if f.own && f.ledger != nil {
		errs = append(errs, f.ledger.Close())
	}
	return errors.Join(errs...)
}

// Sync implements rules.Filter. While nobody else writes to nf_tables and r
// stays the same it is one small request to the kernel.
func (f *Filter) Sync(ctx context.Context, r rules.Rules) error {
	foreign, err := f.ledger.check()
	if err != nil {
		return err
	}
	if f.have != nil && foreign == f.seen && r.Equal(f.last) {
		return nil
	}
	if f.have != nil && foreign == f.seen && r.EqualButPeers(f.last) {
		want := *f.have
		var few bool
		if want[0], few = want[0].withPeers(f.last.Tunnel.Peers, r.Tunnel.Peers); few {
			if err := f.become(ctx, want, foreign); err != nil {
				return fmt.Errorf("program peers into nftables table inet %s: %w", Table, err)
			}
			f.last.Tunnel.Peers = append(f.last.Tunnel.Peers[:0], r.Tunnel.Peers...)
			return nil
		}
	}
	local := func(netip.Addr) bool { return false }
	if len(r.Guard) > 0 {
		if local, err = rules.Local(); err != nil {
			return err
		}
	}
	var want tables
	if want[0], err = planOf(r, local); err != nil {
		return err
	}
	if want[1], err = arpOf(r); err != nil {
		return err
	}
	if err := f.become(ctx, want, foreign); err != nil {
		return fmt.Errorf("program nftables table inet %s: %w", Table, err)
	}
	f.last = r.Clone()
	return nil
}

// Remove implements rules.Filter.
func (f *Filter) Remove(ctx context.Context) error {
	foreign, err := f.ledger.check()
	if err != nil {
		return err
	}
	f.have, f.last = nil, rules.Rules{}
	if err := f.become(ctx, tables{}, foreign); err != nil {
		return fmt.Errorf("remove nftables table inet %s: %w", Table, err)
	}
	return nil
}

// become makes the kernel hold want. foreign is what the ledger says now.
func (f *Filter) become(ctx context.Context, want tables, foreign uint64) error {
	for i, family := range families() {
		want[i].family = family
		want[i].exists = len(want[i].chains) > 0 || len(want[i].sets) > 0
	}
	var errs error
	for range 2 { // once more if somebody else wrote between reading and writing
		if err := ctx.Err(); err != nil {
			return err
		}
		if f.noARP {
			want[1] = table{family: want[1].family}
		}
		have := f.have
		if have == nil || foreign != f.seen {
			t, err := f.read()
			if err != nil {
				return err
			}
			have = &t
		}
		f.have = nil
		now, err := f.ledger.commit(func() (int, error) { return f.write(*have, want) })
		if err != nil {
			errs = errors.Join(errs, err)
			if foreign, err = f.restart(); err != nil {
				return errors.Join(errs, err)
			}
			continue
		}
		if now == foreign { // nobody else wrote: this is what is there
			f.have, f.seen = &want, now
		}
		return nil
	}
	return errs
}

// restart forgets messages that were not sent and answers that were not read.
func (f *Filter) restart() (foreign uint64, err error) {
	conn, err := dial()
	if err != nil {
		return 0, err
	}
	f.conn, conn = conn, f.conn
	if err := conn.CloseLasting(); err != nil {
		return 0, fmt.Errorf("close nf_tables socket: %w", err)
	}
	return f.ledger.check()
}

// probe makes a table with everything that we need and deletes it in the same
// transaction: no packet ever sees it, and the kernel says what it lacks. (A
// transaction that is refused would cost 20 ms: it waits for all readers.)
func (f *Filter) probe() error {
	t := f.conn.AddTable(&nftables.Table{Name: Table + "-probe", Family: nftables.TableFamilyINet})
	policy := nftables.ChainPolicyAccept
	f.conn.AddChain(&nftables.Chain{Name: "nat", Table: t, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource, Policy: &policy})
	c := f.conn.AddChain(&nftables.Chain{Name: "rules", Table: t})
	for _, m := range []match{masq(), notTheWayBack(), routedTo("lo"), toThisHost()} {
		f.conn.AddRule(&nftables.Rule{Table: t, Chain: c, Exprs: m})
	}
	f.conn.DelTable(t)
	_, err := f.ledger.commit(func() (int, error) { return 1, f.conn.Flush() })
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("nftables: needs CAP_NET_ADMIN: %w", err)
	}
	return fmt.Errorf("%w: nf_tables with masquerade and fib in family inet (Linux 5.2 or newer with NF_TABLES_INET, NFT_NAT, NFT_MASQ, NFT_FIB_INET): %w",
		rules.ErrNotSupported, err)
}

// Cleanup removes what a Filter and a Balancer left in the calling thread's
// network namespace. Where there is nothing, or no nf_tables, it does nothing.
func Cleanup(ctx context.Context) error {
	l, err := NewLedger()
	if errors.Is(err, rules.ErrNotSupported) {
		return nil
	} else if err != nil {
		return err
	}
	var errs []error
	if f, err := open(l); err != nil {
		errs = append(errs, err)
	} else {
		errs = append(errs, f.Remove(ctx), f.Close())
	}
	if b, err := openBalancer(l); err != nil {
		errs = append(errs, err)
	} else {
		errs = append(errs, b.Remove(ctx), b.Close())
	}
	return errors.Join(append(errs, l.Close())...)
}
