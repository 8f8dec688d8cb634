package service

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/store"
	"github.com/flanneld/flanneld/subnet"
)

// maxSize is much more than any service needs, see the bounds of Validate.
const maxSize = 256 << 10

// Parse reads a service as the store holds it. Errors are
// *subnet.RecordError. Unknown fields are ignored; a protocol may be missing,
// which means tcp, or in upper case, as Kubernetes has it.
func Parse(etcdPrefix string, kv store.KV) (*Service, error) {
	s := &Service{created: kv.CreateRevision}
	rest, ok := strings.CutPrefix(kv.Key, Prefix(etcdPrefix))
	if !ok {
		return nil, &subnet.RecordError{Key: kv.Key, Remedy: "is not under " + Prefix(etcdPrefix)}
	}
	parts := strings.SplitN(rest, "/", 4)
	if len(parts) != 3 {
		return nil, &subnet.RecordError{Key: kv.Key, Remedy: "the key must end in <tenant>/<network>/<name>; delete it"}
	}
	s.Tenant, s.Network, s.Name = parts[0], parts[1], parts[2]
	if len(kv.Value) > maxSize {
		return nil, &subnet.RecordError{Key: kv.Key, Value: fmt.Sprintf("%d bytes", len(kv.Value)),
			Remedy: fmt.Sprintf("the value must be at most %d KiB; delete the key", maxSize>>10)}
	}
	err := s.parseValue(kv.Value)
	if err == nil {
		err = s.Validate()
	}
	if err != nil {
		return nil, recordError(kv.Key, err)
	}
	return s, nil
}

// recordError says of which key err is.
func recordError(key string, err error) error {
	if f, ok := errors.AsType[*FieldError](err); ok {
		return &subnet.RecordError{Key: key, Field: f.Field, Value: f.Value, Remedy: f.Remedy + "; correct it or delete the key"}
	}
	return &subnet.RecordError{Key: key, Remedy: err.Error() + "; delete the key"}
}

func (s *Service) parseValue(value []byte) error {
	var v struct {
		Ports []struct {
			Name                   string
			Port, Target, NodePort int64
			TargetName, Protocol   string
		}
		Selector                 map[string]string
		Endpoints, VirtualIPs    []string
		Headless                 bool
		External, Local, Balance string
		Affinity                 int
		Health                   *Health
	}
	if err := json.Unmarshal(value, &v); err != nil {
		return &FieldError{"value", quote(string(value)), "must be a service's JSON object (" + quote(err.Error()) + ")"}
	}
	for _, p := range v.Ports {
		for _, n := range []int64{p.Port, p.Target, p.NodePort} {
			if n != int64(uint16(n)) {
				return &FieldError{"Ports", strconv.FormatInt(n, 10), "must be from 1 to 65535"}
			}
		}
		if p.NodePort == AutoPort {
			return &FieldError{"Ports", "1", fmt.Sprintf("must have a NodePort from %d to %d", NodePortFirst, NodePortLast)}
		}
		if p.Protocol == "" {
			p.Protocol = "tcp"
		}
		s.Ports = append(s.Ports, Port{p.Name, uint16(p.Port), uint16(p.Target), p.TargetName, strings.ToLower(p.Protocol), uint16(p.NodePort)})
	}
	var err error
	if s.Endpoints, err = parseAddresses("Endpoints", v.Endpoints); err != nil {
		return err
	}
	if s.VirtualIPs, err = parseAddresses("VirtualIPs", v.VirtualIPs); err != nil {
		return err
	}
	s.Selector, s.Headless, s.External = v.Selector, v.Headless, v.External
	s.Affinity, s.Local, s.Balance, s.Health = v.Affinity, v.Local, v.Balance, v.Health
	return nil
}

func parseAddresses(field string, texts []string) (list []netip.Addr, err error) {
	for _, t := range texts {
		a, err := netip.ParseAddr(t)
		if err != nil {
			return nil, &FieldError{field, quote(t), "must be IP addresses"}
		}
		list = append(list, a)
	}
	return list, nil
}

// Marshal is the value of s for the store. Parse of it is s again, if s is
// valid.
func (s *Service) Marshal() ([]byte, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode service %s of network %s: %w", s.Name, s.Network, err)
	}
	return b, nil
}

// Selects tells whether e is chosen by the labels of s. Without a selector
// nothing is.
func (s *Service) Selects(e *endpoint.Endpoint) bool {
	if len(s.Selector) == 0 || e.Tenant != s.Tenant || e.Network != s.Network {
		return false
	}
	for k, v := range s.Selector {
		if have, ok := e.Labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}

// quote makes what somebody wrote fit for one line of a message.
func quote(s string) string { return fmt.Sprintf("%.60q", s) }
