// Package config is everything an admin can tell the daemon, from flags and
// FLANNELD_* variables, as one validated struct.
package config

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Config is the daemon's configuration; see Parse for where it comes from.
type Config struct {
	Etcd  Etcd
	Embed Embed
	DNS   DNS

	// NodeName is this host's name in the cluster; NodeNameSet says that it
	// was chosen by a person rather than taken from the hostname.
	NodeName    string
	NodeNameSet bool

	Ifaces       []string
	IfaceRegexes []string
	IfaceReach   netip.Addr   // zero: not asked for
	PublicIPs    []netip.Addr // at most one per family, IPv4 first

	SubnetFile string
	IPMasq     bool
	CNIInstall bool
	FixOffload bool
	Healthz    netip.AddrPort // port 0: off

	LogLevel slog.Level
	Cleanup  bool // remove everything of ours and end
	Version  bool // print the version and end
}

// Etcd is how to reach the cluster's etcd.
type Etcd struct {
	Endpoints                 []string
	Prefix                    string // no trailing slash
	KeyFile, CertFile, CAFile string
	Username, Password        string
}

// Embed is the etcd server inside the daemon.
type Embed struct {
	Dir    string         // "": none
	Listen netip.AddrPort // where clients connect
	// Networks to write as configuration if there is none, at most one per
	// family, IPv4 first; empty: write nothing.
	Networks []netip.Prefix
}

// StateDir holds what the daemon must find again after a restart but not
// after a reboot.
const StateDir = "/run/flannel"

const (
	defaultEmbedDir    = "/var/lib/flanneld/etcd"
	defaultEmbedListen = "127.0.0.1:2379"
)

// UsageError is a mistake in flags or environment; its text names the flag,
// the value and the remedy.
type UsageError struct{ Msg string }

func (e *UsageError) Error() string { return e.Msg }

func usagef(format string, a ...any) error { return &UsageError{fmt.Sprintf(format, a...)} }

// Parse reads args (without the program's name), then, for flags not given
// there, variables FLANNELD_<FLAG> through getenv. It returns flag.ErrHelp
// after printing the usage to out if help was asked for, and a *UsageError
// for anything wrong.
func Parse(args []string, getenv func(string) string, out io.Writer) (*Config, error) {
	var r raw
	fs := r.flags()
	fs.SetOutput(io.Discard)
	fs.Usage = func() {}
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			usage(out, fs)
			return nil, err
		}
		return nil, usagef("%v (see flanneld --help)", err)
	}
	if fs.NArg() > 0 {
		return nil, usagef("unexpected argument %q: flags start with a dash; commands are listed by flanneld help", fs.Arg(0))
	}
	given := map[string]bool{}
	fs.Visit(func(f *flag.Flag) { given[f.Name] = true })
	var errs []error
	fs.VisitAll(func(f *flag.Flag) {
		name := EnvName(f.Name)
		v := getenv(name)
		if given[f.Name] || v == "" {
			return
		}
		if err := f.Value.Set(v); err != nil {
			if b, ok := f.Value.(interface{ IsBoolFlag() bool }); ok && b.IsBoolFlag() {
				err = errors.New("use true or false")
			}
			errs = append(errs, usagef("%s=%q: %v", name, v, err))
			return
		}
		given[f.Name] = true
	})
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return r.validate(given)
}

// EnvName is the variable that stands for a flag.
func EnvName(flagName string) string {
	return "FLANNELD_" + strings.ToUpper(strings.ReplaceAll(flagName, "-", "_"))
}

// validate turns the raw flags into a Config, or says all that is wrong.
func (r *raw) validate(given map[string]bool) (*Config, error) {
	c := &Config{
		Etcd: Etcd{
			Endpoints: splitList(r.endpoints),
			Prefix:    "/" + strings.Trim(r.prefix, "/"),
			KeyFile:   r.keyFile, CertFile: r.certFile, CAFile: r.caFile,
			Username: r.username, Password: r.password,
		},
		NodeName: r.nodeName, NodeNameSet: r.nodeName != "",
		Ifaces:       r.ifaces,
		IfaceRegexes: r.ifaceRegexes,
		SubnetFile:   r.subnetFile,
		IPMasq:       r.ipMasq,
		CNIInstall:   r.cniInstall,
		FixOffload:   r.fixOffload,
		Cleanup:      r.cleanup,
		Version:      r.version,
	}
	var errs []error
	bad := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	bad(r.checkKube())
	bad(c.setNodeName())
	bad(c.setIfaces(r))
	bad(r.checkMargin())
	bad(c.setEmbed(r, given))
	bad(c.checkEtcd())
	bad(c.setHealthz(r))
	bad(c.setDNS(r))
	level, err := parseLevel(r.logLevel, r.verbosity)
	bad(err)
	c.LogLevel = level
	if !filepath.IsAbs(c.SubnetFile) {
		bad(usagef("--subnet-file=%q: give an absolute path, such as /run/flannel/subnet.env", c.SubnetFile))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *Config) setNodeName() error {
	if !c.NodeNameSet {
		h, err := os.Hostname()
		if err != nil || h == "" || h == "localhost" {
			return usagef("this host has no name of its own (hostname is %q): set one, or give --node-name", h)
		}
		c.NodeName = strings.ToLower(h)
	}
	if !nameRE().MatchString(c.NodeName) {
		return usagef("--node-name=%q: use letters, digits, dots and dashes, at most 253, beginning with a letter or digit", c.NodeName)
	}
	return nil
}

func nameRE() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.-]{0,252}$`) }

func (c *Config) setIfaces(r *raw) error {
	var errs []error
	for _, s := range r.ifaceRegexes {
		if _, err := regexp.Compile(s); err != nil {
			errs = append(errs, usagef("--iface-regex=%q: not a regular expression: %v", s, err))
		}
	}
	if r.ifaceReach != "" {
		a, err := netip.ParseAddr(r.ifaceReach)
		if err != nil {
			errs = append(errs, usagef("--iface-can-reach=%q: give an IP address", r.ifaceReach))
		}
		c.IfaceReach = a
	}
	for _, p := range []struct {
		flag, value string
		is4         bool
	}{{"public-ip", r.publicIP, true}, {"public-ipv6", r.publicIPv6, false}} {
		if p.value == "" {
			continue
		}
		a, err := netip.ParseAddr(p.value)
		switch {
		case err != nil || a.Is4() != p.is4 || a.Zone() != "":
			family := "an IPv6"
			if p.is4 {
				family = "an IPv4"
			}
			errs = append(errs, usagef("--%s=%q: give %s address at which the other hosts reach this one", p.flag, p.value, family))
		case a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast():
			errs = append(errs, usagef("--%s=%q: other hosts cannot reach such an address", p.flag, p.value))
		default:
			c.PublicIPs = append(c.PublicIPs, a)
		}
	}
	return errors.Join(errs...)
}

// checkMargin: a lease lasts 24 hours and the store renews it every 8, so that
// any margin up to 16 hours is kept without doing anything about it.
func (r *raw) checkMargin() error {
	if r.renewMargin <= 0 || r.renewMargin > 16*60 {
		return usagef("--subnet-lease-renew-margin=%d: give minutes between 1 and 960 (a lease lasts 24 hours and is renewed every 8)", r.renewMargin)
	}
	return nil
}

func (c *Config) setEmbed(r *raw, given map[string]bool) error {
	c.Embed.Dir = r.embedDir.dir
	if c.Embed.Dir == "" {
		if given["embed-etcd-listen"] {
			return usagef("--embed-etcd-listen needs --embed-etcd")
		}
		if r.network != "" {
			return usagef("--network needs --embed-etcd; with an etcd of your own write the configuration there: etcdctl put %s/config '{\"Network\":\"%s\",\"Backend\":{\"Type\":\"vxlan\"}}'", c.Etcd.Prefix, r.network)
		}
		return nil
	}
	if !filepath.IsAbs(c.Embed.Dir) {
		return usagef("--embed-etcd=%q: give an absolute directory, such as %s", c.Embed.Dir, defaultEmbedDir)
	}
	if given["etcd-endpoints"] {
		return usagef("--embed-etcd and --etcd-endpoints exclude each other: the first host embeds etcd, the others name it with --etcd-endpoints")
	}
	ap, err := netip.ParseAddrPort(r.embedListen)
	if a, err2 := netip.ParseAddr(r.embedListen); err2 == nil {
		ap, err = netip.AddrPortFrom(a, 2379), nil
	}
	c.Embed.Listen = ap
	if err != nil || ap.Port() == 0 {
		return usagef("--embed-etcd-listen=%q: give an address of this host, with or without a port, such as 192.168.1.10 or 192.168.1.10:2379", r.embedListen)
	}
	for _, text := range splitList(r.network) {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return usagef("--network: %q: give the pod network with its length, such as 10.1.0.0/16 or 10.1.0.0/16,fd00:1::/48", text)
		}
		c.Embed.Networks = append(c.Embed.Networks, p.Masked())
	}
	n := c.Embed.Networks
	slices.SortFunc(n, netip.Prefix.Compare)
	if len(n) > 2 || len(n) == 2 && n[0].Addr().Is4() == n[1].Addr().Is4() {
		return usagef("--network=%q: give at most one network of each family", r.network)
	}
	return nil
}

func (c *Config) checkEtcd() error {
	var errs []error
	if len(c.Etcd.Endpoints) == 0 {
		errs = append(errs, usagef("--etcd-endpoints is empty: give at least one, such as http://192.168.1.10:2379"))
	}
	for _, e := range c.Etcd.Endpoints {
		scheme, host, ok := strings.Cut(e, "://")
		if !ok || host == "" || !slices.Contains([]string{"http", "https", "unix", "unixs"}, scheme) {
			errs = append(errs, usagef("--etcd-endpoints: %q: give a URL such as http://192.168.1.10:2379", e))
		}
	}
	if (c.Etcd.KeyFile == "") != (c.Etcd.CertFile == "") {
		errs = append(errs, usagef("--etcd-keyfile and --etcd-certfile go together: give both or neither"))
	}
	for _, f := range []struct{ flag, path string }{
		{"etcd-keyfile", c.Etcd.KeyFile}, {"etcd-certfile", c.Etcd.CertFile}, {"etcd-cafile", c.Etcd.CAFile},
	} {
		if f.path == "" {
			continue
		}
		if _, err := os.Stat(f.path); err != nil {
			errs = append(errs, usagef("--%s: %v", f.flag, err))
		}
	}
	if c.Etcd.Password != "" && c.Etcd.Username == "" {
		errs = append(errs, usagef("--etcd-password needs --etcd-username"))
	}
	return errors.Join(errs...)
}

func (c *Config) setHealthz(r *raw) error {
	a, err := netip.ParseAddr(r.healthzIP)
	if err != nil {
		return usagef("--healthz-ip=%q: give an IP address, such as 127.0.0.1", r.healthzIP)
	}
	if r.healthzPort < 0 || r.healthzPort > 65535 {
		return usagef("--healthz-port=%d: give a port, or 0 for none", r.healthzPort)
	}
	c.Healthz = netip.AddrPortFrom(a, uint16(r.healthzPort))
	return nil
}

func parseLevel(s string, v int) (slog.Level, error) {
	if v > 1 {
		return slog.LevelDebug, nil
	}
	var l slog.Level
	if err := l.UnmarshalText([]byte(s)); err != nil {
		return 0, usagef("--log-level=%q: use debug, info, warn or error", s)
	}
	return l, nil
}

func splitList(s string) []string {
	var out []string
	for _, e := range strings.Split(s, ",") {
		if e = strings.TrimSpace(e); e != "" {
			out = append(out, strings.TrimRight(e, "/"))
		}
	}
	return out
}
