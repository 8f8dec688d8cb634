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
)

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
// *FieldError, stable text.
func (s *Service) Validate() error {
	for _, part := range []struct{ field, value string }{{"Tenant", s.Tenant}, {"Network", s.Network}, {"Name", s.Name}} {
		if err := CheckLabel(part.field, part.value); err != nil {
			return err
		}
	}
	if err := CheckNetwork(s.Tenant, s.Network); err != nil {
		return err
	}
	if err := s.checkPorts(); err != nil {
		return err
	}
	if err := s.checkSelector(); err != nil {
		return err
	}
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

// isText tells whether s can be shown in one line of a terminal.
func isText(s string) bool {
	return len(s) <= maxText && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsGraphic(r) })
}
