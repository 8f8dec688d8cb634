package endpoint

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/flanneld/flanneld/store"
	"github.com/flanneld/flanneld/subnet"
)

// What a record may hold at most. FromRecord keeps to it, so that what one
// host writes every other can read.
const (
	maxSize      = 64 << 10
	maxHost      = 300
	maxIdentity  = 64
	maxContainer = 1 << 10
	maxIfName    = 15
	maxAddresses = 16
	maxNames     = 64
	maxLabelKey  = 317     // Kubernetes': 253 of a domain, a slash, 63 of a name
	maxLabels    = 8 << 10 // bytes of all keys and values
	maxReason    = 300
	maxSick      = 64 // services that an endpoint is no answer for
)

// Parse reads an endpoint as the store holds it. Errors are
// *subnet.RecordError. Unknown fields are ignored.
func Parse(etcdPrefix string, kv store.KV) (*Endpoint, error) {
	return newReader(etcdPrefix).parse(kv)
}

// parseKey takes the parts of a key below prefix.
func (e *Endpoint) parseKey(prefix, key string) error {
	rest, ok := strings.CutPrefix(key, prefix)
	if !ok {
		return &subnet.RecordError{Key: key, Remedy: "is not under " + prefix}
	}
	e.Tenant, rest, _ = strings.Cut(rest, "/")
	e.Network, e.ID, _ = strings.Cut(rest, "/")
	if !isLabel(e.Tenant) || !isLabel(e.Network) || e.ID == "" || strings.Contains(e.ID, "/") {
		return &subnet.RecordError{Key: key, Remedy: "the key must end in <tenant>/<network>/<host>,<container>,<interface>, the first two DNS labels in lower case; delete it"}
	}
	return nil
}

// wrong finds the first field that is not as it must be; remedy is "" if all
// are.
func (e *Endpoint) wrong() (field, value, remedy string) {
	switch {
	case !isID(e.Host, maxHost):
		return "Host", quote(e.Host), "must be a host's name"
	case e.Identity == "" || !isText(e.Identity, maxIdentity):
		return "Identity", quote(e.Identity), "must be a host's identity"
	case !isID(e.Container, maxContainer):
		return "Container", quote(e.Container), "must begin with a letter or digit and hold only letters, digits, and . _ -"
	case !isIfName(e.IfName):
		return "IfName", quote(e.IfName), "must be the name of an interface"
	case !e.isOf(e.ID):
		return "Host, Container, IfName", quote(id(e.Host, e.Container, e.IfName)), "must be the key's last part"
	case len(e.Addresses) > maxAddresses:
		return "Addresses", strconv.Itoa(len(e.Addresses)), fmt.Sprintf("must be at most %d", maxAddresses)
	case repeated(e.Addresses):
		return "Addresses", "", "must be there once each"
	case e.MAC != "" && !isMAC(e.MAC):
		return "MAC", quote(e.MAC), "must be like 0a:58:0a:01:13:03"
	case e.Namespace != "" && !isLabel(e.Namespace):
		return "Namespace", quote(e.Namespace), "must be a DNS label in lower case"
	}
	if field, value, remedy = e.wrongHealth(); remedy != "" {
		return field, value, remedy
	}
	if field, value, remedy = e.wrongNames(); remedy == "" {
		return e.wrongLabels()
	}
	return field, value, remedy
}

func (e *Endpoint) wrongHealth() (field, value, remedy string) {
	if len(e.Unhealthy) == 0 {
		return "", "", ""
	}
	if len(e.Unhealthy) > maxSick {
		return "Unhealthy", fmt.Sprintf("%d services", len(e.Unhealthy)), fmt.Sprintf("must be at most %d", maxSick)
	}
	for _, name := range slices.Sorted(maps.Keys(e.Unhealthy)) {
		why := e.Unhealthy[name]
		if !isLabel(name) || why == "" || !isText(why, maxReason) {
			return "Unhealthy", quote(name + ": " + why), fmt.Sprintf("must name a service, and why in one line of at most %d bytes", maxReason)
		}
	}
	return "", "", ""
}

func (e *Endpoint) wrongNames() (field, value, remedy string) {
	for _, n := range e.Names {
		if !isLabel(n) {
			return "Names", quote(n), "must be DNS labels in lower case"
		}
	}
	switch {
	case len(e.Names) > 0 && e.Parent() == "":
		return "Names", quote(e.Names[0]), "must be empty: the namespaces svc and pod are reserved"
	case len(e.Names) > maxNames:
		return "Names", strconv.Itoa(len(e.Names)), fmt.Sprintf("must be at most %d", maxNames)
	case repeated(e.Names):
		return "Names", "", "must be there once each"
	}
	return "", "", ""
}

func (e *Endpoint) wrongLabels() (field, value, remedy string) {
	size := 0
	for k, v := range e.Labels {
		if !isLabelPair(k, v) {
			return "Labels", quote(k + "=" + v), fmt.Sprintf("must be printable, a key of at most %d bytes", maxLabelKey)
		}
		size += len(k) + len(v)
	}
	if size > maxLabels {
		return "Labels", fmt.Sprintf("%d bytes", size), fmt.Sprintf("must be at most %d bytes", maxLabels)
	}
	return "", "", ""
}

// id is the last part of a key. No two interfaces have the same one: names of
// hosts and containers have no comma.
func id(host, container, ifName string) string { return host + "," + container + "," + ifName }

// isOf tells whether id is e's.
func (e *Endpoint) isOf(id string) bool {
	rest, host := strings.CutPrefix(id, e.Host)
	rest, first := strings.CutPrefix(rest, ",")
	rest, container := strings.CutPrefix(rest, e.Container)
	rest, second := strings.CutPrefix(rest, ",")
	return host && first && container && second && rest == e.IfName
}

// quote makes what somebody wrote fit for one line of a message.
func quote(s string) string { return fmt.Sprintf("%.60q", s) }

// Label makes s a DNS label in lower case: up to 63 letters, digits, and - _
// within (RFC 1123, section 2.1; the underscore is what compose puts between
// the parts of a name, and resolvers ask for it). False: it cannot be one.
func Label(s string) (string, bool) {
	if len(s) > 63 || strings.ContainsFunc(s, func(r rune) bool { return r >= utf8.RuneSelf }) {
		return "", false
	}
	s = strings.ToLower(s)
	return s, isLabel(s)
}

func isLabel(s string) bool {
	for i, c := range []byte(s) {
		alnum := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || i == len(s)-1 || c != '-' && c != '_') {
			return false
		}
	}
	return s != "" && len(s) <= 63
}

// isID is what the CNI specification asks of container ids, section 2.
func isID(s string, most int) bool {
	for i, c := range []byte(s) {
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || c != '.' && c != '_' && c != '-') {
			return false
		}
	}
	return s != "" && len(s) <= most
}

func isIfName(s string) bool {
	return s != "" && isText(s, maxIfName) && !strings.ContainsAny(s, "/ ")
}

// isText tells whether s can be shown in one line of a terminal.
func isText(s string, most int) bool {
	return len(s) <= most && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsGraphic(r) })
}

func isLabelPair(k, v string) bool {
	return k != "" && isText(k, maxLabelKey) && isText(v, maxLabels)
}

// usable addresses are those that somebody else can send to.
func usable(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.Is4In6() && a.Zone() == "" && (!a.Is4() || a.As4()[0] != 0)
}

// isMAC tells whether s is spelled as mac does it.
func isMAC(s string) bool {
	for i, c := range []byte(s) {
		digit := c >= '0' && c <= '9' || c >= 'a' && c <= 'f'
		if i%3 == 2 && c != ':' || i%3 != 2 && !digit {
			return false
		}
	}
	return len(s) == len("0a:58:0a:01:13:03")
}

// mac is the canonical spelling of a MAC address; "" if s is none.
func mac(s string) string {
	m, err := net.ParseMAC(s)
	if err != nil || len(m) != 6 {
		return ""
	}
	return m.String()
}

func repeated[T comparable](list []T) bool {
	for i, v := range list {
		if slices.Contains(list[:i], v) {
			return true
		}
	}
	return false
}
