package service

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/store"
	"github.com/flanneld/flanneld/subnet"
)

// What a publication may hold at most, and how much of a container's id says
// which one is meant.
const (
	maxPublication = 4 << 10
	maxHost        = 300
	shortID        = 12
)

// PublishedPrefix is where the publications are below an etcd prefix.
func PublishedPrefix(etcdPrefix string) string { return etcdPrefix + "/published/" }

// Key is where p is below an etcd prefix.
func (p *Publication) Key(etcdPrefix string) string {
	return PublishedPrefix(etcdPrefix) + p.Tenant + "/" + p.Host + "/" + portClaim(p.Protocol, p.Port)
}

// WatchPublished yields the publications of the whole cluster, of every tenant
// and host, as store.WatchRecords does it.
func WatchPublished(ctx context.Context, st store.Store, etcdPrefix string) iter.Seq2[store.Records[Publication], error] {
	return store.WatchRecords(ctx, st, PublishedPrefix(etcdPrefix), func(kv store.KV) (*Publication, error) { return ParsePublication(etcdPrefix, kv) })
}

// ParsePublication reads a publication as the store holds it. Errors are
// *subnet.RecordError. Unknown fields are ignored.
func ParsePublication(etcdPrefix string, kv store.KV) (*Publication, error) {
	rest, ok := strings.CutPrefix(kv.Key, PublishedPrefix(etcdPrefix))
	if !ok {
		return nil, &subnet.RecordError{Key: kv.Key, Remedy: "is not under " + PublishedPrefix(etcdPrefix)}
	}
	p := &Publication{created: kv.CreateRevision}
	if !p.parseKey(rest) {
		return nil, &subnet.RecordError{Key: kv.Key, Remedy: "the key must end in <tenant>/<host>/<protocol>-<port>; delete it"}
	}
	if len(kv.Value) > maxPublication {
		return nil, &subnet.RecordError{Key: kv.Key, Value: fmt.Sprintf("%d bytes", len(kv.Value)),
			Remedy: fmt.Sprintf("the value must be at most %d KiB; delete the key", maxPublication>>10)}
	}
	err := p.parseValue(kv.Value)
	if err == nil {
		err = p.Validate()
	}
	if err != nil {
		return nil, recordError(kv.Key, err)
	}
	return p, nil
}

// parseKey takes the parts of a key. One port has one spelling.
func (p *Publication) parseKey(rest string) bool {
	parts := strings.SplitN(rest, "/", 4)
	if len(parts) != 3 {
		return false
	}
	p.Tenant, p.Host = parts[0], parts[1]
	protocol, port, _ := strings.Cut(parts[2], "-")
	n, err := strconv.ParseUint(port, 10, 16)
	p.Protocol, p.Port = protocol, uint16(n)
	return err == nil && parts[2] == portClaim(p.Protocol, p.Port)
}

func (p *Publication) parseValue(value []byte) error {
	var v struct {
		Network, Target string
		TargetPort      int64
	}
	if err := json.Unmarshal(value, &v); err != nil {
		return &FieldError{"value", quote(string(value)), "must be a publication's JSON object (" + quote(err.Error()) + ")"}
	}
	if v.TargetPort != int64(uint16(v.TargetPort)) {
		return &FieldError{"TargetPort", strconv.FormatInt(v.TargetPort, 10), "must be from 1 to 65535"}
	}
	p.Network, p.Target, p.TargetPort = v.Network, v.Target, uint16(v.TargetPort)
	return nil
}

// Marshal is the value of p for the store. ParsePublication of it is p again,
// if p is valid.
func (p *Publication) Marshal() ([]byte, error) {
	b, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encode publication of %s on %s: %w", portClaim(p.Protocol, p.Port), p.Host, err)
	}
	return b, nil
}

// Validate finds the first field that cannot be as it is. Errors are
// *FieldError, stable text.
func (p *Publication) Validate() error {
	for _, part := range []struct{ field, value string }{{"Tenant", p.Tenant}, {"Network", p.Network}} {
		if err := CheckLabel(part.field, part.value); err != nil {
			return err
		}
	}
	if err := CheckNetwork(p.Tenant, p.Network); err != nil {
		return err
	}
	switch {
	case !isID(p.Host, maxHost):
		return &FieldError{"Host", quote(p.Host), "must be a host's name, as flanneld status shows them"}
	case p.Protocol != "tcp" && p.Protocol != "udp" && p.Protocol != "sctp":
		return &FieldError{"Protocol", quote(p.Protocol), "must be tcp, udp or sctp"}
	case p.Port == 0:
		return &FieldError{"Port", "0", "must be from 1 to 65535"}
	case p.Port >= NodePortFirst && p.Port <= NodePortLast:
		return &FieldError{"Port", strconv.Itoa(int(p.Port)),
			fmt.Sprintf("must not be from %d to %d, which are the node ports of services; publish another, or give a service this node port", NodePortFirst, NodePortLast)}
	case p.TargetPort == 0:
		return &FieldError{"TargetPort", "0", "must be from 1 to 65535"}
	case p.Target == "":
		return &FieldError{"Target", "", "is missing: a container's name, or the first 12 characters of its id at least"}
	}
	if CheckLabel("Target", p.Target) != nil && (len(p.Target) < shortID || !isID(p.Target, maxText)) {
		return &FieldError{"Target", quote(p.Target),
			fmt.Sprintf("must be a container's name (a DNS label in lower case) or the beginning of its id, of %d characters at least", shortID)}
	}
	return nil
}

// Selects tells whether connections to p may go to e.
func (p *Publication) Selects(e *endpoint.Endpoint) bool {
	return e.Tenant == p.Tenant && e.Network == p.Network &&
		(slices.Contains(e.Names, p.Target) || len(p.Target) >= shortID && strings.HasPrefix(e.Container, p.Target))
}

// isID is what the CNI specification asks of container ids, section 2; hosts'
// names are like that too.
func isID(s string, most int) bool {
	for i, c := range []byte(s) {
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || c != '.' && c != '_' && c != '-') {
			return false
		}
	}
	return s != "" && len(s) <= most
}
