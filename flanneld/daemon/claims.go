package daemon

import (
	"context"
	"slices"
	"strings"

	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/service"
	"github.com/flanneld/flanneld/store"
)

// claims are the addresses and node ports that services hold, as one attempt
// to edit a service sees them.
type claims struct {
	store  store.Store
	prefix string
	self   *service.Service // whose they shall be
	txn    store.Txn
	seen   map[string]store.KV
	listed []string // prefixes all of whose keys were seen
}

// claim completes want, the service to be (nil: none), and says what must be
// written along with it so that its addresses and node ports are its own and
// nobody's any more that it gives up. former is what it was, nil: nothing;
// unreadable says that former is not what it was. If want is former only claims
// that are lost are written. What is refused is an
// *api.Error or a *service.FieldError, all others are the store's.
func (n *names) claim(ctx context.Context, former, want, self *service.Service, unreadable bool) (store.Txn, error) {
	c := claims{store: n.store, prefix: n.cfg.Etcd.Prefix, self: self, seen: map[string]store.KV{}}
	addresses, nodePorts := service.ClaimPrefixes(c.prefix)
	var have, keys []string
	if former != nil {
		have = former.Claims(c.prefix)
	}
	if unreadable {
		var err error
		if have, err = c.own(ctx); err != nil {
			return store.Txn{}, err
		}
	}
	if want != nil && want != former {
		g := n.shown.Load().ground
		choose := service.Chooser{Prefix: c.prefix, Networks: g.services, Hosts: g.inside, Taken: func(key string) (bool, error) { return c.taken(ctx, key) }}
		if err := choose.Choose(want, former); err != nil {
			return store.Txn{}, err
		}
		if err := want.Validate(); err != nil { // what was chosen and what was asked for may be the same
			return store.Txn{}, err
		}
	}
	if want != nil {
		keys = want.Claims(c.prefix)
	}
	if few := 8; len(keys)+len(have) > few {
		if err := c.list(ctx, addresses, nodePorts); err != nil {
			return store.Txn{}, err
		}
	}
	for _, key := range keys {
		if err := c.take(ctx, key, slices.Contains(have, key)); err != nil {
			return store.Txn{}, err
		}
	}
	for _, key := range have {
		if slices.Contains(keys, key) {
			continue
		}
		if err := c.release(ctx, key); err != nil {
			return store.Txn{}, err
		}
	}
	if most := 127; len(c.txn.If) > most || len(c.txn.Put)+len(c.txn.Delete) > most { // and the service itself
		return store.Txn{}, &service.FieldError{Field: "Ports", Remedy: "so many node ports cannot change at once: change some of them, then the others"}
	}
	return c.txn, nil
}

// take makes key the service's, or refuses it in the holder's name. One that
// the service had all along and that somebody else holds is left to that one:
// it is no reason to refuse another change.
func (c *claims) take(ctx context.Context, key string, had bool) error {
	kv, err := c.get(ctx, key)
	if err != nil {
		return err
	}
	holder := ""
	if kv.ModRevision != 0 {
		holder = service.Claimant(c.prefix, kv)
	}
	if holder == c.self.Key(c.prefix) {
		c.hold(kv)
		return nil
	}
	if holder != "" {
		by, err := c.get(ctx, holder)
		if err != nil {
			return err
		}
		if c.claims(by, key) {
			if had {
				return nil
			}
			return c.held(key, holder)
		}
		c.hold(by) // it may be made, or claim the key, meanwhile
	}
	c.hold(kv)
	c.txn.Put = append(c.txn.Put, store.Put{Key: key, Value: c.self.Claim()})
	return nil
}

// release gives key up if it is the service's.
func (c *claims) release(ctx context.Context, key string) error {
	kv, err := c.get(ctx, key)
	if err != nil || kv.ModRevision == 0 || service.Claimant(c.prefix, kv) != c.self.Key(c.prefix) {
		return err
	}
	c.hold(kv)
	c.txn.Delete = append(c.txn.Delete, key)
	return nil
}

// claims tells whether the service at a key claims another. One that cannot be
// read might.
func (c *claims) claims(by store.KV, key string) bool {
	if by.ModRevision == 0 {
		return false
	}
	s, err := service.Parse(c.prefix, by)
	return err != nil || slices.Contains(s.Claims(c.prefix), key)
}

// held refuses what another service has.
func (c *claims) held(key, holder string) error {
	parts := strings.Split(strings.TrimPrefix(holder, service.Prefix(c.prefix)), "/")
	addresses, nodePorts := service.ClaimPrefixes(c.prefix)
	if address, ok := strings.CutPrefix(key, addresses); ok {
		e := api.Conflict("virtual IP %s is that of service %s in network %s: nothing was changed; take another address, or none to have one chosen", address, parts[2], parts[1])
		e.Field, e.Value = "VirtualIPs", address
		return e
	}
	protocol, port, _ := strings.Cut(strings.TrimPrefix(key, nodePorts), "-")
	e := api.Conflict("node port %s/%s is that of service %s in network %s: nothing was changed; take another port, or auto to have one chosen", port, protocol, parts[2], parts[1])
	e.Field, e.Value = "NodePort", port
	return e
}

// hold makes the transaction depend on a key's staying as it is.
func (c *claims) hold(kv store.KV) {
	cond := store.Cond{Key: kv.Key, ModRevision: kv.ModRevision}
	if !slices.Contains(c.txn.If, cond) {
		c.txn.If = append(c.txn.If, cond)
	}
}

// own are the claims that are in the service's name.
func (c *claims) own(ctx context.Context) ([]string, error) {
	var out []string
	addresses, nodePorts := service.ClaimPrefixes(c.prefix)
	if err := c.list(ctx, addresses, nodePorts); err != nil {
		return nil, err
	}
	for key, kv := range c.seen {
		if service.Claimant(c.prefix, kv) == c.self.Key(c.prefix) {
			out = append(out, key)
		}
	}
	slices.Sort(out)
	return out, nil
}

// taken is for service.Chooser: whatever is to be chosen from is listed once.
func (c *claims) taken(ctx context.Context, key string) (bool, error) {
	if err := c.list(ctx, key[:strings.LastIndexByte(key, '/')+1]); err != nil {
		return false, err
	}
	return c.seen[key].ModRevision != 0, nil
}

// list reads all keys with these prefixes, unless they were.
func (c *claims) list(ctx context.Context, prefixes ...string) error {
	for _, prefix := range prefixes {
		if slices.Contains(c.listed, prefix) {
			continue
		}
		snap, err := c.store.List(ctx, prefix)
		if err != nil {
			return err
		}
		for _, kv := range snap.KVs {
			c.seen[kv.Key] = kv
		}
		c.listed = append(c.listed, prefix)
	}
	return nil
}

// get reads a key, unless it was seen.
func (c *claims) get(ctx context.Context, key string) (store.KV, error) {
	if kv, ok := c.seen[key]; ok {
		return kv, nil
	}
	if slices.ContainsFunc(c.listed, func(p string) bool { return strings.HasPrefix(key, p) }) {
		return store.KV{Key: key}, nil
	}
	kv, err := c.store.Get(ctx, key)
	if err == nil {
		c.seen[key] = kv
	}
	return kv, err
}
