package config

import (
	"bytes"
	"errors"
	"flag"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
)

func env(m map[string]string) func(string) string { return func(k string) string { return m[k] } }

func mustParse(t *testing.T, vars map[string]string, args ...string) *Config {
	t.Helper()
	c, err := Parse(append([]string{"-node-name", "host1"}, args...), env(vars), nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestDefaultsAreFlannels(t *testing.T) {
	c := mustParse(t, nil)
	if got := strings.Join(c.Etcd.Endpoints, ","); got != "http://127.0.0.1:4001,http://127.0.0.1:2379" {
		t.Errorf("endpoints %s", got)
	}
	if c.Etcd.Prefix != "/coreos.com/network" || c.SubnetFile != "/run/flannel/subnet.env" ||
		c.IPMasq || c.Healthz.Port() != 0 || c.Embed.Dir != "" {
		t.Errorf("%+v", c)
	}
}

func TestOneDashAndTwoMeanTheSame(t *testing.T) {
	a := mustParse(t, nil, "-etcd-endpoints", "http://10.140.0.14:4001,http://10.140.0.14:2379", "-ip-masq")
	b := mustParse(t, nil, "--etcd-endpoints=http://10.140.0.14:4001,http://10.140.0.14:2379", "--ip-masq=true")
	if strings.Join(a.Etcd.Endpoints, " ") != strings.Join(b.Etcd.Endpoints, " ") || !a.IPMasq || !b.IPMasq {
		t.Errorf("%+v\n%+v", a, b)
	}
}

func TestFlagsBeatEnvironment(t *testing.T) {
	vars := map[string]string{"FLANNELD_ETCD_PREFIX": "/from/env/", "FLANNELD_IFACE": "eth7", "FLANNELD_EMBED_ETCD": "", "FLANNELD_LOG_LEVEL": "debug"}
	c := mustParse(t, vars)
	if c.Etcd.Prefix != "/from/env" || c.Ifaces[0] != "eth7" || c.LogLevel != slog.LevelDebug {
		t.Errorf("environment not used: %+v", c)
	}
	c = mustParse(t, vars, "-etcd-prefix", "/flag", "-iface", "eth0", "-iface", "10.0.0.1")
	if c.Etcd.Prefix != "/flag" || strings.Join(c.Ifaces, " ") != "eth0 10.0.0.1" {
		t.Errorf("flags not preferred: %+v", c)
	}
}

func TestEmbedEtcd(t *testing.T) {
	cases := map[string]struct {
		args        []string
		dir, listen string
	}{
		"alone":          {[]string{"--embed-etcd"}, "/var/lib/flanneld/etcd", "127.0.0.1:2379"},
		"directory":      {[]string{"--embed-etcd=/srv/etcd"}, "/srv/etcd", "127.0.0.1:2379"},
		"on an address":  {[]string{"--embed-etcd", "--embed-etcd-listen", "192.168.1.10"}, "/var/lib/flanneld/etcd", "192.168.1.10:2379"},
		"and a port":     {[]string{"--embed-etcd", "--embed-etcd-listen", "[fd00::1]:4001"}, "/var/lib/flanneld/etcd", "[fd00::1]:4001"},
		"switched off":   {[]string{"--embed-etcd=false"}, "", ""},
		"bare IPv6":      {[]string{"--embed-etcd", "--embed-etcd-listen", "fd00::1"}, "/var/lib/flanneld/etcd", "[fd00::1]:2379"},
		"network masked": {[]string{"--embed-etcd", "--network", "10.1.2.3/16"}, "/var/lib/flanneld/etcd", "127.0.0.1:2379"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			c := mustParse(t, nil, tc.args...)
			if c.Embed.Dir != tc.dir || tc.listen != "" && c.Embed.Listen.String() != tc.listen {
				t.Errorf("%+v", c.Embed)
			}
		})
	}
	if n := mustParse(t, nil, "--embed-etcd", "--network", "10.1.2.3/16").Embed.Networks; len(n) != 1 || n[0] != netip.MustParsePrefix("10.1.0.0/16") {
		t.Errorf("networks %v", n)
	}
	if n := mustParse(t, nil, "--embed-etcd", "--network", "fd00:1::/48,10.1.0.0/16").Embed.Networks; len(n) != 2 || !n[0].Addr().Is4() {
		t.Errorf("networks %v", n)
	}
}

// TestMistakesNameFlagValueAndRemedy lists what a tired admin types.
func TestMistakesNameFlagValueAndRemedy(t *testing.T) {
	cases := map[string]struct {
		args []string
		want []string // parts of the message
	}{
		"unknown flag":          {[]string{"-etcd-endpoint", "x"}, []string{"etcd-endpoint", "--help"}},
		"no URL":                {[]string{"-etcd-endpoints", "10.0.0.1:2379"}, []string{"--etcd-endpoints", "10.0.0.1:2379", "http://"}},
		"empty endpoints":       {[]string{"-etcd-endpoints", ","}, []string{"--etcd-endpoints is empty"}},
		"stray word":            {[]string{"--embed-etcd", "/srv"}, []string{"/srv", "dash"}},
		"key without cert":      {[]string{"-etcd-keyfile", "/dev/null"}, []string{"--etcd-keyfile", "--etcd-certfile"}},
		"file is not there":     {[]string{"-etcd-cafile", "/no/ca"}, []string{"--etcd-cafile", "/no/ca"}},
		"password alone":        {[]string{"-etcd-password", "s3cret"}, []string{"--etcd-username"}},
		"public ip":             {[]string{"-public-ip", "fd00::1"}, []string{"--public-ip", "fd00::1", "IPv4"}},
		"loopback public ip":    {[]string{"-public-ip", "127.0.0.1"}, []string{"--public-ip", "127.0.0.1"}},
		"regex":                 {[]string{"-iface-regex", "eth["}, []string{"--iface-regex", "eth["}},
		"can reach":             {[]string{"-iface-can-reach", "gateway"}, []string{"--iface-can-reach", "gateway"}},
		"margin":                {[]string{"-subnet-lease-renew-margin", "1440"}, []string{"--subnet-lease-renew-margin", "1440", "960"}},
		"level":                 {[]string{"-log-level", "loud"}, []string{"--log-level", "loud", "debug"}},
		"healthz":               {[]string{"-healthz-ip", "any", "-healthz-port", "1"}, []string{"--healthz-ip", "any"}},
		"healthz port":          {[]string{"-healthz-port", "70000"}, []string{"--healthz-port", "70000"}},
		"both etcds":            {[]string{"--embed-etcd", "-etcd-endpoints", "http://h:1"}, []string{"exclude"}},
		"listen without embed":  {[]string{"--embed-etcd-listen", "10.0.0.1"}, []string{"--embed-etcd"}},
		"network without embed": {[]string{"--network", "10.1.0.0/16"}, []string{"etcdctl put /coreos.com/network/config"}},
		"network":               {[]string{"--embed-etcd", "--network", "10.1.0.0"}, []string{"--network", "10.1.0.0/16"}},
		"listen on a name":      {[]string{"--embed-etcd", "--embed-etcd-listen", "host1"}, []string{"--embed-etcd-listen", "host1"}},
		"two of a family":       {[]string{"--embed-etcd", "--network", "10.1.0.0/16,10.2.0.0/16"}, []string{"--network", "family"}},
		"relative directory":    {[]string{"--embed-etcd=etcd"}, []string{"absolute"}},
		"relative subnet file":  {[]string{"-subnet-file", "subnet.env"}, []string{"--subnet-file", "absolute"}},
		"kubernetes":            {[]string{"-kube-subnet-mgr"}, []string{"Kubernetes", "--etcd-endpoints"}},
		"node name":             {[]string{"-node-name", "a/b"}, []string{"--node-name", "a/b"}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := Parse(tc.args, env(nil), nil)
			var ue *UsageError
			if !errors.As(err, &ue) {
				t.Fatalf("got %v", err)
			}
			for _, w := range tc.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not say %q", err, w)
				}
			}
			if strings.Contains(err.Error(), "s3cret") {
				t.Errorf("the password is in the message: %v", err)
			}
		})
	}
}

func TestWrongVariableIsNamed(t *testing.T) {
	_, err := Parse(nil, env(map[string]string{"FLANNELD_HEALTHZ_PORT": "many"}), nil)
	if err == nil || !strings.Contains(err.Error(), `FLANNELD_HEALTHZ_PORT="many"`) {
		t.Errorf("got %v", err)
	}
}

func TestAllMistakesAreToldAtOnce(t *testing.T) {
	_, err := Parse([]string{"-log-level", "loud", "-public-ip", "x"}, env(nil), nil)
	if err == nil || strings.Count(err.Error(), "\n") != 1 {
		t.Errorf("got %v", err)
	}
}

func TestHelpShowsEveryFlagOfOurs(t *testing.T) {
	var out bytes.Buffer
	if _, err := Parse([]string{"--help"}, env(nil), &out); !errors.Is(err, flag.ErrHelp) {
		t.Fatal(err)
	}
	for _, w := range []string{"--embed-etcd[=DIR]", "--iface NAME or address", "FLANNELD_ETCD_PREFIX", "Examples:",
		"--dns-domain DOMAIN", "(default cluster.local)", "--dns-upstream ADDRESS[:PORT]", "--dns-ttl TIME", "--dns-prefer-local", "--no-dns"} {
		if !strings.Contains(out.String(), w) {
			t.Errorf("help does not say %q:\n%s", w, out.String())
		}
	}
	if strings.Contains(out.String(), "kube-api-url") {
		t.Error("help shows flags that are not ours")
	}
}

func FuzzParse(f *testing.F) {
	f.Add("-iface\x00eth0", "FLANNELD_PUBLIC_IP", "10.0.0.1")
	f.Fuzz(func(t *testing.T, args, name, value string) {
		vars := map[string]string{name: value}
		_, _ = Parse(strings.Split(args, "\x00"), env(vars), &bytes.Buffer{}) // must not panic
	})
}
