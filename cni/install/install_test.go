package install_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flanneld/flanneld/cni/install"
)

// host is a machine's folders, with plugins to install and a ready network.
func host(t *testing.T) install.Options {
	t.Helper()
	root := t.TempDir()
	o := install.Options{
		From:       filepath.Join(root, "from"),
		BinDir:     filepath.Join(root, "opt/cni/bin"),
		ConfDir:    filepath.Join(root, "etc/cni/net.d"),
		SubnetFile: filepath.Join(root, "run/flannel/subnet.env"),
	}
	write(t, filepath.Join(o.From, "flanneld-bridge"), "bridge v1")
	write(t, filepath.Join(o.From, "flanneld-ipam"), "ipam v1")
	write(t, o.SubnetFile, "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.19.1/24\nFLANNEL_MTU=1450\n")
	return o
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func run(t *testing.T, o install.Options) install.Result {
	t.Helper()
	res, err := install.Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func TestPluginsAndConflistAreInstalled(t *testing.T) {
	o := host(t)
	res := run(t, o)
	if len(res.Binaries) != 2 || res.Kept || len(res.First) != 0 {
		t.Errorf("result %+v", res)
	}
	for _, bin := range res.Binaries {
		info, err := os.Stat(bin)
		if err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("%s: %v, %v", bin, info, err)
		}
	}
	const want = `{"cniVersion":"1.0.0","cniVersions":["0.4.0","1.0.0","1.1.0"],"name":"flannel","plugins":[` +
		`{"capabilities":{"aliases":true},"hairpinMode":true,"ipam":{"type":"flanneld-ipam"},"isDefaultGateway":true,"type":"flanneld-bridge"}]}`
	var got bytes.Buffer
	if err := json.Compact(&got, []byte(read(t, filepath.Join(o.ConfDir, "10-flannel.conflist")))); err != nil {
		t.Fatal(err)
	}
	if got.String() != want {
		t.Errorf("conflist\n%s\nwant\n%s", &got, want)
	}
	for _, dir := range []string{o.BinDir, o.ConfDir} {
		if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) != 0 {
			t.Errorf("temporary files left: %v", left)
		}
	}
}

func TestPortmapIsListedOnlyWhereItIsInstalled(t *testing.T) {
	o := host(t)
	write(t, filepath.Join(o.BinDir, "portmap"), "")
	if text := read(t, run(t, o).Conflist); !strings.Contains(text, `"portMappings": true`) {
		t.Errorf("conflist without portmap:\n%s", text)
	}
}

func TestConflistIsNotWrittenBeforeTheNetworkIsReady(t *testing.T) {
	for name, text := range map[string]string{"no file": "", "no subnet yet": "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=\n"} {
		t.Run(name, func(t *testing.T) {
			o := host(t)
			if err := os.Remove(o.SubnetFile); err != nil {
				t.Fatal(err)
			}
			if text != "" {
				write(t, o.SubnetFile, text)
			}
			var told []string
			o.Waiting = func(file string) { told = append(told, file) }
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			_, err := install.Run(ctx, o)
			if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), o.SubnetFile) {
				t.Errorf("error %v does not name the file it waits for", err)
			}
			if len(told) != 1 {
				t.Errorf("told %d times that it waits, want once", len(told))
			}
			if _, err := os.Stat(filepath.Join(o.ConfDir, "10-flannel.conflist")); err == nil {
				t.Error("conflist written for a network that is not ready")
			}
		})
	}
}

func TestConflistFollowsWhenTheNetworkBecomesReady(t *testing.T) {
	o := host(t)
	ready := o.SubnetFile
	o.SubnetFile += ".later"
	synctest.Test(t, func(t *testing.T) {
		done := make(chan error)
		go func() {
			_, err := install.Run(t.Context(), o)
			done <- err
		}()
		time.Sleep(time.Minute)
		if err := os.Rename(ready, o.SubnetFile); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
	read(t, filepath.Join(o.ConfDir, "10-flannel.conflist"))
}

func TestRepeatReplacesBinariesAndKeepsTheAdminsConflist(t *testing.T) {
	o := host(t)
	res := run(t, o)
	edited := strings.Replace(read(t, res.Conflist), `"hairpinMode": true`, `"hairpinMode": false`, 1)
	write(t, res.Conflist, edited)
	write(t, filepath.Join(o.From, "flanneld-bridge"), "bridge v2")

	if res = run(t, o); !res.Kept || read(t, res.Conflist) != edited {
		t.Error("the admin's conflist was not kept")
	}
	if got := read(t, res.Binaries[0]); got != "bridge v2" {
		t.Errorf("binary is %q after the second run", got)
	}
	o.Force = true
	if res = run(t, o); res.Kept || read(t, res.Conflist) == edited {
		t.Error("Force did not overwrite")
	}
}

func TestSomebodyElsesConflistIsNotTouched(t *testing.T) {
	o := host(t)
	path := filepath.Join(o.ConfDir, "10-flannel.conflist")
	const foreign = `{"name":"cbr0","plugins":[{"type":"flannel"}]}`
	write(t, path, foreign)
	if _, err := install.Run(t.Context(), o); !errors.Is(err, install.ErrForeign) {
		t.Errorf("error %v", err)
	}
	if err := install.Remove(o); err != nil {
		t.Errorf("remove: error %v", err)
	}
	if read(t, path) != foreign {
		t.Error("changed")
	}
}

func TestConfigurationsThatEnginesFindFirstAreReported(t *testing.T) {
	o := host(t)
	write(t, filepath.Join(o.ConfDir, "00-other.conflist"), "{}")
	write(t, filepath.Join(o.ConfDir, "00-notes.txt"), "")
	write(t, filepath.Join(o.ConfDir, "99-last.conf"), "{}")
	res := run(t, o)
	if len(res.First) != 1 || filepath.Base(res.First[0]) != "00-other.conflist" {
		t.Errorf("first %v", res.First)
	}
}

func TestRemoveLeavesNothingAndMayBeRepeated(t *testing.T) {
	o := host(t)
	res := run(t, o)
	for range 2 {
		if err := install.Remove(o); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range append(res.Binaries, res.Conflist) {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s is still there", path)
		}
	}
}

func TestWrongNameNeverBecomesAPath(t *testing.T) {
	for _, name := range []string{"../x", "a/b", ".", "-a", " ", strings.Repeat("a", 65)} {
		o := host(t)
		o.Name = name
		if _, err := install.Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), "network name") {
			t.Errorf("name %q: error %v", name, err)
		}
	}
}

func TestMissingPluginIsNamed(t *testing.T) {
	o := host(t)
	if err := os.Remove(filepath.Join(o.From, "flanneld-ipam")); err != nil {
		t.Fatal(err)
	}
	if _, err := install.Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), "flanneld-ipam") {
		t.Errorf("error %v", err)
	}
}
