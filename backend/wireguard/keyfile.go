package wireguard

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	wg "github.com/flanneld/flanneld/kernel/wireguard"
	"golang.org/x/sys/unix"
)

// loadKey returns the private key in a file, which flannel may have written,
// or makes one and writes it, for root alone. A file that others can read is
// closed to them, and log (nil: quiet) is told.
func loadKey(path string, log *slog.Logger) (k wg.Secret, isNew bool, err error) {
	k, err = readKey(path, log)
	if errors.Is(err, fs.ErrNotExist) {
		k, isNew = wg.NewSecret(), true
		err = writeKey(path, k)
	}
	if err != nil {
		return wg.Secret{}, false, fmt.Errorf("WireGuard key: %w", err)
	}
	return k, isNew, nil
}

func readKey(path string, log *slog.Logger) (wg.Secret, error) {
	// A pipe would have the daemon wait for whoever writes to it.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return wg.Secret{}, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file (%v): remove it to have a new key made", path, st.Mode().Type())
	}
	if err == nil && st.Mode().Perm()&0o077 != 0 {
		err = f.Chmod(st.Mode().Perm() &^ 0o077)
		if err == nil && log != nil {
			log.Warn("WireGuard key could be read by others than root, who may have it: to rotate it remove its file and restart flanneld",
				"file", path, "former", st.Mode().Perm())
		}
	}
	if err != nil {
		return wg.Secret{}, err
	}
	text, err := io.ReadAll(io.LimitReader(f, 1<<10))
	if err != nil {
		return wg.Secret{}, err
	}
	k, err := wg.ParseSecret(string(text))
	if err == nil && k.IsZero() {
		err = errors.New("a key of zeros is nobody's")
	}
	if err != nil {
		return wg.Secret{}, fmt.Errorf("file %s: %w; remove it to have a new one made", path, err)
	}
	return k.Clamp(), nil
}

// writeKey makes the file in one step, so that a crash leaves no half of it.
func writeKey(path string, k wg.Secret) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*") // 0600
	if err != nil {
		return err
	}
	_, err = f.WriteString(k.Reveal())
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
