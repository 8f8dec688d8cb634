package host

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/kernel/netns/netnstest"
)

// tree makes a root with files of these contents.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for path, content := range files {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func content(t *testing.T, root, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// fresh is a host as distributions leave it.
func fresh(t *testing.T) (string, Options) {
	root := tree(t, map[string]string{
		"proc/sys/net/ipv4/ip_forward":                "0",
		"proc/sys/net/ipv4/conf/all/rp_filter":        "1",
		"proc/sys/net/ipv4/conf/flannel.1/rp_filter":  "0",
		"proc/sys/net/ipv6/conf/all/forwarding":       "0",
		"proc/sys/net/ipv6/conf/eth0/accept_ra":       "1",
		"proc/sys/net/ipv6/conf/eth1/accept_ra":       "1",
		"proc/sys/net/ipv6/conf/eth2/accept_ra":       "1",
		"proc/sys/net/ipv6/conf/flannel.1/accept_ra":  "1",
		"proc/sys/net/ipv6/conf/cni0/accept_ra":       "1",
		"proc/sys/net/bridge/bridge-nf-call-iptables": "0",
		"sys/class/net/cni0/bridge/nf_call_iptables":  "0",
		"sys/class/net/cni0/bridge/nf_call_ip6tables": "0",
		"sys/class/net/other/bridge/nf_call_iptables": "0",
		"usr/lib/systemd/systemd-networkd":            "",
		"proc/net/ipv6_route":                         "00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000001 00000000 00450003 eth1",
	})
	return root, Options{Root: root, IPv4: true, IPv6: true, Underlay: "eth0", Tunnels: []string{"flannel.1"}, Bridges: []string{"cni0"}, Patterns: []string{"veth-fl*"}}
}

func TestFreshHostIsSetUpAndSaysSo(t *testing.T) {
	root, o := fresh(t)
	got, err := Setup(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"net.ipv6.conf.eth1.accept_ra 1 → 2",
		"net.ipv6.conf.eth0.accept_ra 1 → 2",
		"net.ipv4.ip_forward 0 → 1",
		"net.ipv6.conf.all.forwarding 0 → 1",
		"net.ipv4.conf.flannel/1.rp_filter 0 → 2",
		"net.ipv6.conf.flannel/1.accept_ra 1 → 0",
		"net.ipv6.conf.cni0.accept_ra 1 → 0",
		"cni0 nf_call_iptables 0 → 1",
		"cni0 nf_call_ip6tables 0 → 1",
		"wrote /run/systemd/network/10-flanneld.network",
		"wrote /run/systemd/networkd.conf.d/10-flanneld.conf",
	}
	if !slices.Equal(got, want) {
		t.Errorf("changes:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for path, want := range map[string]string{
		"proc/sys/net/ipv6/conf/eth2/accept_ra":       "1", // has no route from an advertisement
		"sys/class/net/other/bridge/nf_call_iptables": "0", // not ours
	} {
		if v := content(t, root, path); v != want {
			t.Errorf("%s = %s, want %s", path, v, want)
		}
	}
	if f := content(t, root, "run/systemd/network/10-flanneld.network"); !strings.Contains(f, "Name=cni0 flannel.1 veth-fl*\n") || !strings.Contains(f, "Unmanaged=yes") {
		t.Errorf("networkd file:\n%s", f)
	}
	if all, err := Changes(o); err != nil || !slices.Equal(all, want) {
		t.Errorf("Changes = %q, %v", all, err)
	}
}

func TestSecondCheckChangesNothing(t *testing.T) {
	_, o := fresh(t)
	if _, err := Setup(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got, err := Check(t.Context(), o); err != nil || len(got) > 0 {
			t.Errorf("changes %q, error %v, want none", got, err)
		}
	}
}

func TestSettingsThatSomebodyResetComeBackAndTheOriginalIsRemembered(t *testing.T) {
	root, o := fresh(t)
	if _, err := Setup(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(root, "proc/sys/net/ipv4/conf/flannel.1/rp_filter")
	if err := os.WriteFile(path, []byte("1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := Check(t.Context(), o)
	if want := []string{"net.ipv4.conf.flannel/1.rp_filter 1 → 2"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("changes %q, %v, want %q", got, err, want)
	}
	all, _ := Changes(o)
	if want := "net.ipv4.conf.flannel/1.rp_filter 0 → 2"; !slices.Contains(all, want) {
		t.Errorf("%q lack %q", all, want)
	}
}

func TestHostThatForwardsKeepsItsAdvertisementSettings(t *testing.T) {
	root, o := fresh(t)
	if err := os.WriteFile(filepath.Join(root, "proc/sys/net/ipv6/conf/all/forwarding"), []byte("1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Setup(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if v := content(t, root, "proc/sys/net/ipv6/conf/eth0/accept_ra"); v != "1" {
		t.Errorf("accept_ra = %s: advertisements that were ignored are accepted now", v)
	}
}

func TestIPv4AloneLeavesIPv6Alone(t *testing.T) {
	root, o := fresh(t)
	o.IPv6 = false
	if _, err := Setup(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"proc/sys/net/ipv6/conf/all/forwarding", "sys/class/net/cni0/bridge/nf_call_ip6tables"} {
		if v := content(t, root, path); v != "0" {
			t.Errorf("%s = %s, want 0", path, v)
		}
	}
	if v := content(t, root, "proc/sys/net/ipv6/conf/eth0/accept_ra"); v != "1" {
		t.Errorf("accept_ra = %s, want 1", v)
	}
}

func TestLoopbackAddressesPassOnlyTheLinksThatAreAskedFor(t *testing.T) {
	root, o := fresh(t)
	var paths []string
	for _, link := range []string{"cni0", "flannel.1", "eth0", "all"} {
		path := filepath.Join(root, "proc/sys/net/ipv4/conf", link, "route_localnet")
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("0\n"), 0o644)); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	if got, err := Setup(t.Context(), o); err != nil || strings.Contains(strings.Join(got, "\n"), "localnet") {
		t.Errorf("unasked: %q, %v", got, err)
	}
	o.Localnet = []string{"cni0", "flannel.1", "flannel-v6.1"} // the last is not there
	want := []string{"net.ipv4.conf.cni0.route_localnet 0 → 1", "net.ipv4.conf.flannel/1.route_localnet 0 → 1"}
	if got, err := Check(t.Context(), o); err != nil || !slices.Equal(got, want) {
		t.Errorf("changes %q, %v; want %q", got, err, want)
	}
	if err := os.WriteFile(paths[0], []byte("0\n"), 0o644); err != nil { // somebody's
		t.Fatal(err)
	}
	if got, err := Check(t.Context(), o); err != nil || !slices.Equal(got, want[:1]) {
		t.Errorf("repair %q, %v; want %q", got, err, want[:1])
	}
	for i, want := range []string{"1", "1", "0", "0"} {
		if b, err := os.ReadFile(paths[i]); err != nil || strings.TrimSpace(string(b)) != want {
			t.Errorf("%s: %q, %v", paths[i], b, err)
		}
	}
	if all, err := Changes(o); err != nil || !slices.Contains(all, want[0]) {
		t.Errorf("changes %q, %v", all, err)
	}
	// A daemon that starts does not know yet.
	o.Localnet = nil
	if got, err := Setup(t.Context(), o); err != nil || len(got) > 0 {
		t.Errorf("at the next start: %q, %v", got, err)
	}
	// What is not asked for any more is taken back, unless it was there before.
	o.Localnet = []string{"flannel.1"}
	if err := os.WriteFile(paths[2], []byte("1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	back := "net.ipv4.conf.cni0.route_localnet 1 → 0"
	if got, err := Check(t.Context(), o); err != nil || !slices.Equal(got, []string{back}) {
		t.Errorf("changes %q, %v; want %q", got, err, back)
	}
	if all, err := Changes(o); err != nil || strings.Contains(strings.Join(all, "\n"), "cni0.route_localnet") {
		t.Errorf("changes %q, %v", all, err)
	}
	back = "net.ipv4.conf.flannel/1.route_localnet 1 → 0"
	if report, err := Cleanup(t.Context(), o); err != nil || !slices.Contains(report, back) {
		t.Errorf("clean-up: %q, %v; want %q", report, err, back)
	}
	if got := content(t, root, "proc/sys/net/ipv4/conf/eth0/route_localnet"); got != "1" {
		t.Errorf("somebody else's is %s", got)
	}
}

func TestCleanupRemovesFilesAndReportsWhatStays(t *testing.T) {
	root, o := fresh(t)
	if _, err := Setup(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	report, err := Cleanup(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"net.ipv4.ip_forward stays 1 (it was 0)",
		"removed /run/systemd/network/10-flanneld.network",
		"removed /run/systemd/networkd.conf.d/10-flanneld.conf",
	} {
		if !slices.Contains(report, want) {
			t.Errorf("report %q lacks %q", report, want)
		}
	}
	err = filepath.WalkDir(filepath.Join(root, "run"), func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			t.Errorf("%s is left", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if report, err := Cleanup(t.Context(), o); err != nil || len(report) > 0 {
		t.Errorf("second clean-up: %q, %v", report, err)
	}
}

func TestSettingThatCannotBeWrittenIsNamedAndTheRestIsDone(t *testing.T) {
	root, o := fresh(t)
	// A directory in place of the file cannot be read as one.
	path := filepath.Join(root, "proc/sys/net/ipv4/ip_forward")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	changes, err := Setup(t.Context(), o)
	if err == nil || !strings.Contains(err.Error(), "net.ipv4.ip_forward") {
		t.Errorf("error %v does not name the setting", err)
	}
	if !slices.Contains(changes, "net.ipv6.conf.all.forwarding 0 → 1") {
		t.Errorf("the rest was not done: %q", changes)
	}
}

func TestRealNamespaceIsSetUp(t *testing.T) {
	n := netnstest.New(t)
	netnstest.Run(t, n, "ip", "link", "add", "flannel.1", "type", "bridge")
	netnstest.Run(t, n, "sysctl", "-qw", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0", "net.ipv6.conf.lo.accept_ra=1")
	root := t.TempDir()
	for _, dir := range []string{"proc", "sys"} {
		if err := os.Symlink("/"+dir, filepath.Join(root, dir)); err != nil {
			t.Fatal(err)
		}
	}
	o := Options{Root: root, IPv4: true, IPv6: true, Underlay: "lo", Tunnels: []string{"flannel.1"}}
	err := n.Do(func() error {
		changes, err := Setup(t.Context(), o)
		if err != nil {
			return err
		}
		for _, want := range []string{"net.ipv4.ip_forward 0 → 1", "net.ipv6.conf.all.forwarding 0 → 1", "net.ipv6.conf.lo.accept_ra 1 → 2"} {
			if !slices.Contains(changes, want) {
				t.Errorf("changes %q lack %q", changes, want)
			}
		}
		again, err := Check(t.Context(), o)
		if len(again) > 0 {
			t.Errorf("second time: %q", again)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func FuzzAdvertisedLinks(f *testing.F) {
	f.Add("00 00 00 00 00 00 00 00 00450003 eth1\n")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		for _, link := range advertisedLinks(text) {
			if link == "" || strings.ContainsAny(link, " \n\t") {
				t.Errorf("link %q", link)
			}
		}
	})
}
