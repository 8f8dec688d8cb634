package wireguard

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	wg "github.com/flanneld/flanneld/kernel/wireguard"
	"golang.org/x/sys/unix"
)

func TestAKeyFileThatIsNoneIsRefusedAtOnce(t *testing.T) {
	for name, prepare := range map[string]func(path string) error{
		"pipe":      func(path string) error { return unix.Mkfifo(path, 0o600) },
		"directory": func(path string) error { return os.Mkdir(path, 0o700) },
		"device":    func(path string) error { return os.Symlink("/dev/zero", path) },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "key")
			if err := prepare(path); err != nil {
				t.Fatal(err)
			}
			before, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			_, _, err = loadKey(path, nil)
			if err == nil || !strings.Contains(err.Error(), path+" is no regular file") || !strings.Contains(err.Error(), "remove it") {
				t.Errorf("got %v", err)
			}
			if after, err := os.Stat(path); err != nil || after.Mode() != before.Mode() {
				t.Errorf("%v, was %v: %v", after, before, err)
			}
		})
	}
}

func TestAKeyThatOthersCouldReadIsToldOfOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	var log bytes.Buffer
	load := func() wg.Secret {
		t.Helper()
		k, _, err := loadKey(path, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	k := load()
	if log.Len() > 0 {
		t.Errorf("a new key: %s", &log)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if load() != k {
			t.Error("another key")
		}
	}
	text := log.String()
	if strings.Count(text, "\n") != 1 || !strings.Contains(text, "level=WARN") || !strings.Contains(text, "file="+path) ||
		!strings.Contains(text, "former=-rw-r-----") || strings.Contains(text, k.Reveal()) {
		t.Errorf("log %q", text)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
}
