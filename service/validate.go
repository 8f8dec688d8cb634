package service

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/flanneld/flanneld/endpoint"
)

// What a service may hold at most.
const (
	maxPorts     = 100
	maxEndpoints = 1000
	maxSelector  = 32
	maxText      = 317 // of a label's key or value, as Kubernetes' keys
	maxPath      = 1024
	maxInterval  = 60 * 60 // seconds
	maxTimeout   = 5 * 60  // seconds
	maxThreshold = 100
)

// MaxAffinity is the longest Service.Affinity, in seconds.
const MaxAffinity = 7 * 24 * 60 * 60

// AutoPort as a Port.NodePort that is asked for means that the daemon chooses
// one. It is never stored.
const AutoPort = 1

// FieldError is a field of a service that cannot be as it is.
type FieldError struct {
	Field  string
	Value  string // fit for one line; "" if it is missing
	Remedy string // what it must be
}

func (e *FieldError) Error() string {
	if e.Value == "" {
		return e.Field + ": " + e.Remedy
	}
	return e.Field + " = " + e.Value + ": " + e.Remedy
}

// Validate finds the first field that cannot be as it is. Errors are
// *FieldError, stable text. AutoPort is a node port as any other.
func (s *Service) Validate() error {
	for _, part := range []struct{ field, value string }{{"Tenant", s.Tenant}, {"Network", s.Network}, {"Name", s.Name}} {
		if err := CheckLabel(part.field, part.value); err != nil {
			return err
		}
	}
	if err := CheckNetwork(s.Tenant, s.Network); err != nil {
		return err
	}
	for _, check := range []func() error{s.checkExternal, s.checkPorts, s.checkSelector, s.checkAddresses, s.checkNodePorts, s.checkChoice, s.checkHealth} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// ValidateNew is Validate for a service that somebody asks for, who should be
// told as well what makes no sense.
func (s *Service) ValidateNew() error {
	if !s.Headless && s.External == "" && len(s.Ports) == 0 {
		return &FieldError{"Ports", "", "is missing: give at least one, or make the service headless, whose name stands for the endpoints themselves"}
	}
	return s.Validate()
}

// checkExternal: an alias is nothing else.
func (s *Service) checkExternal() error {
	if s.External == "" {
		return nil
	}
	if !isName(s.External) {
		return &FieldError{"External", quote(s.External), "must be a name in the DNS, in lower case and without the dot at the end, such as db.example.com"}
	}
	for _, f := range []struct {
		field string
		there bool
	}{
		{"Ports", len(s.Ports) > 0}, {"Selector", len(s.Selector) > 0}, {"Endpoints", len(s.Endpoints) > 0}, {"Headless", s.Headless},
		{"VirtualIPs", len(s.VirtualIPs) > 0}, {"Affinity", s.Affinity != 0}, {"Local", s.Local != ""}, {"Balance", s.Balance != ""}, {"Health", s.Health != nil},
	} {
		if f.there {
			return &FieldError{f.field, "", "must be left out with External: " + s.External + " is asked for all of it"}
		}
	}
	return nil
}

func (s *Service) checkAddresses() error {
	if len(s.Endpoints) > maxEndpoints {
		return &FieldError{"Endpoints", strconv.Itoa(len(s.Endpoints)), fmt.Sprintf("must be at most %d; give the endpoints a label to select them by", maxEndpoints)}
	}
	if err := CheckAddresses("Endpoints", s.Endpoints); err != nil {
		return err
	}
	if err := CheckAddresses("VirtualIPs", s.VirtualIPs); err != nil {
		return err
	}
	if len(s.VirtualIPs) > 2 || len(s.VirtualIPs) == 2 && s.VirtualIPs[0].Is4() == s.VirtualIPs[1].Is4() {
		return &FieldError{"VirtualIPs", fmt.Sprint(s.VirtualIPs), "must be at most one per family"}
	}
	if s.Headless && len(s.VirtualIPs) > 0 {
		return &FieldError{"VirtualIPs", fmt.Sprint(s.VirtualIPs), "must be none if Headless is true"}
	}
	return nil
}

func (s *Service) checkPorts() error {
	if len(s.Ports) > maxPorts {
		return &FieldError{"Ports", strconv.Itoa(len(s.Ports)), fmt.Sprintf("must be at most %d", maxPorts)}
	}
	for i, p := range s.Ports {
		field := "Ports[" + strconv.Itoa(i) + "]"
		switch {
		case p.Port == 0:
			return &FieldError{field + ".Port", "0", "must be from 1 to 65535"}
		case p.Protocol != "tcp" && p.Protocol != "udp" && p.Protocol != "sctp":
			return &FieldError{field + ".Protocol", quote(p.Protocol), "must be tcp, udp or sctp"}
		case p.Name == "" && len(s.Ports) > 1:
			return &FieldError{field + ".Name", "", "is missing: only a single port needs none"}
		}
		if p.Name != "" {
			if err := CheckLabel(field+".Name", p.Name); err != nil {
				return err
			}
			if !strings.ContainsFunc(p.Name, isLetter) { // RFC 6335, section 5.1; most likely a : was meant to be
				return &FieldError{field + ".Name", quote(p.Name), "must have a letter in it; PORT:TARGET, as in 80:8080, needs no name"}
			}
		}
		if p.TargetName != "" {
			if err := CheckLabel(field+".TargetName", p.TargetName); err != nil {
				return err
			}
			if p.Target != 0 {
				return &FieldError{field + ".TargetName", quote(p.TargetName), fmt.Sprintf("must be left out, or Target %d", p.Target)}
			}
		}
		for _, o := range s.Ports[:i] {
			if o.Protocol != p.Protocol {
				continue // dns may be 53 of tcp and of udp
			}
			if o.Port == p.Port {
				return &FieldError{field + ".Port", fmt.Sprintf("%d/%s", p.Port, p.Protocol), "is there twice"}
			}
			if o.Name == p.Name {
				return &FieldError{field + ".Name", fmt.Sprintf("%s/%s", p.Name, p.Protocol), "is there twice"}
			}
		}
	}
	return nil
}

func (s *Service) checkNodePorts() error {
	for i, p := range s.Ports {
		if p.NodePort == 0 {
			continue
		}
		field, value := fmt.Sprintf("Ports[%d].NodePort", i), strconv.Itoa(int(p.NodePort))
		if p.NodePort == AutoPort {
			value = "auto"
		}
		switch {
		case p.NodePort != AutoPort && (p.NodePort < NodePortFirst || p.NodePort > NodePortLast):
			return &FieldError{field, value, fmt.Sprintf("must be from %d to %d", NodePortFirst, NodePortLast)}
		case s.Headless:
			return &FieldError{field, value, "must be none if Headless is true"}
		}
		for _, o := range s.Ports[:i] {
			if p.NodePort != AutoPort && o.NodePort == p.NodePort && o.Protocol == p.Protocol {
				return &FieldError{field, value + "/" + p.Protocol, "is there twice"}
			}
		}
	}
	return nil
}

// checkChoice is about how an endpoint is chosen, which clients of a headless
// service do themselves.
func (s *Service) checkChoice() error {
	affinity := fmt.Sprintf("%d s", s.Affinity)
	switch {
	case s.Affinity < 0 || s.Affinity > MaxAffinity:
		return &FieldError{"Affinity", affinity, fmt.Sprintf("must be from 1 to %d seconds (7 days), or 0 for none", MaxAffinity)}
	case s.Local != "" && s.Local != LocalCluster && s.Local != LocalOnly && s.Local != LocalFirst:
		return &FieldError{"Local", quote(s.Local), "must be cluster, local or prefer-local"}
	case s.Balance != "" && s.Balance != BalanceRandom && s.Balance != BalanceRoundRobin && s.Balance != BalanceHash:
		return &FieldError{"Balance", quote(s.Balance), "must be random, round-robin or hash"}
	case s.Affinity != 0 && s.Balance == BalanceHash:
		return &FieldError{"Affinity", affinity, "must be none if Balance is hash, which sends a client to one endpoint by itself"}
	}
	const remedy = "must be left out if Headless is true: clients choose among the endpoints themselves"
	switch {
	case !s.Headless:
	case s.Affinity != 0:
		return &FieldError{"Affinity", affinity, remedy}
	case s.Local != "" && s.Local != LocalCluster:
		return &FieldError{"Local", s.Local, remedy}
	case s.Balance != "" && s.Balance != BalanceRandom:
		return &FieldError{"Balance", s.Balance, remedy}
	}
	return nil
}

func (s *Service) checkHealth() error {
	h := s.Health
	if h == nil {
		return nil
	}
	switch {
	case h.Type != HealthTCP && h.Type != HealthHTTP:
		return &FieldError{"Health.Type", quote(h.Type), "must be tcp or http"}
	case h.Type == HealthTCP && h.Path != "":
		return &FieldError{"Health.Path", quote(h.Path), "must be left out with the type tcp"}
	case h.Type == HealthHTTP && !isPath(h.Path):
		return &FieldError{"Health.Path", quote(h.Path), fmt.Sprintf("must begin with / and be printable ASCII without spaces, at most %d bytes, such as /healthz", maxPath)}
	}
	for _, n := range []struct {
		field       string
		value, most int
	}{{"Interval", h.Interval, maxInterval}, {"Timeout", h.Timeout, maxTimeout}, {"Threshold", h.Threshold, maxThreshold}} {
		if n.value < 0 || n.value > n.most {
			return &FieldError{"Health." + n.field, strconv.Itoa(n.value), fmt.Sprintf("must be from 1 to %d, or 0 for what is usual", n.most)}
		}
	}
	if !slices.ContainsFunc(s.Ports, func(p Port) bool { return p.Protocol == "tcp" }) {
		return &FieldError{"Health.Type", h.Type, "must be none, or a port of tcp be there to look at"}
	}
	return nil
}

func (s *Service) checkSelector() error {
	if len(s.Selector) > maxSelector {
		return &FieldError{"Selector", fmt.Sprintf("%d labels", len(s.Selector)), fmt.Sprintf("must be at most %d", maxSelector)}
	}
	wrong := ""
	for k, v := range s.Selector {
		if pair := k + "=" + v; (k == "" || !isText(k) || !isText(v)) && (wrong == "" || pair < wrong) {
			wrong = pair
		}
	}
	if wrong != "" {
		return &FieldError{"Selector", quote(wrong), fmt.Sprintf("must be printable, a key and a value of at most %d bytes each", maxText)}
	}
	return nil
}

// CheckLabel returns nil if value can be one label of a name, else a
// *FieldError for field.
func CheckLabel(field, value string) error {
	if low, ok := endpoint.Label(value); !ok || low != value {
		if value == "" {
			return &FieldError{field, "", "is missing"}
		}
		return &FieldError{field, quote(value), "must be a DNS label: up to 63 lower-case letters, digits, and - or _ within"}
	}
	return nil
}

// CheckNetwork returns nil if the names in a network of a tenant cannot be
// taken for something else, as <name>.svc.<domain> would be.
func CheckNetwork(tenant, network string) error {
	const remedy = "is reserved: svc and pod stand for services and addresses of pods in the DNS; take another name"
	if endpoint.Reserved(tenant) {
		return &FieldError{"Tenant", quote(tenant), remedy}
	}
	if endpoint.Reserved(network) {
		return &FieldError{"Network", quote(network), remedy}
	}
	return nil
}

// CheckAddresses returns nil if all of list can be answered to clients and
// none is there twice, else a *FieldError for field.
func CheckAddresses(field string, list []netip.Addr) error {
	for i, a := range list {
		ok := a.IsGlobalUnicast() && !a.Is4In6() && a.Zone() == "" && (!a.Is4() || a.As4()[0] != 0)
		switch {
		case !ok:
			return &FieldError{field, quote(a.String()), "must be unicast addresses that others can reach"}
		case slices.Contains(list[:i], a):
			return &FieldError{field, a.String(), "is there twice"}
		}
	}
	return nil
}

func isLetter(r rune) bool { return r >= 'a' && r <= 'z' }

// isText tells whether s can be shown in one line of a terminal.
func isText(s string) bool {
	return len(s) <= maxText && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsGraphic(r) })
}

// isName tells whether s is a name in the DNS in lower case (RFC 1035, with _),
// and not an address.
func isName(s string) bool {
	for l := range strings.SplitSeq(s, ".") {
		if low, ok := endpoint.Label(l); !ok || low != l {
			return false
		}
	}
	_, err := netip.ParseAddr(s)
	return len(s) <= 253 && err != nil
}

// isPath tells whether s can be asked for by HTTP as it is (RFC 9112, 3.2.1).
func isPath(s string) bool {
	return strings.HasPrefix(s, "/") && len(s) <= maxPath && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || r == '#' })
}
