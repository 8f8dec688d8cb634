package plugin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/flanneld/flanneld/subnet"
)

// identity is what the container is called, as the engine says it.
type identity struct {
	namespace string
	names     []string // its own first, then aliases
	labels    map[string]string
}

// identity collects names and labels. Whether they can be names in the DNS is
// for the daemon to judge: an ADD does not depend on it.
func (c *call) identity() (identity, error) {
	id := identity{namespace: c.args["K8S_POD_NAMESPACE"]}
	var name string
	_ = json.Unmarshal(c.conf.Args.CNI.Name, &name) // other plugins mean other things by it
	for _, n := range append([]string{c.args["K8S_POD_NAME"], name}, c.conf.RuntimeConfig.Aliases[c.conf.Name]...) {
		if n != "" && !slices.Contains(id.names, n) {
			id.names = append(id.names, n)
		}
	}
	var err error
	id.labels, err = c.labels()
	return id, err
}

// labels are those of CNI_ARGS (LABELS=key=value,key=value) and of args, which
// win.
func (c *call) labels() (map[string]string, error) {
	labels := map[string]string{}
	for pair := range strings.SplitSeq(c.args["LABELS"], ",") {
		if k, v, ok := strings.Cut(pair, "="); ok && k != "" {
			labels[k] = v
		}
	}
	raw := c.conf.Args.CNI.Labels
	if len(raw) == 0 {
		return labels, nil
	}
	if json.Unmarshal(raw, &labels) == nil {
		return labels, nil
	}
	var list []struct {
		Key   string `json:"key"`
		Value string `json:"value"`
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, failf(types.ErrInvalidNetworkConfig, `args.cni.labels %s: must be a list of {"key": …, "value": …}, or an object of texts`, clip(string(raw)))
	}
	for _, l := range list {
		labels[l.Key] = l.Value
	}
	return labels, nil
}

// resolver is the result's dns section for containers that the configuration
// tells nothing else: what dns.env, beside the subnet file, says. It is empty
// without that file, and on networks of which the daemon knows nothing. A file
// that cannot be read is as good as none, but for a warning: a container with
// the host's resolver is better than none.
func (c *call) resolver(s space) (types.DNS, error) {
	var dns types.DNS
	if c.conf.IPAM.ResolvConf != "" {
		return resolvConf(c.conf.IPAM.ResolvConf)
	}
	if s.file == "" {
		return dns, nil
	}
	env, err := subnet.ReadDNSEnv(filepath.Join(filepath.Dir(s.file), subnet.DNSEnvFile))
	if errors.Is(err, fs.ErrNotExist) {
		return dns, nil
	}
	if err != nil {
		fmt.Fprintf(c.stderr, "network %s: container %s is not told to ask the cluster's name servers: %v: restart flanneld, which writes it\n", c.conf.Name, c.containerID, err)
		return dns, nil
	}
	for _, a := range env.Servers {
		if slices.ContainsFunc(s.leased, func(p netip.Prefix) bool { return p.Addr().Is4() == a.Is4() }) {
			dns.Nameservers = append(dns.Nameservers, a.String())
		}
	}
	if len(dns.Nameservers) == 0 {
		return dns, nil
	}
	dns.Search, dns.Options = env.Search, env.Options
	if namespace := c.args["K8S_POD_NAMESPACE"]; namespace != "" && env.Domain != "" {
		dns.Search = subnet.PodSearch(env.Domain, podNetwork, namespace)
	}
	return dns, nil
}

// podNetwork is what the network of subnet.env is called in the DNS, whatever
// the configuration calls it.
const podNetwork = "default"
