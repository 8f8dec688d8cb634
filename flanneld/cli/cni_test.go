package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// runCNI runs "flanneld cni" and returns its exit code and output.
func runCNI(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs strings.Builder
	code = CNI(t.Context(), args, &out, &errs)
	return code, out.String(), errs.String()
}

func TestCNIInstallAndRemove(t *testing.T) {
	dir := t.TempDir()
	for _, file := range []string{"flanneld-bridge", "flanneld-ipam"} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(file), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	env := filepath.Join(dir, "subnet.env")
	if err := os.WriteFile(env, []byte("FLANNEL_SUBNET=10.1.19.1/24\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	flags := []string{"--from", dir, "--bin-dir", dir + "/bin", "-conf-dir", dir + "/net.d", "--subnet-file", env, "--name", "pods"}

	code, out, errs := runCNI(t, append([]string{"install"}, flags...)...)
	if code != 0 || errs != "" || !strings.Contains(out, "wrote "+dir+"/net.d/10-pods.conflist") {
		t.Errorf("install: exit code %d, said %q, %q", code, out, errs)
	}
	if _, out, _ = runCNI(t, append([]string{"install"}, flags...)...); !strings.Contains(out, "kept") {
		t.Errorf("second install said %q", out)
	}
	if code, _, errs = runCNI(t, append([]string{"remove"}, flags...)...); code != 0 {
		t.Errorf("remove: exit code %d, said %q", code, errs)
	}
	if _, err := os.Stat(dir + "/net.d/10-pods.conflist"); err == nil {
		t.Error("conflist is still there")
	}
}

func TestCNIInstallSaysWhatItWaitedFor(t *testing.T) {
	dir := t.TempDir()
	for _, file := range []string{"flanneld-bridge", "flanneld-ipam"} {
		if err := os.WriteFile(filepath.Join(dir, file), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	code, _, errs := runCNI(t, "install", "--from", dir, "--bin-dir", dir+"/bin", "--conf-dir", dir+"/net.d", "--subnet-file", dir+"/none", "--wait", "10ms")
	if code != 1 || !strings.Contains(errs, dir+"/none") || !strings.Contains(errs, "--wait") {
		t.Errorf("exit code %d, said %q", code, errs)
	}
}

func TestCNIUsageErrors(t *testing.T) {
	for name, args := range map[string][]string{
		"no action":        nil,
		"unknown action":   {"instal"},
		"unknown flag":     {"install", "--bindir", "/x"},
		"stray argument":   {"install", "now"},
		"malformed number": {"install", "--wait", "soon"},
	} {
		t.Run(name, func(t *testing.T) {
			if code, _, errs := runCNI(t, args...); code != 2 || errs == "" {
				t.Errorf("exit code %d, said %q", code, errs)
			}
		})
	}
	if code, out, _ := runCNI(t, "--help"); code != 0 || !strings.Contains(out, "flanneld cni install --name pods") {
		t.Errorf("help: exit code %d, said %q", code, out)
	}
}
