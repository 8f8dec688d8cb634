package zone

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"strconv"
	"strings"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/service"
	"github.com/flanneld/flanneld/store"
	"github.com/flanneld/flanneld/subnet"
)

// What an added name may be and hold at most. Its labels share the 255 bytes
// of RFC 1035, section 2.3.4, with network, tenant and domain.
const (
	maxNameSize      = 64 << 10
	maxNameLength    = 128
	maxNameAddresses = 256
)

// Name is a name that an admin added, as its key under names/ tells it. It is
// immutable once made.
type Name struct {
	// Tenant, Network and Name are the parts of its key; Name is one or more
	// DNS labels in lower case, in front of <network>.<domain>.
	Tenant  string `json:"-"`
	Network string `json:"-"`
	Name    string `json:"-"`

	Addresses []netip.Addr
}

// NamesPrefix is where the names are below an etcd prefix.
func NamesPrefix(etcdPrefix string) string { return etcdPrefix + "/names/" }

// Key is where n is below an etcd prefix.
func (n *Name) Key(etcdPrefix string) string {
	return NamesPrefix(etcdPrefix) + n.Tenant + "/" + n.Network + "/" + n.Name
}

// Marshal is the value of n for the store. ParseName of it is n again, if n is
// valid.
func (n *Name) Marshal() ([]byte, error) {
	b, err := json.Marshal(n)
	if err != nil {
		return nil, fmt.Errorf("encode name %s of network %s: %w", n.Name, n.Network, err)
	}
	return b, nil
}

// ParseName reads an added name as the store holds it. Errors are
// *subnet.RecordError. Unknown fields are ignored.
func ParseName(etcdPrefix string, kv store.KV) (*Name, error) {
	rest, ok := strings.CutPrefix(kv.Key, NamesPrefix(etcdPrefix))
	if !ok {
		return nil, &subnet.RecordError{Key: kv.Key, Remedy: "is not under " + NamesPrefix(etcdPrefix)}
	}
	parts := strings.SplitN(rest, "/", 4)
	if len(parts) != 3 {
		return nil, &subnet.RecordError{Key: kv.Key, Remedy: "the key must end in <tenant>/<network>/<name>; delete it"}
	}
	n := &Name{Tenant: parts[0], Network: parts[1], Name: parts[2]}
	if len(kv.Value) > maxNameSize {
		return nil, &subnet.RecordError{Key: kv.Key, Value: fmt.Sprintf("%d bytes", len(kv.Value)), Remedy: "the value must be at most 64 KiB; delete the key"}
	}
	var v struct{ Addresses []string }
	if err := json.Unmarshal(kv.Value, &v); err != nil {
		return nil, &subnet.RecordError{Key: kv.Key, Value: fmt.Sprintf("%.60q", kv.Value),
			Remedy: fmt.Sprintf("the value must be a JSON object with Addresses (%.60q); correct it or delete the key", err.Error())}
	}
	for _, s := range v.Addresses {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, &subnet.RecordError{Key: kv.Key, Field: "Addresses", Value: fmt.Sprintf("%.60q", s), Remedy: "must be IP addresses; correct it or delete the key"}
		}
		n.Addresses = append(n.Addresses, a)
	}
	if err := n.Validate(); err != nil {
		if f, ok := errors.AsType[*service.FieldError](err); ok {
			return nil, &subnet.RecordError{Key: kv.Key, Field: f.Field, Value: f.Value, Remedy: f.Remedy + "; correct it or delete the key"}
		}
		return nil, &subnet.RecordError{Key: kv.Key, Remedy: err.Error()}
	}
	return n, nil
}

// Validate finds the first field that cannot be as it is. Errors are
// *service.FieldError, stable text.
//
// A name must not end in svc or pod: with the search list of a container,
// frontend.default.svc.default.<domain> would be found in place of what
// frontend.default.svc stands for.
func (n *Name) Validate() error {
	for _, part := range []struct{ field, value string }{{"Tenant", n.Tenant}, {"Network", n.Network}} {
		if err := service.CheckLabel(part.field, part.value); err != nil {
			return err
		}
	}
	if err := service.CheckNetwork(n.Tenant, n.Network); err != nil {
		return err
	}
	last := ""
	for label := range strings.SplitSeq(n.Name, ".") {
		if low, ok := endpoint.Label(label); !ok || low != label {
			return &service.FieldError{Field: "Name", Value: fmt.Sprintf("%.60q", n.Name),
				Remedy: "must be DNS labels with dots between: each up to 63 lower-case letters, digits, and - or _ within"}
		}
		last = label
	}
	switch {
	case endpoint.Reserved(last):
		return &service.FieldError{Field: "Name", Value: fmt.Sprintf("%.60q", n.Name), Remedy: "must not end in svc or pod, which stand for services and addresses of pods"}
	case len(n.Name) > maxNameLength:
		return &service.FieldError{Field: "Name", Value: fmt.Sprintf("%.60q", n.Name), Remedy: fmt.Sprintf("must be at most %d bytes", maxNameLength)}
	case len(n.Addresses) == 0:
		return &service.FieldError{Field: "Addresses", Remedy: "are missing"}
	case len(n.Addresses) > maxNameAddresses:
		return &service.FieldError{Field: "Addresses", Value: strconv.Itoa(len(n.Addresses)), Remedy: fmt.Sprintf("must be at most %d", maxNameAddresses)}
	}
	return service.CheckAddresses("Addresses", n.Addresses)
}

// WatchNames yields the added names of the whole cluster, of every tenant and
// network, as store.WatchRecords does it.
func WatchNames(ctx context.Context, st store.Store, etcdPrefix string) iter.Seq2[store.Records[Name], error] {
	return store.WatchRecords(ctx, st, NamesPrefix(etcdPrefix), func(kv store.KV) (*Name, error) { return ParseName(etcdPrefix, kv) })
}
