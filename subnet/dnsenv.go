package subnet

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// DNSEnvFile is the name of the file with a DNSEnv; it is beside subnet.env.
const DNSEnvFile = "dns.env"

// What a resolver makes use of is much less.
const mostServers, mostDomains, mostOptions = 8, 16, 16

// DNSEnv is what dns.env tells engines and plugins about the resolver of
// containers.
type DNSEnv struct {
	Servers []netip.Addr
	Domain  string   // of the cluster, "cluster.local"
	Search  []string // of the pod network: PodSearch without a namespace
	Options []string // as in resolv.conf
}

// PodSearch is the search list of a container: services of its network, the
// containers of its namespace (of its network if it has none or one that is
// no DNS label), all services, all names.
func PodSearch(domain, network, namespace string) []string {
	if namespace = strings.ToLower(namespace); !isDomain(namespace) || strings.Contains(namespace, ".") {
		namespace = network
	}
	return slices.Compact([]string{network + ".svc." + domain, namespace + "." + domain, "svc." + domain, domain})
}

// Equal says whether two files would be the same.
func (e DNSEnv) Equal(o DNSEnv) bool {
	return slices.Equal(e.Servers, o.Servers) && e.Domain == o.Domain && slices.Equal(e.Search, o.Search) && slices.Equal(e.Options, o.Options)
}

// Marshal is the content of the file. A shell and systemd's EnvironmentFile
// read it.
func (e DNSEnv) Marshal() []byte {
	var servers []string
	for _, a := range e.Servers {
		servers = append(servers, a.String())
	}
	return fmt.Appendf(nil, "FLANNEL_DNS=%s\nFLANNEL_DNS_DOMAIN=%s\nFLANNEL_DNS_SEARCH=%s\nFLANNEL_DNS_OPTIONS=%s\n",
		strings.Join(servers, ","), e.Domain, words(e.Search), words(e.Options))
}

// words is a list as one value.
func words(list []string) string {
	if len(list) > 1 {
		return `"` + strings.Join(list, " ") + `"`
	}
	return strings.Join(list, "")
}

// WriteDNSEnv replaces the file at path atomically, making its directory if
// necessary.
func WriteDNSEnv(path string, e DNSEnv) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write DNS file: %w", err)
	}
	if err := replaceFile(path, e.Marshal(), 0o644); err != nil {
		return fmt.Errorf("write DNS file: %w", err)
	}
	return nil
}

// ReadDNSEnv reads a file written by WriteDNSEnv. Without a file the error is
// fs.ErrNotExist.
func ReadDNSEnv(path string) (DNSEnv, error) { return readVars(path, "DNS file", ParseDNSEnv) }

// ParseDNSEnv reads the content of a DNS file, as tolerantly as ParseEnv.
func ParseDNSEnv(b []byte) (DNSEnv, error) {
	var e DNSEnv
	if err := parseVars(b, e.set); err != nil {
		return DNSEnv{}, err
	}
	return e, nil
}

func (e *DNSEnv) set(name, value string) error {
	switch name {
	case "FLANNEL_DNS":
		return e.setServers(value)
	case "FLANNEL_DNS_DOMAIN":
		if e.Domain = value; value != "" && !isDomain(value) {
			return errors.New("must be a domain")
		}
	case "FLANNEL_DNS_SEARCH":
		e.Search = strings.Fields(value)
		if len(e.Search) > mostDomains || slices.ContainsFunc(e.Search, func(s string) bool { return !isDomain(s) }) {
			return fmt.Errorf("must be at most %d domains with blanks in between", mostDomains)
		}
	case "FLANNEL_DNS_OPTIONS":
		e.Options = strings.Fields(value)
		if len(e.Options) > mostOptions || slices.ContainsFunc(e.Options, func(s string) bool { return !isOption(s) }) {
			return fmt.Errorf("must be at most %d options of resolv.conf, such as timeout:3", mostOptions)
		}
	}
	return nil
}

func (e *DNSEnv) setServers(value string) error {
	e.Servers = nil
	for s := range strings.FieldsFuncSeq(value, func(r rune) bool { return r == ',' || r == ' ' }) {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" || a.IsUnspecified() || len(e.Servers) == mostServers {
			return fmt.Errorf("must be at most %d IP addresses with commas in between", mostServers)
		}
		e.Servers = append(e.Servers, a.Unmap())
	}
	return nil
}

// isOption tells whether s is a word that nobody's shell takes for more.
func isOption(s string) bool {
	name, number, _ := strings.Cut(s, ":")
	return isDomain(name) && len(number) <= 9 && strings.Trim(number, "0123456789") == ""
}

// isDomain tells whether s is labels with dots in between, none at the end
// (RFC 1123, section 2.1, and the underscore).
func isDomain(s string) bool {
	for label := range strings.SplitSeq(s, ".") {
		bad := func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
		}
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' || strings.ContainsFunc(label, bad) {
			return false
		}
	}
	return len(s) <= 253
}
