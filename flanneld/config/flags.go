package config

import (
	"flag"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// raw is the flags as typed.
type raw struct {
	endpoints, prefix, keyFile, certFile, caFile, username, password string

	ifaces, ifaceRegexes             listFlag
	ifaceReach, publicIP, publicIPv6 string

	subnetFile  string
	renewMargin int
	ipMasq      bool
	healthzIP   string
	healthzPort int
	logLevel    string
	verbosity   int

	embedDir             dirFlag
	embedListen, network string
	nodeName             string
	noDNS, preferLocal   bool
	dnsDomain, dnsTTL    string
	dnsUpstream          string
	cniInstall           bool
	fixOffload           bool
	cleanup, version     bool

	kube kubeFlags
}

// kubeFlags are flannel's flags for its Kubernetes mode, which is not ours:
// known so that the message can say so.
type kubeFlags struct {
	subnetMgr     bool
	apiURL        string
	configFile    string
	netConfigPath string
	resync        int
	forwardRules  bool
}

// flags declares every flag of the daemon. Names and meanings are flannel's
// where flannel has the flag.
func (r *raw) flags() *flag.FlagSet {
	fs := flag.NewFlagSet("flanneld", flag.ContinueOnError)
	fs.StringVar(&r.endpoints, "etcd-endpoints", "http://127.0.0.1:4001,http://127.0.0.1:2379", "comma-separated `URLS` of etcd")
	fs.StringVar(&r.prefix, "etcd-prefix", "/coreos.com/network", "`KEY` under which the network lives in etcd")
	fs.StringVar(&r.keyFile, "etcd-keyfile", "", "TLS key `FILE` for etcd")
	fs.StringVar(&r.certFile, "etcd-certfile", "", "TLS certificate `FILE` for etcd")
	fs.StringVar(&r.caFile, "etcd-cafile", "", "certificate authority `FILE` that signed etcd's certificate")
	fs.StringVar(&r.username, "etcd-username", "", "`NAME` of an etcd user")
	fs.StringVar(&r.password, "etcd-password", "", "that user's password; better given as FLANNELD_ETCD_PASSWORD")
	fs.Var(&r.ifaces, "iface", "interface `NAME or address` towards the other hosts; repeatable, the first that exists is used (default: that of the default route)")
	fs.Var(&r.ifaceRegexes, "iface-regex", "`REGEX` of interface names or addresses, tried after --iface; repeatable")
	fs.StringVar(&r.ifaceReach, "iface-can-reach", "", "use the interface that reaches this `ADDRESS`")
	fs.StringVar(&r.publicIP, "public-ip", "", "IPv4 `ADDRESS` at which the other hosts reach this one (default: the interface's)")
	fs.StringVar(&r.publicIPv6, "public-ipv6", "", "the same for IPv6")
	fs.StringVar(&r.subnetFile, "subnet-file", StateDir+"/subnet.env", "`FILE` that tells container engines subnet and MTU")
	fs.IntVar(&r.renewMargin, "subnet-lease-renew-margin", 60, "`MINUTES` before its end at which the subnet lease is renewed at the latest; it is renewed every 8 of its 24 hours")
	fs.BoolVar(&r.ipMasq, "ip-masq", false, "masquerade traffic that leaves the pod network")
	fs.StringVar(&r.healthzIP, "healthz-ip", "0.0.0.0", "`ADDRESS` of the health server")
	fs.IntVar(&r.healthzPort, "healthz-port", 0, "`PORT` of the health server, 0 for none")
	fs.StringVar(&r.logLevel, "log-level", "info", "debug, info, warn or error")
	fs.IntVar(&r.verbosity, "v", 0, "flannel's log verbosity: above 1 means --log-level=debug")
	fs.Var(&r.embedDir, "embed-etcd", "run an etcd server in this process, its data in `DIR` (default "+defaultEmbedDir+"): for the first host of a cluster, or a laptop")
	fs.StringVar(&r.embedListen, "embed-etcd-listen", defaultEmbedListen, "`ADDRESS[:PORT]` of the embedded etcd for the other hosts; TLS with the --etcd-*file flags")
	fs.StringVar(&r.network, "network", "", "with --embed-etcd: pod network `CIDR` to write as configuration if there is none yet; CIDR,CIDR for IPv4 and IPv6")
	fs.StringVar(&r.nodeName, "node-name", "", "this host's `NAME` in the cluster (default: the hostname)")
	fs.BoolVar(&r.noDNS, "no-dns", false, "answer no names on this host")
	fs.StringVar(&r.dnsDomain, "dns-domain", "cluster.local", "`DOMAIN` of the cluster's names; the same on every host")
	fs.StringVar(&r.dnsUpstream, "dns-upstream", "", "comma-separated `ADDRESS[:PORT]` of the servers that are asked for all other names (default: those of /etc/resolv.conf, followed when it changes)")
	fs.StringVar(&r.dnsTTL, "dns-ttl", "5s", "`TIME` for which the cluster's names may be cached, up to 1h")
	fs.BoolVar(&r.preferLocal, "dns-prefer-local", false, "answer this host's containers before those of the other hosts")
	fs.BoolVar(&r.cniInstall, "cni-install", false, "install the CNI plugins and their configuration once the network is ready")
	fs.BoolVar(&r.fixOffload, "fix-offload", false, "compute checksums in software before packets enter the tunnel: for network cards that get them wrong (ping works, TCP does not); costs a sixth of the throughput")
	fs.BoolVar(&r.cleanup, "cleanup", false, "remove everything that flanneld made on this host, and end")
	fs.BoolVar(&r.version, "version", false, "print the version and end")
	fs.BoolVar(&r.kube.subnetMgr, "kube-subnet-mgr", false, "")
	fs.StringVar(&r.kube.apiURL, "kube-api-url", "", "")
	fs.StringVar(&r.kube.configFile, "kubeconfig-file", "", "")
	fs.StringVar(&r.kube.netConfigPath, "net-config-path", "", "")
	fs.IntVar(&r.kube.resync, "iptables-resync", 0, "")
	fs.BoolVar(&r.kube.forwardRules, "iptables-forward-rules", true, "")
	return fs
}

func (r *raw) checkKube() error {
	if r.kube.subnetMgr || r.kube.apiURL != "" || r.kube.configFile != "" || r.kube.netConfigPath != "" {
		return usagef("flannel's Kubernetes mode (--kube-subnet-mgr and its flags) is not supported: hosts agree through etcd, give --etcd-endpoints")
	}
	return nil
}

// listFlag is a flag that may be repeated.
type listFlag []string

func (l *listFlag) String() string { return strings.Join(*l, ",") }

// Set adds one value.
func (l *listFlag) Set(s string) error {
	*l = append(*l, s)
	return nil
}

// dirFlag is --embed-etcd or --embed-etcd=DIR.
type dirFlag struct{ dir string }

func (d *dirFlag) String() string   { return d.dir }
func (d *dirFlag) IsBoolFlag() bool { return true }

// Set takes a directory, or true and false as bool flags do.
func (d *dirFlag) Set(s string) error {
	if on, err := strconv.ParseBool(s); err == nil {
		d.dir = ""
		if on {
			d.dir = defaultEmbedDir
		}
		return nil
	}
	d.dir = s
	return nil
}

func usage(w io.Writer, fs *flag.FlagSet) {
	fmt.Fprint(w, `flanneld gives every container on every host of a cluster an address and a way to the others.

Usage:
  flanneld [flags]             run the daemon of this host
  flanneld COMMAND [flags]     see flanneld help

Examples:
  flanneld --embed-etcd --network 10.1.0.0/16 --embed-etcd-listen 192.168.1.10    # the first host
  flanneld --etcd-endpoints http://192.168.1.10:2379                              # every other host

Flags, with one or two dashes; each can be given as a variable, --etcd-prefix as FLANNELD_ETCD_PREFIX:
`)
	fs.VisitAll(func(f *flag.Flag) {
		name, text := flag.UnquoteUsage(f)
		if text == "" {
			return
		}
		if f.Name == "embed-etcd" {
			name = "[=" + name + "]"
		} else if name != "" {
			name = " " + name
		}
		fmt.Fprintf(w, "  --%s%s\n        %s", f.Name, name, text)
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0" {
			fmt.Fprintf(w, " (default %s)", f.DefValue)
		}
		fmt.Fprintln(w)
	})
}
