package subnet

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func dnsEnv() DNSEnv {
	return DNSEnv{
		Servers: []netip.Addr{netip.MustParseAddr("10.0.0.10"), netip.MustParseAddr("fd00::a")},
		Domain:  "cluster.local",
		Search:  PodSearch("cluster.local", "default", ""),
		Options: []string{"timeout:3", "attempts:3"},
	}
}

func TestDNSFileIsAsShellsAndSystemdReadIt(t *testing.T) {
	const want = `FLANNEL_DNS=10.0.0.10,fd00::a
FLANNEL_DNS_DOMAIN=cluster.local
FLANNEL_DNS_SEARCH="default.svc.cluster.local default.cluster.local svc.cluster.local cluster.local"
FLANNEL_DNS_OPTIONS="timeout:3 attempts:3"
`
	if got := string(dnsEnv().Marshal()); got != want {
		t.Errorf("%s", got)
	}
}

func TestDNSFileIsReadAsItWasWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "flannel", DNSEnvFile)
	if _, err := ReadDNSEnv(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a file: %v", err)
	}
	for _, e := range []DNSEnv{dnsEnv(), {}, {Servers: dnsEnv().Servers[:1], Domain: "a", Search: []string{"a"}, Options: []string{"rotate"}}} {
		if err := WriteDNSEnv(path, e); err != nil {
			t.Fatal(err)
		}
		got, err := ReadDNSEnv(path)
		if err != nil || !got.Equal(e) {
			t.Errorf("%+v, %v; want %+v", got, err, e)
		}
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
		t.Errorf("left %v, %v", left, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("%v, %v", info, err)
	}
}

func TestDNSFileOfPeopleIsRead(t *testing.T) {
	e, err := ParseDNSEnv([]byte("# mine\n\nexport FLANNEL_DNS='10.0.0.10, ::ffff:10.0.0.11'\r\nFLANNEL_DNS_OPTIONS=ndots:2 edns0\nFLANNEL_DNS_COLOUR=\x1b\nFLANNEL_DNS_SEARCH=\n"))
	if err != nil || len(e.Servers) != 2 || e.Servers[1] != netip.MustParseAddr("10.0.0.11") || !slices.Equal(e.Options, []string{"ndots:2", "edns0"}) || len(e.Search) != 0 {
		t.Errorf("%+v, %v", e, err)
	}
}

func TestWrongDNSFileIsRefusedWithItsLine(t *testing.T) {
	for text, want := range map[string]string{
		"x":                               `line 1: "x": must be NAME=VALUE`,
		"\nFLANNEL_DNS=localhost":         "line 2: FLANNEL_DNS=localhost: must be at most 8 IP addresses",
		"FLANNEL_DNS=fe80::1%eth0":        "IP addresses",
		"FLANNEL_DNS=0.0.0.0":             "IP addresses",
		"FLANNEL_DNS_DOMAIN=a..b":         "must be a domain",
		"FLANNEL_DNS_DOMAIN=a b":          "must be a domain",
		"FLANNEL_DNS_SEARCH=a\x1b[2J":     "domains with blanks in between",
		"FLANNEL_DNS_OPTIONS=a;reboot":    "options of resolv.conf",
		"FLANNEL_DNS_OPTIONS=`reboot`":    "options of resolv.conf",
		strings.Repeat("#", maxEnvSize+1): "at most 65536 bytes",
		"FLANNEL_DNS=" + strings.Repeat("1.1.1.1,", mostServers+1):      "at most 8",
		"FLANNEL_DNS_SEARCH=" + strings.Repeat("a ", mostDomains+1):     "at most 16",
		"FLANNEL_DNS_OPTIONS=" + strings.Repeat("a ", mostOptions+1):    "at most 16",
		"FLANNEL_DNS_DOMAIN=" + strings.Repeat("a", 64):                 "must be a domain",
		"FLANNEL_DNS_DOMAIN=" + strings.Repeat("a.", 127) + "ab":        "must be a domain",
		"FLANNEL_DNS_OPTIONS=timeout:" + strings.Repeat("1", 10) + "\n": "options of resolv.conf",
	} {
		e, err := ParseDNSEnv([]byte(text))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\x1b") {
			t.Errorf("%.40q: %+v, %v", text, e, err)
		}
	}
}

func TestSearchListOfAContainer(t *testing.T) {
	for namespace, want := range map[string]string{
		"":     "default.svc.cluster.local default.cluster.local svc.cluster.local cluster.local",
		"Shop": "default.svc.cluster.local shop.cluster.local svc.cluster.local cluster.local",
		"a.b":  "default.svc.cluster.local default.cluster.local svc.cluster.local cluster.local",
		"a\n":  "default.svc.cluster.local default.cluster.local svc.cluster.local cluster.local",
		"svc":  "default.svc.cluster.local svc.cluster.local cluster.local",
	} {
		if got := strings.Join(PodSearch("cluster.local", "default", namespace), " "); got != want {
			t.Errorf("%q: %s", namespace, got)
		}
	}
}

func FuzzParseDNSEnv(f *testing.F) {
	f.Add(dnsEnv().Marshal())
	f.Add([]byte("export FLANNEL_DNS='1.1.1.1 ::1'\nFLANNEL_DNS_SEARCH=a. b\nFLANNEL_DNS_OPTIONS=a:1:2\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := ParseDNSEnv(b)
		if err != nil {
			return
		}
		again, err := ParseDNSEnv(e.Marshal())
		if err != nil || !again.Equal(e) {
			t.Errorf("%+v became %+v, %v", e, again, err)
		}
	})
}
