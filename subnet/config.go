package subnet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
)

// maxConfigSize is more than anybody writes by hand: a larger value is an
// accident or an attack.
const maxConfigSize = 1 << 20

// ErrNoConfig: the configuration key does not exist (yet).
var ErrNoConfig = errors.New("no network configuration")

// ConfigError is a field of the network's configuration that cannot be used.
// Drivers use it for the fields of Backend, with the field's full path
// ("Backend.VNI").
type ConfigError struct {
	Field  string // "" for the configuration as a whole
	Value  string // as it was written; "" if it is missing
	Remedy string // what it must be, and what to write instead
}

func (e *ConfigError) Error() string {
	s := "config"
	if e.Field != "" {
		s += " field " + e.Field
	}
	if e.Value != "" {
		s += " = " + e.Value
	}
	return s + ": " + e.Remedy
}

// ConfigKey is the key under which the configuration is kept.
func ConfigKey(prefix string) string { return path.Join(prefix, "config") }

// noConfig says what to write, and where.
func noConfig(prefix string) error {
	key := ConfigKey(prefix)
	return fmt.Errorf(`%w: the key %s does not exist; write it, e.g. ETCDCTL_API=3 etcdctl put %s '{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}'`,
		ErrNoConfig, key, key)
}

// rawConfig has a field for everything that flannel knows. What is null is
// taken for absent, but Backend.
type rawConfig struct {
	EnableIPv4, EnableIPv6, EnableNFTables                   json.RawMessage
	Network, SubnetLen, SubnetMin, SubnetMax                 json.RawMessage
	IPv6Network, IPv6SubnetLen, IPv6SubnetMin, IPv6SubnetMax json.RawMessage
	Backend                                                  json.RawMessage
	// Accepted by flannel in its own structure, without effect there or here.
	Networks, IPv6Networks json.RawMessage
	// Ours: flannel ignores it.
	ServiceNetwork json.RawMessage
}

// knownFields are the names in rawConfig.
func knownFields() []string {
	return []string{"EnableIPv4", "EnableIPv6", "EnableNFTables", "Network", "SubnetLen", "SubnetMin", "SubnetMax",
		"IPv6Network", "IPv6SubnetLen", "IPv6SubnetMin", "IPv6SubnetMax", "Backend", "Networks", "IPv6Networks", "ServiceNetwork"}
}

// ParseConfig reads a network configuration in flannel's format, with
// flannel's defaults, and checks it. Names of fields match whatever their
// case, as in flannel; unknown fields are ignored unless they look like a
// known one misspelt. Errors are *ConfigError.
func ParseConfig(b []byte) (Config, error) {
	raw, err := decodeConfig(b)
	if err != nil {
		return Config{}, err
	}
	v4, err := boolField("EnableIPv4", raw.EnableIPv4, true)
	if err != nil {
		return Config{}, err
	}
	v6, err := boolField("EnableIPv6", raw.EnableIPv6, false)
	if err != nil {
		return Config{}, err
	}
	if _, err := boolField("EnableNFTables", raw.EnableNFTables, false); err != nil {
		return Config{}, err
	}
	if !v4 && !v6 {
		return Config{}, &ConfigError{"EnableIPv4", "false", `one family must be enabled; set {"EnableIPv6":true,"IPv6Network":"fd00:5::/48"} or remove the field`}
	}
	var c Config
	for _, f := range []struct {
		enabled bool
		fields  rangeFields
	}{
		{v4, rangeFields{v6: false, prefix: "", network: raw.Network, length: raw.SubnetLen, min: raw.SubnetMin, max: raw.SubnetMax}},
		{v6, rangeFields{v6: true, prefix: "IPv6", network: raw.IPv6Network, length: raw.IPv6SubnetLen, min: raw.IPv6SubnetMin, max: raw.IPv6SubnetMax}},
	} {
		if !f.enabled {
			continue
		}
		r, err := f.fields.parse()
		if err != nil {
			return Config{}, err
		}
		c.Ranges = append(c.Ranges, r)
	}
	if c.Services, err = parseServices(raw.ServiceNetwork, c.Ranges); err != nil {
		return Config{}, err
	}
	c.Backend, err = parseBackend(raw.Backend)
	return c, err
}

// decodeConfig splits the configuration into its fields.
func decodeConfig(b []byte) (rawConfig, error) {
	var raw rawConfig
	const example = `; write e.g. {"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}`
	if len(b) > maxConfigSize {
		return raw, &ConfigError{"", strconv.Itoa(len(b)) + " bytes", "must be at most 1 MiB" + example}
	}
	all := map[string]json.RawMessage{}
	err := json.Unmarshal(b, &all)
	if err == nil {
		err = json.Unmarshal(b, &raw)
	}
	if err != nil || all == nil {
		value := clip(b)
		if value == "" {
			value = "(empty)"
		}
		why := "must be a JSON object"
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			why += fmt.Sprintf(" (%v, at byte %d)", syntax, syntax.Offset)
		}
		return raw, &ConfigError{"", value, why + example}
	}
	if name := duplicate(b); name != "" {
		return raw, &ConfigError{clip([]byte(name)), clip(b), "is there twice, names match whatever their case; remove one"}
	}
	return raw, checkSpelling(all)
}

// checkSpelling refuses fields whose name nearly is a known one: ignoring
// such a field would silently choose something else.
func checkSpelling(all map[string]json.RawMessage) error {
	known := knownFields()
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if slices.ContainsFunc(known, func(k string) bool { return strings.EqualFold(k, name) }) {
			continue
		}
		for _, k := range known {
			if looksLike(name, k) {
				return &ConfigError{clip([]byte(name)), clip(all[name]), "unknown field; did you mean " + k + "? Rename or remove it"}
			}
		}
	}
	return nil
}

// looksLike says whether a differs from b by at most two typing mistakes.
func looksLike(a, b string) bool {
	const most = 2
	a, b = strings.ToLower(a), strings.ToLower(b)
	if len(a) > len(b)+most || len(b) > len(a)+most {
		return false
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)] <= most
}

// parseBackend reads the Backend object; without one flannel's default is
// the udp backend. null is not taken for absent: nobody writes it who wants
// that default.
func parseBackend(raw json.RawMessage) (Backend, error) {
	if len(raw) == 0 {
		return Backend{Type: "udp", Raw: json.RawMessage(`{"Type":"udp"}`)}, nil
	}
	const remedy = `must name the tunnel; write e.g. "Backend":{"Type":"vxlan"}`
	var b struct{ Type json.RawMessage }
	if raw[0] != '{' || json.Unmarshal(raw, &b) != nil {
		return Backend{}, &ConfigError{"Backend", clip(raw), remedy}
	}
	if name := duplicate(raw); name != "" {
		return Backend{}, &ConfigError{"Backend." + clip([]byte(name)), clip(raw), "is there twice, names match whatever their case; remove one"}
	}
	var kind string
	if absent(b.Type) || json.Unmarshal(b.Type, &kind) != nil || kind == "" || len(kind) > 64 {
		return Backend{}, &ConfigError{"Backend.Type", clip(b.Type), remedy}
	}
	return Backend{Type: strings.ToLower(kind), Raw: bytes.Clone(raw)}, nil
}

// duplicate is the name of a field that a JSON object has before, in whatever
// case; "" if there is none.
func duplicate(object []byte) string {
	d := json.NewDecoder(bytes.NewReader(object))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return ""
	}
	seen := map[string]bool{}
	for d.More() {
		t, err := d.Token()
		name, ok := t.(string)
		if err != nil || !ok {
			return ""
		}
		folded := strings.ToLower(strings.ToUpper(name)) // as EqualFold's simple folding
		if seen[folded] {
			return name
		}
		seen[folded] = true
		var value json.RawMessage
		if d.Decode(&value) != nil {
			return ""
		}
	}
	return ""
}

func boolField(name string, raw json.RawMessage, def bool) (bool, error) {
	if absent(raw) {
		return def, nil
	}
	var b bool
	if err := json.Unmarshal(raw, &b); err != nil {
		return false, &ConfigError{name, clip(raw), "must be true or false, without quotes"}
	}
	return b, nil
}

func absent(raw json.RawMessage) bool { return len(raw) == 0 || string(raw) == "null" }

// clip makes a value of unknown origin fit to be shown.
func clip(b []byte) string {
	const most = 60
	cut := len(b) > 4*most
	if cut {
		b = b[:4*most]
	}
	s := printable(strings.Join(strings.Fields(string(b)), " "), len(b))
	if runes := []rune(s); len(runes) > most {
		s, cut = string(runes[:most]), true
	}
	if cut {
		s += "…"
	}
	return s
}

// Equal says whether two configurations mean the same.
func (c Config) Equal(o Config) bool {
	return slices.Equal(c.Ranges, o.Ranges) && slices.Equal(c.Services, o.Services) && c.Backend.Type == o.Backend.Type && sameJSON(c.Backend.Raw, o.Backend.Raw)
}

// Fits says whether subnets are what a host may hold under this
// configuration: one of each enabled family, inside the network. It need not
// be of the configured length or between SubnetMin and SubnetMax, which are
// for subnets to be taken from now on: changing them moves nobody.
func (c Config) Fits(subnets []netip.Prefix) bool {
	if len(subnets) != len(c.Ranges) || len(subnets) == 0 {
		return false
	}
	for i, s := range subnets {
		if !c.Ranges[i].holds(s) {
			return false
		}
	}
	return true
}

// enabled is the subnets whose family c has.
func (c Config) enabled(subnets []netip.Prefix) []netip.Prefix {
	foreign := func(s netip.Prefix) bool {
		return !slices.ContainsFunc(c.Ranges, func(r Range) bool { return r.Network.Addr().Is6() == s.Addr().Is6() })
	}
	if !slices.ContainsFunc(subnets, foreign) {
		return subnets
	}
	return slices.DeleteFunc(slices.Clone(subnets), foreign)
}

// holds says whether s can be one host's part of r.
func (r Range) holds(s netip.Prefix) bool {
	return s.IsValid() && s == s.Masked() && s.Addr().BitLen() == r.Network.Addr().BitLen() &&
		r.Network.Contains(s.Addr()) && s.Bits() > r.Network.Bits() && s.Bits() <= s.Addr().BitLen()-2
}

// sameJSON compares two JSON values regardless of white space. What is not
// JSON is the same only as itself.
func sameJSON(a, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	if len(a) == 0 || len(b) == 0 {
		return false
	}
	var ca, cb bytes.Buffer
	return json.Compact(&ca, a) == nil && json.Compact(&cb, b) == nil && bytes.Equal(ca.Bytes(), cb.Bytes())
}
