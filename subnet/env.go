package subnet

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// maxEnvSize is far more than the six lines of the file.
const maxEnvSize = 64 << 10

// Env is what subnet.env tells engines and plugins about this host's part of
// the network. Networks and Subnets are masked, one per family, IPv4 first.
type Env struct {
	Networks []netip.Prefix
	Subnets  []netip.Prefix
	MTU      int
	IPMasq   bool
}

// Equal says whether two files would be the same.
func (e Env) Equal(o Env) bool {
	return slices.Equal(e.Networks, o.Networks) && slices.Equal(e.Subnets, o.Subnets) && e.MTU == o.MTU && e.IPMasq == o.IPMasq
}

// Gateway is the address that a host has in its own subnet: the first.
func Gateway(subnet netip.Prefix) netip.Addr { return subnet.Masked().Addr().Next() }

// Marshal is the content of the file: flannel's keys in flannel's order, the
// subnet as gateway address with prefix length.
func (e Env) Marshal() []byte {
	var b []byte
	for _, f := range []struct {
		v6   bool
		name string
	}{{false, "FLANNEL_"}, {true, "FLANNEL_IPV6_"}} {
		same := func(p netip.Prefix) bool { return p.Addr().Is6() == f.v6 }
		if i := slices.IndexFunc(e.Networks, same); i >= 0 {
			b = fmt.Appendf(b, "%sNETWORK=%s\n", f.name, e.Networks[i].Masked())
		}
		if i := slices.IndexFunc(e.Subnets, same); i >= 0 {
			b = fmt.Appendf(b, "%sSUBNET=%s\n", f.name, netip.PrefixFrom(Gateway(e.Subnets[i]), e.Subnets[i].Bits()))
		}
	}
	return fmt.Appendf(b, "FLANNEL_MTU=%d\nFLANNEL_IPMASQ=%t\n", e.MTU, e.IPMasq)
}

// WriteEnv replaces the file at path atomically, making its directory if
// necessary. A reader sees the former content or the new one.
func WriteEnv(path string, e Env) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write subnet file: %w", err)
	}
	if err := replaceFile(path, e.Marshal(), 0o644); err != nil {
		return fmt.Errorf("write subnet file: %w", err)
	}
	return nil
}

// replaceFile writes a temporary file beside path and renames it.
func replaceFile(path string, content []byte, mode os.FileMode) error {
	tmp, err := writeTemp(path, content, mode)
	if err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return nil
}

// writeTemp writes content to a new file beside path and returns its name.
func writeTemp(path string, content []byte, mode os.FileMode) (name string, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return "", err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Chmod(mode), f.Close())
	if err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	return f.Name(), nil
}

// ReadEnv reads a file written by WriteEnv or by flannel. Without a file the
// error is fs.ErrNotExist.
func ReadEnv(path string) (Env, error) { return readVars(path, "subnet file", ParseEnv) }

// ParseEnv reads the content of a subnet file. Comments, empty lines, quotes,
// a leading "export" and unknown names are accepted; an error names the line.
// Whether what was found suffices is for the caller to judge.
func ParseEnv(b []byte) (Env, error) {
	var e Env
	var networks, subnets [2]netip.Prefix // by family
	err := parseVars(b, func(name, value string) (err error) {
		switch name {
		case "FLANNEL_NETWORK":
			networks[0], err = envPrefix(value, false)
		case "FLANNEL_SUBNET":
			subnets[0], err = envPrefix(value, false)
		case "FLANNEL_IPV6_NETWORK":
			networks[1], err = envPrefix(value, true)
		case "FLANNEL_IPV6_SUBNET":
			subnets[1], err = envPrefix(value, true)
		case "FLANNEL_MTU":
			e.MTU, err = strconv.Atoi(value)
			if err != nil || e.MTU < 0 || e.MTU > 1<<16 {
				err = errors.New("must be a number of bytes up to 65536")
			}
		case "FLANNEL_IPMASQ":
			if e.IPMasq, err = strconv.ParseBool(value); err != nil {
				err = errors.New("must be true or false")
			}
		}
		return err
	})
	if err != nil {
		return Env{}, err
	}
	e.Networks, e.Subnets = present(networks), present(subnets)
	return e, nil
}

// readVars reads a file of variables; what is how errors call it.
func readVars[T any](path, what string, parse func([]byte) (T, error)) (T, error) {
	var none T
	f, err := os.Open(path)
	if err != nil {
		return none, fmt.Errorf("read %s: %w", what, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxEnvSize+1))
	if err != nil {
		return none, fmt.Errorf("read %s: %w", what, err)
	}
	v, err := parse(b)
	if err != nil {
		return none, fmt.Errorf("%s %s: %w", what, path, err)
	}
	return v, nil
}

// parseVars calls set for each line NAME=VALUE.
func parseVars(b []byte, set func(name, value string) error) error {
	if len(b) > maxEnvSize {
		return fmt.Errorf("must be at most %d bytes", maxEnvSize)
	}
	n := 0
	for line := range bytes.Lines(b) {
		n++
		s := strings.TrimSpace(string(line))
		if s == "" || s[0] == '#' {
			continue
		}
		name, value, ok := strings.Cut(strings.TrimPrefix(s, "export "), "=")
		if !ok {
			return fmt.Errorf("line %d: %q: must be NAME=VALUE", n, clip([]byte(s)))
		}
		if err := set(strings.TrimSpace(name), unquote(value)); err != nil {
			return fmt.Errorf("line %d: %s: %w", n, clip([]byte(s)), err)
		}
	}
	return nil
}

func unquote(s string) string {
	s = strings.TrimSpace(s)
	if len(s) >= 2 && (s[0] == '"' || s[0] == '\'') && s[len(s)-1] == s[0] {
		return s[1 : len(s)-1]
	}
	return s
}

func envPrefix(s string, v6 bool) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is6() != v6 || p.Addr().Is4In6() || p.IsSingleIP() {
		return netip.Prefix{}, fmt.Errorf("must be an %s address with prefix length", map[bool]string{false: "IPv4", true: "IPv6"}[v6])
	}
	return p.Masked(), nil
}

func present(p [2]netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(p[:], func(p netip.Prefix) bool { return !p.IsValid() })
}
