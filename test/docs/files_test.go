package docs

import (
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/cni/install"
	"github.com/flanneld/flanneld/flanneld/config"
	"github.com/flanneld/flanneld/lab"
)

// decode reads JSON into what can be compared.
func decode(t *testing.T, what, text string) any {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%s: %v\n%s", what, err, text)
	}
	return v
}

func TestThereIsOneConflist(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"flanneld-bridge", "flanneld-ipam"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	env := filepath.Join(dir, "subnet.env")
	if err := os.WriteFile(env, []byte("FLANNEL_SUBNET=10.1.19.1/24\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	res, err := install.Run(t.Context(), install.Options{From: dir, BinDir: filepath.Join(dir, "bin"), ConfDir: filepath.Join(dir, "net.d"), SubnetFile: env})
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(res.Conflist)
	if err != nil {
		t.Fatal(err)
	}
	installed := decode(t, res.Conflist, string(text))
	if !reflect.DeepEqual(installed, decode(t, "the lab's", lab.Conflist)) {
		t.Errorf("the lab plugs containers in with another configuration than flanneld cni install writes:\n%s", lab.Conflist)
	}
	shown := 0
	for _, b := range blocks(t, documents(t)["docs/cni.md"]) {
		if !slices.Equal(b.info, []string{"json", "conflist"}) {
			continue
		}
		shown++
		if !reflect.DeepEqual(installed, decode(t, "docs/cni.md", b.script)) {
			t.Errorf("docs/cni.md:%d shows another conflist than flanneld cni install writes:\n%s", b.line, text)
		}
	}
	if shown != 1 {
		t.Errorf("docs/cni.md shows the conflist %d times, want once", shown)
	}
}

// TestVariablesOfTheDocumentationAreFlags: what a person copies from there
// must mean something.
func TestVariablesOfTheDocumentationAreFlags(t *testing.T) {
	var help strings.Builder
	if _, err := config.Parse([]string{"--help"}, func(string) string { return "" }, &help); err == nil {
		t.Fatal("no help")
	}
	known := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\s+--([a-z0-9-]+)`).FindAllStringSubmatch(help.String(), -1) {
		known[config.EnvName(m[1])] = true
	}
	texts := documents(t)
	for _, path := range []string{"dist/flanneld.default", "dist/flanneld.service"} {
		text, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			t.Fatal(err)
		}
		texts[path] = string(text)
	}
	for name, text := range texts {
		for _, variable := range regexp.MustCompile(`FLANNELD_[A-Z0-9_]+`).FindAllString(text, -1) {
			if !known[variable] {
				t.Errorf("%s: %s stands for no flag of flanneld", name, variable)
			}
		}
	}
}

func TestSystemdAcceptsTheUnit(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Log("no systemd-analyze here")
		return
	}
	text, err := os.ReadFile(filepath.Join(root, "dist/flanneld.service"))
	if err != nil {
		t.Fatal(err)
	}
	// It looks whether the program is there: any will do.
	unit := filepath.Join(t.TempDir(), "flanneld.service")
	if err := os.WriteFile(unit, []byte(strings.ReplaceAll(string(text), "/usr/local/bin/flanneld", "/bin/true")), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(analyze, "verify", "--man=no", unit).CombinedOutput()
	if err != nil || strings.Contains(string(out), "flanneld.service") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestKeysOfTheCNIDocumentationExist: a key that the plugins do not know is
// ignored in silence, so the tables must not invent any.
func TestKeysOfTheCNIDocumentationExist(t *testing.T) {
	source, err := os.ReadFile(filepath.Join(root, "cni/plugin/config.go"))
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile("(?m)^\\| `([A-Za-z]+)` \\|").FindAllStringSubmatch(documents(t)["docs/cni.md"], -1)
	if len(rows) == 0 {
		t.Fatal("docs/cni.md has no tables of keys")
	}
	for _, row := range rows {
		if !strings.Contains(string(source), `json:"`+row[1]+`"`) {
			t.Errorf("docs/cni.md: no plugin knows the key %q", row[1])
		}
	}
}

// TestMessagesOfTheDocumentationExist: who looks for a message there must
// find the words that the programs use.
func TestMessagesOfTheDocumentationExist(t *testing.T) {
	var code strings.Builder
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		code.Write(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile("(?m)^\\| `([^`]+ [^`]+)`").FindAllStringSubmatch(documents(t)["docs/troubleshooting.md"], -1)
	if len(rows) == 0 {
		t.Fatal("docs/troubleshooting.md names no message")
	}
	for _, row := range rows {
		if !strings.Contains(code.String(), row[1]) {
			t.Errorf("docs/troubleshooting.md: no program says %q", row[1])
		}
	}
}
