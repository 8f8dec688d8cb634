package subnet

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// identitySize is 128 bits: two hosts never draw the same.
const identitySize = 16

// LoadIdentity returns the random identity kept in dir, making it at the
// first call. Processes that call it at once get the same one. A damaged file
// counts as none.
func LoadIdentity(dir string) (string, error) {
	path := filepath.Join(dir, "identity")
	id, err := readIdentity(path)
	if err == nil {
		return id, nil
	}
	if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errNoIdentity) {
		return "", fmt.Errorf("read identity: %w", err)
	}
	if errors.Is(err, errNoIdentity) {
		return NewIdentity(dir)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make identity: %w", err)
	}
	tmp, err := writeTemp(path, []byte(newIdentity()+"\n"), 0o600)
	if err != nil {
		return "", fmt.Errorf("make identity: %w", err)
	}
	// A link, unlike a rename, leaves alone what another process made first.
	err = os.Link(tmp, path)
	if err := errors.Join(ignoreExist(err), os.Remove(tmp)); err != nil {
		return "", fmt.Errorf("make identity: %w", err)
	}
	return readIdentity(path)
}

// NewIdentity replaces the identity kept in dir.
func NewIdentity(dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make identity: %w", err)
	}
	id := newIdentity()
	if err := replaceFile(filepath.Join(dir, "identity"), []byte(id+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("make identity: %w", err)
	}
	return id, nil
}

// KeepIdentity writes the identity to dir again unless it is there, so that the
// host is known at its next start whoever deleted or damaged the file.
func KeepIdentity(dir, id string) error {
	if have, err := readIdentity(filepath.Join(dir, "identity")); err == nil && have == id {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("keep identity: %w", err)
	}
	if err := replaceFile(filepath.Join(dir, "identity"), []byte(id+"\n"), 0o600); err != nil {
		return fmt.Errorf("keep identity: %w", err)
	}
	return nil
}

// errNoIdentity: the file is there, an identity is not in it.
var errNoIdentity = errors.New("not an identity")

func newIdentity() string {
	var b [identitySize]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

func readIdentity(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	id := strings.TrimSpace(string(b))
	if raw, err := hex.DecodeString(id); err != nil || len(raw) != identitySize || id != strings.ToLower(id) {
		return "", fmt.Errorf("%s: %w", path, errNoIdentity)
	}
	return id, nil
}

func ignoreExist(err error) error {
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}
