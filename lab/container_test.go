package lab

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// testPlugin is a CNI plugin that gives every container 10.9.9.9/24 on one
// end of a veth pair.
const testPlugin = `#!/bin/sh
case $CNI_COMMAND in
ADD)
	[ -e /run/fail-add ] && { echo '{"cniVersion":"1.0.0","code":100,"msg":"told to fail"}'; exit 1; }
	ip link add "h$CNI_CONTAINERID" type veth peer name c0 &&
	ip link set "h$CNI_CONTAINERID" up && ip addr add 10.9.9.1/24 dev "h$CNI_CONTAINERID" &&
	ip link set c0 netns "${CNI_NETNS##*/}" && ip netns exec "${CNI_NETNS##*/}" sh -ec '
		ip link set c0 name eth0; ip addr add 10.9.9.9/24 dev eth0; ip link set eth0 up' &&
	echo '{"cniVersion":"1.0.0","ips":[{"address":"10.9.9.9/24"}]}' ;;
DEL) ip link del "h$CNI_CONTAINERID" 2>/dev/null; echo "$CNI_CONTAINERID" >> /run/deleted ;;
esac
`

const testConflist = `{"cniVersion":"1.0.0","name":"test","plugins":[{"type":"testplugin"}]}`

func testPrograms(t *testing.T) string {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "testplugin"), []byte(testPlugin), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestContainerIsPluggedInAndOut(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	h := host(t, l, "host1")
	c, err := h.Attach(t.Context(), "web", testConflist)
	if err != nil {
		t.Fatal(err)
	}
	if want := []netip.Prefix{netip.MustParsePrefix("10.9.9.9/24")}; !slices.Equal(c.Addrs, want) {
		t.Errorf("addresses %v, want %v", c.Addrs, want)
	}
	if _, err := h.Attach(t.Context(), "web", testConflist); err == nil || !strings.Contains(err.Error(), "lab stop") {
		t.Errorf("second container of that name: %v", err)
	}
	if _, err := PingUntil(t.Context(), c, netip.MustParseAddr("10.9.9.1")); err != nil {
		t.Error(err)
	}
	if _, err := PingUntil(t.Context(), h, c.Addrs[0].Addr()); err != nil {
		t.Error(err)
	}
	if got := output(t, c.Command(t.Context(), "sh", "-c", "hostname; ls /sys/class/net")); got != "web\neth0\nlo" {
		t.Errorf("inside the container: %q", got)
	}
	sleep := c.Command(t.Context(), "sleep", "1000")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	again, err := h.Container("web")
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := sleep.Wait(); err == nil {
		t.Error("the container's process was not killed")
	}
	if b, err := h.ReadFile("/run/deleted"); err != nil || string(b) != "web\n" {
		t.Errorf("plugin's DEL: %q, %v", b, err)
	}
	if left, err := h.Containers(); err != nil || len(left) > 0 {
		t.Errorf("containers %v, %v", left, err)
	}
	if got := output(t, h.Command(t.Context(), "ls", "/run/netns")); got != "" {
		t.Errorf("namespace %q is left", got)
	}
}

// dnsPlugin tells what it was told, and about DNS.
const dnsPlugin = `#!/bin/sh
case $CNI_COMMAND in
ADD)
	{ echo "$CNI_ARGS"; cat; echo; } > /run/told
	echo '{"cniVersion":"1.0.0","dns":{"nameservers":["10.9.9.1","fd00::1"],"search":["a.example","example"],"options":["timeout:3","attempts:3"]}}' ;;
DEL) echo "$CNI_ARGS" >> /run/deleted ;;
esac
`

func TestContainerHasNameLabelsAndResolver(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	if err := os.WriteFile(filepath.Join(l.Programs, "dnsplugin"), []byte(dnsPlugin), 0o755); err != nil {
		t.Fatal(err)
	}
	h := host(t, l, "host1")
	const conflist = `{"cniVersion":"1.0.0","name":"test","plugins":[{"type":"dnsplugin","args":{"cni":{"ips":["10.9.9.9"]},"other":1}}]}`
	before := output(t, h.Command(t.Context(), "cat", "/etc/resolv.conf"))
	c, err := h.AttachAs(t.Context(), "web", Plug{Conflist: conflist, Namespace: "shop", Labels: map[string]string{"tier": "front", "app": "sample"}})
	if err != nil {
		t.Fatal(err)
	}
	told, err := h.ReadFile("/run/told")
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []string{"K8S_POD_NAME=web", "K8S_POD_NAMESPACE=shop", "IgnoreUnknown=1",
		`"labels":[{"key":"app","value":"sample"},{"key":"tier","value":"front"}]`, `"ips":["10.9.9.9"]`, `"other":1`} {
		if !strings.Contains(string(told), w) {
			t.Errorf("the plugin was not told %q: %s", w, told)
		}
	}
	want := "nameserver 10.9.9.1\nnameserver fd00::1\nsearch a.example example\noptions timeout:3 attempts:3"
	if got := output(t, c.Command(t.Context(), "cat", "/etc/resolv.conf")); got != want {
		t.Errorf("resolv.conf %q, want %q", got, want)
	}
	if got := output(t, h.Command(t.Context(), "cat", "/etc/resolv.conf")); got != before {
		t.Errorf("the host's resolv.conf became %q", got)
	}
	again, err := h.Container("web")
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	if b, err := h.ReadFile("/run/deleted"); err != nil || !strings.Contains(string(b), "K8S_POD_NAMESPACE=shop") {
		t.Errorf("DEL was told %q, %v", b, err)
	}
	if got := output(t, h.Command(t.Context(), "ls", "/etc/netns")); got != "" {
		t.Errorf("%q is left", got)
	}
}

func TestConfigurationThatCannotCarryLabelsIsRefused(t *testing.T) {
	for _, conflist := range []string{"{", `{"plugins":1}`, `{"plugins":[1]}`} {
		if _, err := labelled(conflist, map[string]string{"a": "b"}); err == nil {
			t.Errorf("%s is taken", conflist)
		}
	}
}

func TestContainerThatFailsLeavesNothing(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	h := host(t, l, "host1")
	if err := h.WriteFile("/run/fail-add", nil); err != nil {
		t.Fatal(err)
	}
	_, err := h.Attach(t.Context(), "web", testConflist)
	if err == nil || !strings.Contains(err.Error(), "told to fail") {
		t.Errorf("error %v", err)
	}
	if got := output(t, h.Command(t.Context(), "sh", "-c", "ls /run/netns; cat /run/deleted")); got != "web" {
		t.Errorf("left behind and deleted: %q", got)
	}
	if left, err := h.Containers(); err != nil || len(left) > 0 {
		t.Errorf("containers %v, %v", left, err)
	}
}

func TestDaemonStateIsKnownToOtherPrograms(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	// Any program that runs on will do for a daemon here.
	if err := os.WriteFile(filepath.Join(l.Programs, "flanneld"), []byte("#!/bin/sh\necho started \"$@\"\nexec sleep \"$1\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	h := host(t, l, "host1")
	if _, err := h.Daemon(); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("before the start: %v", err)
	}
	d, err := h.StartDaemon(t.Context(), "1000")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.StartDaemon(t.Context(), "1000"); err == nil {
		t.Error("a second daemon was started")
	}
	other, err := host(t, l, "host1").Daemon()
	if err != nil || other.PID != d.PID {
		t.Fatalf("found %v, %v", other, err)
	}
	if err := other.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if code, err := d.Wait(t.Context()); code != -1 || err != nil {
		t.Errorf("exit code %d, %v", code, err)
	}
	if err := d.Kill(t.Context()); err != nil {
		t.Errorf("kill again: %v", err)
	}
	d, err = h.StartDaemon(t.Context(), "0")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.WaitReady(t.Context()); err == nil || !strings.Contains(err.Error(), "started 0") {
		t.Errorf("a daemon that ends before it is ready: %v", err)
	}
}
