// Package manifest reads services as people write them.
package manifest

import (
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/flanneld/flanneld/service"
)

// Field is one thing to say about a service: a flag of the command line, a key
// in a manifest.
type Field struct {
	Name string
	// Of is the field of service.Service that it sets, as a service.FieldError
	// names it.
	Of     string
	Usage  string // what follows the name is in backquotes
	Switch bool   // true or false, and its name alone is true
	set    func(s *service.Service, texts []string) error
}

// Set makes texts, all that was said, the field of s; a single "" clears it.
// Errors are *ValueError. What s had in maps, slices and pointers stays as it is.
func (f Field) Set(s *service.Service, texts []string) error {
	if len(texts) > 1 && !f.list() {
		return &ValueError{texts[1], "is one too many: there is " + quote(texts[0]) + " already"}
	}
	return f.set(s, texts)
}

// list tells whether the field takes several values.
func (f Field) list() bool {
	switch f.Of {
	case "Ports", "Selector", "Endpoints", "VirtualIPs", "NodePort":
		return true
	}
	return false
}

// ValueError is a text that cannot be what it was given for.
type ValueError struct{ Value, Remedy string }

func (e *ValueError) Error() string { return quote(e.Value) + ": " + e.Remedy }

// Fields are all there are, in the order in which they must be set.
func Fields() []Field {
	return []Field{
		{Name: "port", Of: "Ports", set: setPorts, Usage: "`[NAME=]PORT[:TARGET][/tcp|udp|sctp]`: TARGET is the containers' port if it is another, as a number or by its name; repeatable, named if there are several"},
		{Name: "selector", Of: "Selector", set: setSelector, Usage: "`LABEL=VALUE[,LABEL=VALUE…]` that a container must all carry; repeatable"},
		{Name: "endpoint", Of: "Endpoints", set: setAddresses(func(s *service.Service) *[]netip.Addr { return &s.Endpoints }),
			Usage: "`ADDRESS` that belongs to the service, beside the selected containers; repeatable"},
		{Name: "ip", Of: "VirtualIPs", set: setAddresses(func(s *service.Service) *[]netip.Addr { return &s.VirtualIPs }),
			Usage: "`ADDRESS` in the network of services that shall be the virtual IP, one of each family; chosen unless given, and kept"},
		{Name: "node-port", Of: "NodePort", set: setNodePorts, Usage: fmt.Sprintf("`[NAME=]PORT|auto` of every host that leads to the service too, from %d to %d; NAME is the service's port; repeatable", service.NodePortFirst, service.NodePortLast)},
		{Name: "headless", Of: "Headless", Switch: true, set: setHeadless, Usage: "the name stands for the endpoints themselves; there is no virtual IP"},
		{Name: "affinity", Of: "Affinity", set: setAffinity, Usage: "`client-ip[=TIME]|none`: a client stays at its endpoint until TIME after its last connection, 3h unless given"},
		{Name: "local", Of: "Local", set: setLocal, Usage: "`cluster|local|prefer-local`: which containers a host sends connections to: those of all hosts, only its own, its own if there are any"},
		{Name: "balance", Of: "Balance", set: setBalance, Usage: "`random|round-robin|hash`: how one is chosen; hash is by the client's address"},
		{Name: "external", Of: "External", set: setExternal, Usage: "`NAME` elsewhere, such as db.example.com, that the service is an alias of, and nothing else"},
		{Name: "health", Of: "Health", set: setHealth, Usage: "`tcp|http:/PATH|none`: how containers are checked: whether they take connections, or answer GET with 200 to 399"},
		{Name: "health-interval", Of: "Health.Interval", set: setHealthTime(func(h *service.Health) *int { return &h.Interval }), Usage: "`TIME` between two checks, 5s unless given"},
		{Name: "health-timeout", Of: "Health.Timeout", set: setHealthTime(func(h *service.Health) *int { return &h.Timeout }), Usage: "`TIME` that a check may take, 2s unless given"},
		{Name: "health-threshold", Of: "Health.Threshold", set: setThreshold, Usage: "`N` checks in a row that say otherwise change the verdict, 2 unless given"},
	}
}

// Complete is service.ValidateNew for somebody who says all of it at once: a
// service that nothing could belong to is a mistake.
func Complete(s *service.Service) error {
	if len(s.Selector)+len(s.Endpoints) == 0 && s.External == "" {
		return &service.FieldError{Field: "Selector", Remedy: "is missing, and nothing would belong to the service: give labels to select containers by, or addresses as endpoints"}
	}
	return s.ValidateNew()
}

// NameOf is the name of the Field that a service.FieldError is about; "": none.
func NameOf(field string) string {
	if strings.HasSuffix(field, ".NodePort") {
		field = "NodePort"
	}
	best := ""
	for _, f := range Fields() {
		if field == f.Of {
			return f.Name
		}
		if best == "" && (strings.HasPrefix(field, f.Of+"[") || strings.HasPrefix(field, f.Of+".")) {
			best = f.Name
		}
	}
	return best
}

// parts are the texts' parts between commas, without those that are empty.
func parts(texts []string) (out []string) {
	for _, t := range texts {
		for p := range strings.SplitSeq(t, ",") {
			if p = strings.TrimSpace(p); p != "" {
				out = append(out, p)
			}
		}
	}
	return out
}

// single is the only text, "" of none.
func single(texts []string) string { return strings.TrimSpace(strings.Join(texts, "")) }

func setPorts(s *service.Service, texts []string) error {
	was := s.Ports
	s.Ports = nil
	for _, t := range parts(texts) {
		p, err := parsePort(t)
		if err != nil {
			return &ValueError{t, err.Error()}
		}
		for _, w := range was {
			if w.Port == p.Port && w.Protocol == p.Protocol {
				p.NodePort = w.NodePort
			}
		}
		s.Ports = append(s.Ports, p)
	}
	return nil
}

// parsePort reads [name=]port[:target][/protocol].
func parsePort(text string) (service.Port, error) {
	rest, protocol, ok := strings.Cut(strings.ToLower(text), "/")
	if !ok {
		protocol = "tcp"
	}
	p := service.Port{Protocol: protocol}
	name, number, named := strings.Cut(rest, "=")
	if !named {
		name, number = "", rest
	}
	p.Name = name
	number, target, hasTarget := strings.Cut(number, ":")
	var err error
	switch p.Port, err = portNumber(number); {
	case err != nil:
		return p, err
	case named && name == "":
		return p, fmt.Errorf("the name before = is empty")
	case protocol != "tcp" && protocol != "udp" && protocol != "sctp":
		return p, fmt.Errorf("there is no protocol %s: use tcp, udp or sctp", quote(protocol))
	}
	if !hasTarget {
		return p, nil
	}
	if service.CheckLabel("", target) == nil && strings.Trim(target, "0123456789") != "" {
		p.TargetName = target
		return p, nil
	}
	if p.Target, err = portNumber(target); p.Target == p.Port {
		p.Target = 0
	}
	return p, err
}

func portNumber(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("port %s: give a number from 1 to 65535, as in http=8888 or 80:8080/tcp", quote(s))
	}
	return uint16(n), nil
}

func setSelector(s *service.Service, texts []string) error {
	s.Selector = nil
	for _, t := range parts(texts) {
		k, v, ok := strings.Cut(t, "=")
		if !ok || k == "" {
			return &ValueError{t, "give LABEL=VALUE, such as app=sample"}
		}
		if was, ok := s.Selector[k]; ok && was != v {
			return &ValueError{t, "label " + quote(k) + " is given twice, it is " + quote(was) + " already"}
		}
		if s.Selector == nil {
			s.Selector = map[string]string{}
		}
		s.Selector[k] = v
	}
	return nil
}

func setAddresses(of func(*service.Service) *[]netip.Addr) func(*service.Service, []string) error {
	return func(s *service.Service, texts []string) error {
		var list []netip.Addr
		for _, t := range parts(texts) {
			a, err := netip.ParseAddr(t)
			if err != nil {
				return &ValueError{t, "give an IP address, such as 192.0.2.7 or 2001:db8::7"}
			}
			list = append(list, a.Unmap())
		}
		*of(s) = list
		return nil
	}
}

func setNodePorts(s *service.Service, texts []string) error {
	s.Ports = append([]service.Port(nil), s.Ports...)
	all := parts(texts)
	if len(all) == 0 {
		for i := range s.Ports {
			s.Ports[i].NodePort = 0
		}
	}
	for _, t := range all {
		name, number, named := strings.Cut(strings.ToLower(t), "=")
		if !named {
			name, number = "", name
		}
		port, err := nodePort(number)
		if err != nil {
			return &ValueError{t, err.Error()}
		}
		found := 0
		for i, p := range s.Ports {
			if !named || p.Name == name {
				s.Ports[i].NodePort = port
				found++
			}
		}
		switch {
		case found == 0:
			return &ValueError{t, "the service has no such port: give it too, with the same name"}
		case !named && found > 1 && port > service.AutoPort:
			return &ValueError{t, "the service has several ports: say which one, as in " + s.Ports[0].Name + "=" + number}
		}
	}
	return nil
}

// nodePort reads a number, auto, or "" for none.
func nodePort(s string) (uint16, error) {
	switch s {
	case "":
		return 0, nil
	case "auto":
		return service.AutoPort, nil
	}
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n < service.NodePortFirst || n > service.NodePortLast {
		return 0, fmt.Errorf("give a number from %d to %d, or auto", service.NodePortFirst, service.NodePortLast)
	}
	return uint16(n), nil
}

func setHeadless(s *service.Service, texts []string) error {
	t := single(texts)
	yes, err := strconv.ParseBool(t)
	if err != nil && t != "" {
		return &ValueError{t, "give true or false"}
	}
	s.Headless = yes
	return nil
}

// usualAffinity is what Kubernetes has.
const usualAffinity = 3 * 60 * 60

func setAffinity(s *service.Service, texts []string) (err error) {
	t := single(texts)
	kind, text, timed := strings.Cut(t, "=")
	switch {
	case t == "" || t == "none":
		s.Affinity = 0
	case kind != "client-ip":
		return &ValueError{t, "use client-ip, client-ip=3h or none"}
	case !timed:
		s.Affinity = usualAffinity
	default:
		if s.Affinity, err = seconds(text); err != nil || s.Affinity > service.MaxAffinity {
			return &ValueError{t, fmt.Sprintf("give a time of whole seconds, at most %dh (7 days), such as client-ip=3h", service.MaxAffinity/3600)}
		}
	}
	return nil
}

// seconds reads a time, such as 90s, 1h30m or 90, as a number of whole seconds.
func seconds(t string) (int, error) {
	if n, err := strconv.ParseUint(t, 10, 31); err == nil && n > 0 {
		return int(n), nil
	}
	d, err := time.ParseDuration(t)
	if err != nil || d < time.Second || d%time.Second != 0 || d > math.MaxInt32*time.Second {
		return 0, &ValueError{t, "give a time of whole seconds, such as 5s or 1h30m"}
	}
	return int(d / time.Second), nil
}

func setLocal(s *service.Service, texts []string) error {
	if s.Local = single(texts); s.Local == service.LocalCluster {
		s.Local = ""
	}
	return nil
}

func setBalance(s *service.Service, texts []string) error {
	if s.Balance = single(texts); s.Balance == service.BalanceRandom {
		s.Balance = ""
	}
	return nil
}

func setExternal(s *service.Service, texts []string) error {
	s.External = strings.ToLower(strings.TrimSuffix(single(texts), "."))
	return nil
}

func setHealth(s *service.Service, texts []string) error {
	t := single(texts)
	if t == "" || t == "none" {
		s.Health = nil
		return nil
	}
	h := service.Health{}
	if s.Health != nil {
		h = *s.Health
	}
	kind, path, _ := strings.Cut(t, ":")
	h.Type, h.Path = kind, path
	if kind == service.HealthHTTP && path == "" {
		h.Path = "/"
	}
	if kind != service.HealthHTTP && t != service.HealthTCP {
		return &ValueError{t, "use tcp, http:/PATH such as http:/healthz, or none"}
	}
	s.Health = &h
	return nil
}

// alterHealth sets a number of the check that there must be.
func alterHealth(s *service.Service, t string, of func(*service.Health) *int, n int) error {
	if s.Health == nil {
		return &ValueError{t, "nothing is checked: say how with health, tcp or http:/PATH"}
	}
	h := *s.Health
	*of(&h) = n
	s.Health = &h
	return nil
}

func setHealthTime(of func(*service.Health) *int) func(*service.Service, []string) error {
	return func(s *service.Service, texts []string) (err error) {
		t, n := single(texts), 0
		if t != "" {
			if n, err = seconds(t); err != nil {
				return err
			}
		}
		return alterHealth(s, t, of, n)
	}
}

func setThreshold(s *service.Service, texts []string) error {
	t, n := single(texts), 0
	if t != "" {
		var err error
		if n, err = strconv.Atoi(t); err != nil || n < 1 {
			return &ValueError{t, "give a number, such as 3"}
		}
	}
	return alterHealth(s, t, func(h *service.Health) *int { return &h.Threshold }, n)
}

// quote makes what somebody wrote fit for one line of a message.
func quote(s string) string { return fmt.Sprintf("%.60q", s) }
