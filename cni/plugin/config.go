package plugin

import (
	"encoding/json"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/flanneld/flanneld/ipam"
)

// maxConfig bounds a configuration; real ones are a few kilobytes.
const maxConfig = 4 << 20

// Defaults of the configuration.
const (
	defaultBridge     = "cni0"
	defaultSubnetFile = "/run/flannel/subnet.env"
	ownIPAM           = "flanneld-ipam"
)

// config is the network configuration of both plugins. Keys that are not
// named here are ignored; encoding/json reads names in any case, as
// containerd writes runtimeConfig's.
type config struct {
	CNIVersion string `json:"cniVersion"`
	Name       string `json:"name"`
	Type       string `json:"type"`

	Bridge           string `json:"bridge"`
	IsGateway        bool   `json:"isGateway"`
	IsDefaultGateway bool   `json:"isDefaultGateway"`
	ForceAddress     bool   `json:"forceAddress"`
	IPMasq           bool   `json:"ipMasq"`
	MTU              int    `json:"mtu"`
	HairpinMode      bool   `json:"hairpinMode"`
	PromiscMode      bool   `json:"promiscMode"`
	PortIsolation    bool   `json:"portIsolation"`
	EnableDAD        bool   `json:"enabledad"`
	// SpoofCheck: the guard against forged senders is on unless this is
	// false.
	SpoofCheck *bool `json:"macspoofchk"`
	// Not supported yet.
	VLAN       int             `json:"vlan"`
	VLANTrunk  json.RawMessage `json:"vlanTrunk"`
	NoEndpoint bool            `json:"disableContainerInterface"`

	// DataDir is where the attachment records are if another plugin
	// allocates; with flanneld-ipam, ipam.dataDir is.
	DataDir string     `json:"dataDir"`
	IPAM    ipamConfig `json:"ipam"`
	DNS     types.DNS  `json:"dns"`

	RuntimeConfig struct {
		MAC      string              `json:"mac"`
		IPs      []string            `json:"ips"`
		IPRanges [][]rangeConfig     `json:"ipRanges"`
		Aliases  map[string][]string `json:"aliases"`
	} `json:"runtimeConfig"`
	Args struct {
		CNI struct {
			MAC    string          `json:"mac"`
			IPs    []string        `json:"ips"`
			Name   json.RawMessage `json:"name"`   // see identity
			Labels json.RawMessage `json:"labels"` // see labels
		} `json:"cni"`
	} `json:"args"`

	PrevResult  json.RawMessage `json:"prevResult"`
	Valid       json.RawMessage `json:"cni.dev/valid-attachments"`
	ValidLegacy json.RawMessage `json:"cni.dev/attachments"`
}

// ipamConfig is host-local's, and where the subnet is written.
type ipamConfig struct {
	Type string `json:"type"`
	rangeConfig
	Ranges     [][]rangeConfig `json:"ranges"`
	Routes     []*types.Route  `json:"routes"`
	DataDir    string          `json:"dataDir"`
	ResolvConf string          `json:"resolvConf"`
	SubnetFile string          `json:"subnetFile"`
}

type rangeConfig struct {
	Subnet     string `json:"subnet"`
	RangeStart string `json:"rangeStart"`
	RangeEnd   string `json:"rangeEnd"`
	Gateway    string `json:"gateway"`
}

// parseConfig reads and validates a configuration as far as every command
// needs it: a DEL must work whatever became of the rest.
func parseConfig(b []byte) (config, error) {
	var c config
	if len(b) > maxConfig {
		return c, failf(types.ErrDecodingFailure, "configuration is longer than %d bytes", maxConfig)
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, failf(types.ErrDecodingFailure, "configuration is not as it should be: %v", err)
	}
	answer := c.CNIVersion
	c.CNIVersion = Versions[len(Versions)-1]
	if !slices.Contains(Versions, answer) {
		return c, failf(types.ErrIncompatibleCNIVersion, "cniVersion %q is not supported: use one of %s", clip(answer), strings.Join(Versions, ", "))
	}
	c.CNIVersion = answer
	if c.Name == "" {
		return c, failf(types.ErrInvalidNetworkConfig, `"name" is missing`)
	}
	if !isID(c.Name) || len(c.Name) > 200 {
		return c, failf(types.ErrInvalidNetworkConfig, "name %q: must begin with a letter or digit, hold only letters, digits, and . _ -, and have at most 200 bytes", clip(c.Name))
	}
	if c.IPAM.Type != "" && (c.IPAM.Type[0] == '.' || strings.ContainsAny(c.IPAM.Type, "/\x00")) {
		return c, failf(types.ErrInvalidNetworkConfig, "ipam.type %q: must be the file name of a plugin", clip(c.IPAM.Type))
	}
	for key, dir := range map[string]string{"dataDir": c.DataDir, "ipam.dataDir": c.IPAM.DataDir, "ipam.subnetFile": c.IPAM.SubnetFile, "ipam.resolvConf": c.IPAM.ResolvConf} {
		if dir != "" && dir[0] != '/' {
			return c, failf(types.ErrInvalidNetworkConfig, "%s %q: must be an absolute path", key, clip(dir))
		}
	}
	if c.Bridge == "" {
		c.Bridge = defaultBridge
	}
	return c, nil
}

// validate checks what flanneld-bridge needs to plug in.
func (c *config) validate() error {
	bad := func(format string, args ...any) error {
		return failf(types.ErrInvalidNetworkConfig, format, args...)
	}
	if err := validIfName(c.Bridge); err != nil {
		return bad("bridge %q: must be a name for a network interface: at most 15 bytes, no white space, / : or %%", clip(c.Bridge))
	}
	if strings.HasPrefix(c.Bridge, ipam.LinkPrefix) && len(c.Bridge) == 15 {
		return bad("bridge %q: names like this are the host ends of containers: choose another", c.Bridge)
	}
	if c.VLAN != 0 || len(c.VLANTrunk) > 0 && string(c.VLANTrunk) != "null" {
		return failf(types.ErrUnsupportedField, "vlan and vlanTrunk are not supported yet: remove them, or use one bridge for each VLAN")
	}
	if c.NoEndpoint {
		return failf(types.ErrUnsupportedField, "disableContainerInterface is not supported yet: remove it")
	}
	if c.MTU != 0 && (c.MTU < 68 || c.MTU > 65535) {
		return bad("mtu %d: must be between 68 and 65535, or 0 for the default", c.MTU)
	}
	if c.HairpinMode && c.PromiscMode {
		return bad("hairpinMode and promiscMode exclude each other: set one of them to false")
	}
	if c.IsDefaultGateway {
		c.IsGateway = true
	}
	if c.IsGateway && c.IPAM.Type == "" {
		return bad(`isGateway needs addresses: add "ipam": {"type": %q}`, ownIPAM)
	}
	return nil
}

// delegates tells whether another IPAM plugin chooses the addresses.
func (c *config) delegates() bool { return c.IPAM.Type != "" && c.IPAM.Type != ownIPAM }

// dataDir is where the attachment records are.
func (c *config) dataDir() string {
	if c.IPAM.Type == ownIPAM {
		return c.IPAM.DataDir
	}
	return c.DataDir
}

// mac is the address asked for; nil if none is. The runtime's word wins over
// args, and args over CNI_ARGS, as in the reference plugin.
func (c *call) mac() (net.HardwareAddr, error) {
	for _, x := range []struct{ from, value string }{
		{"runtimeConfig.mac", c.conf.RuntimeConfig.MAC}, {"args.cni.mac", c.conf.Args.CNI.MAC}, {"MAC in CNI_ARGS", c.args["MAC"]},
	} {
		if x.value == "" {
			continue
		}
		mac, err := net.ParseMAC(x.value)
		if err != nil || len(mac) != 6 || mac[0]&1 != 0 || slices.Max(mac) == 0 {
			return nil, failf(types.ErrInvalidNetworkConfig, "%s %q: must be a unicast MAC address such as 0a:58:0a:01:02:03", x.from, clip(x.value))
		}
		return mac, nil
	}
	return nil, nil
}

// wanted are the addresses asked for by name.
func (c *call) wanted() ([]netip.Addr, error) {
	var out []netip.Addr
	for _, x := range []struct {
		from   string
		values []string
	}{
		{"IP in CNI_ARGS", strings.FieldsFunc(c.args["IP"], func(r rune) bool { return r == ',' })},
		{"args.cni.ips", c.conf.Args.CNI.IPs}, {"runtimeConfig.ips", c.conf.RuntimeConfig.IPs},
	} {
		for _, s := range x.values {
			host, _, _ := strings.Cut(s, "/") // a prefix length is the range's business
			a, err := netip.ParseAddr(host)
			if err != nil || a.Zone() != "" {
				return nil, failf(types.ErrInvalidNetworkConfig, "%s %q: must be an IP address", x.from, clip(s))
			}
			if a = a.Unmap(); !slices.Contains(out, a) {
				out = append(out, a)
			}
		}
	}
	return out, nil
}

// ranges are the sets that the configuration names; none means that
// subnet.env tells.
func (c *config) ranges() ([]ipam.Set, error) {
	lists := slices.Clone(c.RuntimeConfig.IPRanges)
	if c.IPAM.Subnet != "" {
		lists = append(lists, []rangeConfig{c.IPAM.rangeConfig})
	} else if c.IPAM.rangeConfig != (rangeConfig{}) {
		return nil, failf(types.ErrInvalidNetworkConfig, "ipam.rangeStart, rangeEnd and gateway need ipam.subnet beside them")
	}
	lists = append(lists, c.IPAM.Ranges...)
	sets := make([]ipam.Set, len(lists))
	for i, list := range lists {
		for _, rc := range list {
			r, err := rc.parse()
			if err != nil {
				return nil, failf(types.ErrInvalidNetworkConfig, "range set %d: %v", i, err)
			}
			sets[i] = append(sets[i], r)
		}
	}
	sets, err := ipam.CanonicalSets(sets)
	if err != nil {
		return nil, failf(types.ErrInvalidNetworkConfig, "%v", err)
	}
	return sets, nil
}

func (rc rangeConfig) parse() (r ipam.Range, err error) {
	if rc.Subnet != "" {
		if r.Subnet, err = netip.ParsePrefix(rc.Subnet); err != nil {
			return r, failf(0, "subnet %q: must be like 10.1.2.0/24", clip(rc.Subnet))
		}
	}
	for _, x := range []struct {
		name, value string
		to          *netip.Addr
	}{{"rangeStart", rc.RangeStart, &r.Start}, {"rangeEnd", rc.RangeEnd, &r.End}, {"gateway", rc.Gateway, &r.Gateway}} {
		if x.value == "" {
			continue
		}
		if *x.to, err = netip.ParseAddr(x.value); err != nil || x.to.Zone() != "" {
			return r, failf(0, "%s %q: must be an IP address", x.name, clip(x.value))
		}
	}
	return r, nil
}
