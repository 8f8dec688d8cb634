package subnet

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestIdentityIsMadeOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "flannel")
	ids := make([]string, 8)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			var err error
			if ids[i], err = LoadIdentity(dir); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] || len(id) != 32 {
			t.Fatalf("identities %q", ids)
		}
	}
	path := filepath.Join(dir, "identity")
	if st, err := os.Stat(path); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	if files, _ := os.ReadDir(dir); len(files) != 1 {
		t.Errorf("%d files left", len(files))
	}
	other, err := NewIdentity(dir)
	if err != nil || other == ids[0] {
		t.Errorf("new identity %q, %v", other, err)
	}
	if again, err := LoadIdentity(dir); err != nil || again != other {
		t.Errorf("loaded %q, %v, want %q", again, err, other)
	}
}

func TestDamagedIdentityIsReplaced(t *testing.T) {
	for _, content := range []string{"", "hello", strings.Repeat("0", 31), strings.Repeat("A", 32), strings.Repeat("0", 33)} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "identity"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		id, err := LoadIdentity(dir)
		if err != nil || len(id) != 32 {
			t.Fatalf("%q: %q, %v", content, id, err)
		}
		if again, err := LoadIdentity(dir); err != nil || again != id {
			t.Errorf("%q: then %q, %v", content, again, err)
		}
	}
}

func TestDeletedIdentityIsWrittenAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "flannel")
	path := filepath.Join(dir, "identity")
	id, err := LoadIdentity(dir)
	if err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func() error{
		"nothing":   func() error { return nil },
		"file":      func() error { return os.Remove(path) },
		"directory": func() error { return os.RemoveAll(dir) },
		"content":   func() error { return os.WriteFile(path, []byte("hello"), 0o600) },
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		if err := KeepIdentity(dir, id); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if again, err := LoadIdentity(dir); err != nil || again != id {
			t.Errorf("%s: loaded %q, %v, want %q", name, again, err, id)
		}
	}
}
