package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestLeftoversOfTestsAreFoundAndRemoved(t *testing.T) {
	marker, tmp := "FLANNELD_TEST_RUN="+t.Name(), t.TempDir()
	before := look(marker, tmp)
	// The kernel shows a program's environment a moment after its start, so
	// the child says when it runs; from then on it is one program.
	cmd := exec.Command("sh", "-c", "echo; read end; exit 0")
	cmd.Env = append(os.Environ(), marker)
	hold, err := cmd.StdinPipe() // keeps it alive; its own end ends it
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tmp, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	var found []string
	for name, left := range look(marker, tmp) {
		if _, old := before[name]; old || left.remove == nil {
			continue
		}
		found = append(found, name)
		if err := left.remove(); err != nil {
			t.Error(err)
		}
	}
	slices.Sort(found)
	if len(found) != 2 || !strings.HasPrefix(found[0], "file "+tmp) || !strings.HasSuffix(found[1], "(sh)") {
		t.Errorf("found %q", found)
	}
	_ = hold.Close() // so that the wait has an end whatever was killed
	if err := cmd.Wait(); err == nil {
		t.Error("the process was not killed")
	}
}

func TestLabsOfTestsAreToldFromThoseOfPeople(t *testing.T) {
	for name, ours := range map[string]bool{
		"t123-4f": true, "e2e-8384-18de526b": true, "engines-7-0": true,
		"lab": false, "demo": false, "lab-2": false, "my-lab-2": false,
	} {
		if testLab.MatchString(name) != ours {
			t.Errorf("%s: taken for a test's: %v", name, !ours)
		}
	}
}
