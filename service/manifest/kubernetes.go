package manifest

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/service"
)

// unknown is said of fields that nobody knows, be they Kubernetes' or mistyped.
const unknown = "flanneld has nothing like it"

// kubernetes reads a v1 Service.
func (r *reader) kubernetes(o *object) {
	s := &service.Service{Tenant: endpoint.DefaultTenant, Network: endpoint.DefaultNetwork}
	before := len(r.errs)
	meta := r.child(o, "metadata")
	name, ok := r.text(meta, "name")
	if !ok && len(r.errs) == before {
		r.fail(meta.line, meta.prefix+"name", "", "is missing")
	}
	s.Name = name
	at := places{"Name": meta.place("name")}
	if n := meta.at("namespace"); n != nil && (isNull(n) || n.Value == "" || n.Value == s.Network) {
		meta.take("namespace")
	}
	const told = "it is told by Kubernetes, not to it"
	r.rest(meta, map[string]string{
		"namespace": "there is one network yet, " + s.Network + ", and the service is in it: " + clean(s.Name) + "." + s.Network + ".svc",
		"labels":    "services have no labels of their own", "annotations": "services have no annotations",
		"creationTimestamp": told, "generation": told, "managedFields": told, "resourceVersion": told, "selfLink": told, "uid": told,
	}, unknown)
	spec := r.child(o, "spec")
	if !o.has("spec") {
		r.fail(o.line, o.prefix+"spec", "", "is missing")
	}
	r.spec(s, spec, at)
	r.rest(o, map[string]string{"status": told}, unknown)
	if len(r.errs) == before {
		r.done(s, o.line, at, (*service.Service).ValidateNew)
	}
}

func (r *reader) spec(s *service.Service, o *object, at places) {
	kind, ok := r.text(o, "type")
	switch kind = cmp.Or(kind, "ClusterIP"); {
	case kind == "ExternalName":
		r.externalName(s, o, at)
		return
	case kind == "LoadBalancer":
		r.note(o.at("type").Line, o.prefix+"type LoadBalancer", "nothing outside balances; the service gets node ports as with NodePort")
	case ok && kind != "ClusterIP" && kind != "NodePort":
		r.fail(o.at("type").Line, o.prefix+"type", quote(kind), "must be ClusterIP, NodePort or ExternalName")
	}
	r.ports(s, o, at, kind != "ClusterIP")
	if n := o.take("selector"); n != nil {
		at["Selector"] = place{n.Line, o.prefix + "selector"}
		s.Selector = r.labels(n, o.prefix+"selector")
	}
	r.clusterIPs(s, o, at)
	r.affinity(s, o, at)
	r.local(s, o, at, kind != "ClusterIP")
	const balancer = "there is no load balancer outside"
	for _, usual := range []struct{ field, value string }{{"publishNotReadyAddresses", "false"}, {"externalName", ""}, {"loadBalancerIP", ""}} {
		if n := o.at(usual.field); n != nil && (isNull(n) || n.Kind == yaml.ScalarNode && n.Value == usual.value) {
			o.take(usual.field)
		}
	}
	r.rest(o, map[string]string{
		"allocateLoadBalancerNodePorts": balancer, "healthCheckNodePort": balancer, "loadBalancerClass": balancer, "loadBalancerIP": balancer, "loadBalancerSourceRanges": balancer,
		"externalIPs":    "hosts take nothing for addresses that are not theirs; node ports are on all of their own",
		"externalName":   "it counts for the type ExternalName only",
		"ipFamilies":     "there is a virtual IP of each family that the network of services has",
		"ipFamilyPolicy": "there is a virtual IP of each family that the network of services has", "publishNotReadyAddresses": "what is not healthy gets no connections",
	}, unknown)
}

// externalName: an alias is nothing else.
func (r *reader) externalName(s *service.Service, o *object, at places) {
	at["External"] = o.place("externalName")
	name, ok := r.text(o, "externalName")
	if !ok {
		r.fail(o.line, o.prefix+"externalName", "", "is missing: the name that this one is an alias of")
	}
	s.External = strings.ToLower(strings.TrimSuffix(name, "."))
	if n := o.at("sessionAffinity"); n != nil && n.Value == "None" {
		o.take("sessionAffinity")
	}
	r.rest(o, nil, "a service of type ExternalName is an alias and nothing else")
}

func (r *reader) ports(s *service.Service, o *object, at places, nodePorts bool) {
	at["Ports"] = o.place("ports")
	for i, n := range r.list(o, "ports") {
		path, field := fmt.Sprintf("%sports[%d]", o.prefix, i), fmt.Sprintf("Ports[%d]", i)
		c := r.object(n, path)
		if c == nil {
			continue
		}
		at[field] = place{c.line, path}
		for ours, theirs := range map[string]string{"Name": "name", "Port": "port", "Target": "targetPort", "TargetName": "targetPort", "Protocol": "protocol", "NodePort": "nodePort"} {
			at[field+"."+ours] = c.place(theirs)
		}
		var p service.Port
		p.Name, _ = r.text(c, "name")
		protocol, _ := r.text(c, "protocol")
		p.Protocol = strings.ToLower(cmp.Or(protocol, "tcp"))
		if !c.has("port") {
			r.fail(c.line, path+".port", "", "is missing")
		}
		p.Port = uint16(r.number(c, "port", 1, math.MaxUint16))
		if t := c.at("targetPort"); t != nil && t.Tag == "!!str" {
			p.TargetName, _ = r.text(c, "targetPort")
		} else if p.Target = uint16(r.number(c, "targetPort", 1, math.MaxUint16)); p.Target == p.Port {
			p.Target = 0
		}
		r.nodePort(&p, c, nodePorts)
		r.rest(c, map[string]string{"appProtocol": "nobody looks into connections"}, unknown)
		s.Ports = append(s.Ports, p)
	}
}

// nodePort reads a port's, which Kubernetes chooses if it is not there.
func (r *reader) nodePort(p *service.Port, o *object, wanted bool) {
	n := o.at("nodePort")
	if n == nil || n.Value == "0" {
		o.take("nodePort")
		if wanted {
			p.NodePort = service.AutoPort
		}
		return
	}
	p.NodePort = uint16(r.number(o, "nodePort", service.NodePortFirst, service.NodePortLast))
	if !wanted && p.NodePort != 0 {
		r.fail(n.Line, o.prefix+"nodePort", n.Value, "must be left out, or spec.type be NodePort")
	}
}

// clusterIPs are virtual ones; None is headless.
func (r *reader) clusterIPs(s *service.Service, o *object, at places) {
	at["VirtualIPs"] = o.place("clusterIP")
	if !o.has("clusterIP") {
		at["VirtualIPs"] = o.place("clusterIPs")
	}
	at["Headless"] = at["VirtualIPs"]
	list := r.list(o, "clusterIPs")
	if n := o.take("clusterIP"); n != nil && !isNull(n) {
		if len(list) > 0 && resolve(list[0]).Value != n.Value {
			r.fail(resolve(list[0]).Line, o.prefix+"clusterIPs", clean(resolve(list[0]).Value), "must begin with clusterIP")
			return
		}
		if len(list) == 0 {
			list = append(list, n)
		}
	}
	for _, n := range list {
		text, ok := r.str(n, o.prefix+"clusterIP")
		a, err := netip.ParseAddr(text)
		switch {
		case !ok || text == "":
		case text == "None":
			s.Headless = true
		case err != nil:
			r.fail(n.Line, o.prefix+"clusterIP", quote(text), "must be an IP address, or None; leave it out to have one chosen")
		default:
			s.VirtualIPs = append(s.VirtualIPs, a)
		}
	}
}

func (r *reader) affinity(s *service.Service, o *object, at places) {
	at["Affinity"] = o.place("sessionAffinity")
	kind, _ := r.text(o, "sessionAffinity")
	switch kind {
	case "", "None":
		return // a configuration of it has no meaning, and is noted
	case "ClientIP":
	default:
		r.fail(o.at("sessionAffinity").Line, o.prefix+"sessionAffinity", quote(kind), "must be ClientIP or None")
		return
	}
	if s.Headless {
		r.note(o.at("sessionAffinity").Line, o.prefix+"sessionAffinity", "clients of a headless service choose among the endpoints themselves")
		return
	}
	config := r.child(o, "sessionAffinityConfig")
	client := r.child(config, "clientIP")
	s.Affinity = cmp.Or(r.number(client, "timeoutSeconds", 1, 7*24*60*60), usualAffinity)
	r.rest(config, nil, unknown)
	r.rest(client, nil, unknown)
}

// local finds the one policy here in three there. What begins on a host and
// what comes to it from outside are treated alike, which matters if there are
// node ports.
func (r *reader) local(s *service.Service, o *object, at places, nodePorts bool) {
	policy := func(name string) string {
		text, ok := r.text(o, name)
		if ok && text != "Cluster" && text != "Local" {
			r.fail(o.at(name).Line, o.prefix+name, quote(text), "must be Cluster or Local")
		}
		return text
	}
	internal, external := policy("internalTrafficPolicy"), policy("externalTrafficPolicy")
	distribution, _ := r.text(o, "trafficDistribution")
	at["Local"] = o.place("internalTrafficPolicy")
	ignored := func(field, why string) { r.note(o.at(field).Line, o.prefix+field, why) }
	const headless = "clients of a headless service choose among the endpoints themselves"
	switch {
	case internal == "Local" && s.Headless:
		ignored("internalTrafficPolicy", headless)
	case internal == "Local" && (!nodePorts || external == "Local"):
		s.Local = service.LocalOnly
	case internal == "Local":
		ignored("internalTrafficPolicy", "Local would hold for node ports too; if that is meant, set externalTrafficPolicy: Local as well")
	case external == "Local" && nodePorts:
		ignored("externalTrafficPolicy", "Local would hold for connections from containers too; if that is meant, set internalTrafficPolicy: Local as well")
	}
	switch {
	case distribution == "" || s.Local != "":
	case s.Headless:
		ignored("trafficDistribution", headless)
	case distribution == "PreferClose" || distribution == "PreferSameNode":
		s.Local = service.LocalFirst
		at["Local"] = o.place("trafficDistribution")
	default:
		ignored("trafficDistribution", clean(distribution)+" means nothing here, hosts have no zones; PreferSameNode does")
	}
}
