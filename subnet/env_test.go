package subnet

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestEnvIsFlannels(t *testing.T) {
	for name, tt := range map[string]struct {
		env  Env
		file string
	}{
		"IPv4": {Env{prefixes("10.5.0.0/16"), prefixes("10.5.19.0/24"), 1450, true},
			"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.19.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"},
		"dual stack": {Env{prefixes("10.5.0.0/16 fd00:5::/48"), prefixes("10.5.19.0/24 fd00:5:0:19::/64"), 1430, false},
			"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.19.1/24\nFLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5:0:19::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\n"},
		"IPv6": {Env{prefixes("fd00:5::/48"), prefixes("fd00:5:0:19::/64"), 1430, false},
			"FLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5:0:19::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\n"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "run", "flannel", "subnet.env")
			if err := WriteEnv(path, tt.env); err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(path)
			if err != nil || string(b) != tt.file {
				t.Errorf("got %q, %v, want %q", b, err, tt.file)
			}
			if st, err := os.Stat(path); err != nil || st.Mode() != 0o644 {
				t.Errorf("mode %v, %v", st.Mode(), err)
			}
			if got, err := ReadEnv(path); err != nil || !got.Equal(tt.env) {
				t.Errorf("read %+v, %v, want %+v", got, err, tt.env)
			}
			if err := WriteEnv(path, tt.env); err != nil {
				t.Errorf("again: %v", err)
			}
			if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
				t.Errorf("%d files left in the directory", len(left))
			}
		})
	}
}

func TestEnvIsReadAsAShellWould(t *testing.T) {
	e, err := ParseEnv([]byte("# ours\r\n\n export FLANNEL_SUBNET=\"10.5.19.1/24\"\nFLANNEL_MTU='1450'\nOTHER=x=y\nFLANNEL_IPMASQ=1"))
	want := Env{nil, prefixes("10.5.19.0/24"), 1450, true}
	if err != nil || !e.Equal(want) {
		t.Errorf("got %+v, %v, want %+v", e, err, want)
	}
}

func TestGarbageInEnvNamesTheLine(t *testing.T) {
	for in, text := range map[string]string{
		"FLANNEL_MTU=1450\nhello\n":        `line 2: "hello": must be NAME=VALUE`,
		"FLANNEL_MTU=many":                 "line 1: FLANNEL_MTU=many: must be a number",
		"FLANNEL_MTU=-1":                   "must be a number",
		"\n\nFLANNEL_SUBNET=10.5.19.1":     "line 3: FLANNEL_SUBNET=10.5.19.1: must be an IPv4 address with prefix length",
		"FLANNEL_SUBNET=fd00::1/64":        "must be an IPv4 address",
		"FLANNEL_SUBNET=10.5.19.1/32":      "must be an IPv4 address",
		"FLANNEL_IPV6_SUBNET=10.5.19.1/24": "must be an IPv6 address",
		"FLANNEL_IPMASQ=perhaps":           "must be true or false",
		strings.Repeat("x", 70000):         "at most 65536 bytes",
		"FLANNEL_NETWORK=\x00\x1b[31m":     "line 1: FLANNEL_NETWORK=??[31m: must be",
	} {
		if e, err := ParseEnv([]byte(in)); err == nil || !strings.Contains(err.Error(), text) || !e.Equal(Env{}) {
			t.Errorf("%.40q: got %+v, %v, want text with %q", in, e, err, text)
		}
	}
	if _, err := ReadEnv(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func TestUnwritableEnvLeavesTheFormerOne(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "subnet.env")
	if err := os.MkdirAll(filepath.Join(path, "in-the-way"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := WriteEnv(path, Env{MTU: 1450}); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("%d files left", len(left))
	}
}

func FuzzParseEnv(f *testing.F) {
	f.Add([]byte("FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.19.1/24\nFLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5:0:19::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := ParseEnv(b)
		if err != nil {
			return
		}
		again, err := ParseEnv(e.Marshal())
		if err != nil || !again.Equal(e) {
			t.Fatalf("%q: %+v became %+v, %v", b, e, again, err)
		}
	})
}
