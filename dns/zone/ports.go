package zone

import (
	"net/netip"
	"slices"
	"strconv"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/service"
)

// portNode is what the name of a named port has.
type portNode struct {
	name, proto string
	sets, extra []Set
}

// port finds the named port that _name._proto in front of the service's name
// stands for.
func (z *Zone) port(v *serviceNode, name, proto []byte) *portNode {
	if len(name) < 2 || name[0] != '_' || len(proto) < 2 || proto[0] != '_' {
		return nil
	}
	is := func(p service.Port) bool { return p.Name == string(name[1:]) && p.Protocol == string(proto[1:]) }
	if !slices.ContainsFunc(v.of.Ports, is) {
		return nil
	}
	ports := v.ports.Load()
	if ports == nil {
		made := z.makePorts(v) // by several at once perhaps, but all the same
		ports = &made
		v.ports.Store(ports)
	}
	for i := range *ports {
		if p := &(*ports)[i]; p.name == string(name[1:]) && p.proto == string(proto[1:]) {
			return p
		}
	}
	return nil
}

// makePorts makes the records of all named ports.
func (z *Zone) makePorts(v *serviceNode) []portNode {
	var ports []portNode
	for i := range v.of.Ports {
		p := &v.of.Ports[i]
		if p.Name == "" {
			continue
		}
		n := portNode{name: p.Name, proto: p.Protocol}
		set := Set{Type: typeSRV}
		for _, t := range z.targets(v, p) {
			// Priority, weight, port, target: RFC 2782.
			data := append([]byte{0, 0, 0, 100, byte(t.port >> 8), byte(t.port)}, t.name...)
			set.Data = append(set.Data, data)
			if t.here {
				set.Local++
			}
			n.extra = append(n.extra, t.sets...)
		}
		if len(set.Data) > 0 {
			n.sets = []Set{set}
		}
		ports = append(ports, n)
	}
	return ports
}

type target struct {
	name []byte
	port uint16
	here bool
	sets []Set // of name; nil if another target has them
}

// targets are what a service's port leads to, this host's first.
func (z *Zone) targets(v *serviceNode, p *service.Port) []target {
	owner := z.serviceName(v.of)
	if owner == nil {
		return nil
	}
	if !v.direct() {
		sets := slices.Clone(v.sets)
		for i := range sets {
			sets[i].Owner = owner
		}
		return []target{{owner, p.Port, false, sets}}
	}
	numbers := z.numbers(v, p)
	var targets []target
	for _, here := range []bool{true, false} {
		for _, set := range v.sets {
			list := set.Addrs[set.Local:]
			if here {
				list = set.Addrs[:set.Local]
			}
			for i, a := range list {
				name := compose(owner, dashed(a))
				if name == nil {
					continue
				}
				sets := []Set{{Owner: name, Type: set.Type, Addrs: list[i : i+1 : i+1]}}
				for _, n := range numbers(a) {
					targets = append(targets, target{name, n, here, sets})
					sets = nil
				}
			}
		}
	}
	return targets
}

// numbers returns which ports p is at an address of v's endpoints: one, or none
// or several (of several endpoints) if these name it.
func (z *Zone) numbers(v *serviceNode, p *service.Port) func(netip.Addr) []uint16 {
	if p.TargetName == "" {
		number := []uint16{p.Port}
		if p.Target != 0 {
			number[0] = p.Target
		}
		return func(netip.Addr) []uint16 { return number }
	}
	at := map[netip.Addr][]uint16{}
	for _, e := range v.members {
		n := namedPort(e, p.TargetName)
		if n == 0 || z.state.outOf(v.of, e) {
			continue
		}
		for _, a := range e.Addresses {
			if !slices.Contains(at[a], n) {
				at[a] = append(at[a], n)
			}
		}
	}
	return func(a netip.Addr) []uint16 { return at[a] }
}

// namedPort is the number of a port that e's label names; 0: it has none.
func namedPort(e *endpoint.Endpoint, name string) uint16 {
	n, err := strconv.ParseUint(e.Labels[service.LabelPort+name], 10, 16)
	if err != nil {
		return 0
	}
	return uint16(n)
}

// serviceName is the name of a service.
func (z *Zone) serviceName(s *service.Service) []byte {
	return compose(z.base, s.Name, s.Network, "svc")
}
