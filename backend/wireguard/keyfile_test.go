package wireguard

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

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
			_, _, err = loadKey(path)
			if err == nil || !strings.Contains(err.Error(), path+" is no regular file") || !strings.Contains(err.Error(), "remove it") {
				t.Errorf("got %v", err)
			}
			if after, err := os.Stat(path); err != nil || after.Mode() != before.Mode() {
				t.Errorf("%v, was %v: %v", after, before, err)
			}
		})
	}
}
