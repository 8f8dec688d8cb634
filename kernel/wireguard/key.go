package wireguard

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

const keyLen = 32

// Key is a public key.
type Key [keyLen]byte

// String is the key as people and leases write it.
func (k Key) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// ParseKey reads what String wrote. The key that is zero is nobody's.
func ParseKey(s string) (Key, error) {
	raw, err := decode(s)
	if err == nil && raw == [keyLen]byte{} {
		err = errors.New("a key of zeros is nobody's")
	}
	return raw, err
}

// Secret is a private or preshared key. It is never printed: its text is
// Reveal's.
type Secret [keyLen]byte

// Format prints that there is something, whatever the verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("(secret)")) }

// MarshalText does not tell either.
func (s Secret) MarshalText() ([]byte, error) { return []byte("(secret)"), nil }

// Reveal is the secret's text, for its file.
func (s Secret) Reveal() string { return base64.StdEncoding.EncodeToString(s[:]) }

// IsZero reports whether there is none.
func (s Secret) IsZero() bool { return s == Secret{} }

// Public is the public key of a private one.
func (s Secret) Public() (Key, error) {
	k, err := ecdh.X25519().NewPrivateKey(s[:])
	if err != nil {
		return Key{}, err
	}
	return Key(k.PublicKey().Bytes()), nil
}

// ParseSecret reads what Reveal wrote, and space around it. Its error does not
// tell the text.
func ParseSecret(s string) (Secret, error) {
	raw, err := decode(strings.TrimSpace(s))
	return raw, err
}

// NewSecret makes a private key.
func NewSecret() Secret {
	var s Secret
	_, _ = rand.Read(s[:]) // never fails
	return s.Clamp()
}

// Clamp is a private key as RFC 7748 section 5 wants it. Devices change
// others to that; the public key is the same.
func (s Secret) Clamp() Secret {
	s[0] &= 248
	s[31] = s[31]&127 | 64
	return s
}

func decode(s string) (out [keyLen]byte, err error) {
	raw, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || len(raw) != keyLen || strings.ContainsAny(s, "\r\n") {
		return out, fmt.Errorf("not a WireGuard key: %d bytes in base64 are one", keyLen)
	}
	return [keyLen]byte(raw), nil
}
