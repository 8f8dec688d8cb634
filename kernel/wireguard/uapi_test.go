package wireguard

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

const hexKey = "e84b5a6d2717c1003a13b431570353dbaca9146cf150c5f8575680feba52027a"

func TestAnswersAreRead(t *testing.T) {
	s, err := parseState(strings.NewReader(`private_key=` + hexKey + `
listen_port=12912
fwmark=7
protocol_version=1
public_key=` + hexKey + `
preshared_key=` + hexKey + `
allowed_ip=192.168.4.4/32
endpoint=[abcd:23::33%2]:51820
last_handshake_time_sec=0
public_key=` + hexKey + `
endpoint=182.122.22.19:3233
persistent_keepalive_interval=111
allowed_ip=192.168.4.6/32
allowed_ip=fd00::/64
last_handshake_time_sec=1700000000
tx_bytes=12
unheard_of=x
errno=0

`))
	if err != nil {
		t.Fatal(err)
	}
	if s.Port != 12912 || s.Mark != 7 || s.Private.IsZero() || len(s.Peers) != 2 {
		t.Errorf("read %+v", s)
	}
	a, b := s.Peers[0], s.Peers[1]
	if a.Preshared.IsZero() || !a.Handshake.IsZero() || len(a.Allowed) != 1 || !b.Preshared.IsZero() {
		t.Errorf("first %+v", a)
	}
	if b.Keepalive != 111*time.Second || b.Endpoint != netip.MustParseAddrPort("182.122.22.19:3233") || len(b.Allowed) != 2 || b.Handshake.Unix() != 1700000000 {
		t.Errorf("second %+v", b)
	}
}

func TestWrongAnswersAreErrors(t *testing.T) {
	for _, text := range []string{"", "errno=0", "listen_port=1\n", "x\n", "listen_port=70000\nerrno=0\n\n", "public_key=00\nerrno=0\n\n", "errno=x\n\n"} {
		if _, err := parseState(strings.NewReader(text)); err == nil && text != "errno=0" {
			t.Errorf("%q is accepted", text)
		}
	}
	for text, want := range map[string]error{"errno=-98\n\n": syscall.EADDRINUSE, "errno=22\n\n": syscall.EINVAL, "private_key=" + hexKey + "\n": io.ErrUnexpectedEOF} {
		if _, err := parseState(strings.NewReader(text)); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", text, err, want)
		}
	}
}

func FuzzParseState(f *testing.F) {
	f.Add("listen_port=1\npublic_key=" + hexKey + "\nallowed_ip=10.0.0.0/8\nendpoint=1.2.3.4:5\nerrno=0\n\n")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := parseState(strings.NewReader(text))
		if err != nil {
			if strings.Contains(err.Error(), hexKey) {
				t.Errorf("a key is told: %v", err)
			}
			return
		}
		// What was read can be told.
		var c Change
		for _, p := range s.Peers {
			c.Set = append(c.Set, p.Peer)
		}
		var out strings.Builder
		w := bufio.NewWriter(&out)
		writeChange(w, c)
		w.Flush()
		again, err := parseState(strings.NewReader(out.String() + "errno=0\n\n"))
		if err != nil || len(again.Peers) != len(s.Peers) {
			t.Fatalf("%q came back as %v, %v", out.String(), again, err)
		}
		for i, p := range again.Peers {
			if p.Key != s.Peers[i].Key || !slices.Equal(p.Allowed, s.Peers[i].Allowed) {
				t.Errorf("peer %+v came back as %+v", s.Peers[i], p)
			}
		}
	})
}

func TestKeys(t *testing.T) {
	// RFC 7748 section 6.1: Alice's.
	private, err := ParseSecret(" dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=\n")
	if err != nil {
		t.Fatal(err)
	}
	public, err := private.Public()
	if err != nil || public.String() != "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=" {
		t.Errorf("public key %s, %v", public, err)
	}
	if clamped, _ := private.Clamp().Public(); clamped != public {
		t.Error("clamping changed the public key")
	}
	if a, b := NewSecret(), NewSecret(); a == b || a.IsZero() {
		t.Error("keys are not random")
	}
	if text := fmt.Sprintf("%v %+v %x %q", private, struct{ S Secret }{private}, private, &private); strings.Count(text, "(secret)") != 4 {
		t.Errorf("printed %s", text)
	}
}
