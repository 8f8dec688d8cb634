package wireguard

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	wg "github.com/flanneld/flanneld/kernel/wireguard"
	"github.com/flanneld/flanneld/subnet"
)

const psk = "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA="

func config(raw string, networks ...string) subnet.Config {
	n := subnet.Config{Backend: subnet.Backend{Type: Type, Raw: json.RawMessage(raw)}}
	for _, s := range networks {
		p := netip.MustParsePrefix(s)
		n.Ranges = append(n.Ranges, subnet.Range{Network: p, SubnetLen: p.Bits() + 8})
	}
	return n
}

func TestOptionsAreFlannels(t *testing.T) {
	secret, err := wg.ParseSecret(psk)
	if err != nil {
		t.Fatal(err)
	}
	for raw, want := range map[string]options{
		``: {Port: 51820, PortV6: 51821, Mode: separate},
		`{"Type":"wireguard","PSK":"","ListenPort":0,"MTU":0,"Mode":null}`: {Port: 51820, PortV6: 51821, Mode: separate},
		`{"listenport":1,"LISTENPORTV6":2,"mtu":1400,"psk":"` + psk + `","persistentkeepaliveinterval":25,"mode":"auto"}`: {
			Port: 1, PortV6: 2, MTU: 1400, PSK: secret, Keepalive: 25 * time.Second, Mode: auto},
	} {
		if got, err := parseOptions(config(raw, "10.1.0.0/16", "fd00:1::/48")); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", raw, got, err, want)
		}
	}
}

func TestWrongOptionsNameTheFieldAndNeverTheSecret(t *testing.T) {
	dual := []string{"10.1.0.0/16", "fd00:1::/48"}
	for raw, want := range map[string]struct {
		field    string
		networks []string
	}{
		`{"PSK":"` + psk + `x"}`:                      {"Backend.PSK", dual},
		`{"PSK":["` + psk + `"]}`:                     {"Backend.PSK", dual},
		`{"psk":"` + psk[:40] + `"}`:                  {"Backend.psk", dual},
		`{"Mode":"ipv5"}`:                             {"Backend.Mode", dual},
		`{"Mode":"ipv4"}`:                             {"Backend.Mode", dual[1:]},
		`{"Mode":"ipv6"}`:                             {"Backend.Mode", dual[:1]},
		`{"ListenPort":7,"ListenPortV6":7}`:           {"Backend.ListenPortV6", dual},
		`{"PersistentKeepaliveInterval":65536}`:       {"Backend.PersistentKeepaliveInterval", dual},
		`{"PersistentKeepaliveInterval":-1}`:          {"Backend.PersistentKeepaliveInterval", dual},
		`{"MTU":1359}`:                                {"Backend.MTU", dual},
		`{"MTU":655}`:                                 {"Backend.MTU", dual[:1]},
		`{"PresharedKey":"` + psk[:20] + `"}`:         {"Backend.PresharedKey", dual},
		`{"ListenPort":51821,"Mode":"separate","x":}`: {"Backend", dual},
	} {
		_, err := parseOptions(config(raw, want.networks...))
		ce, ok := errors.AsType[*subnet.ConfigError](err)
		if !ok || ce.Field != want.field || ce.Remedy == "" {
			t.Errorf("%s: %v; want a remedy for %s", raw, err, want.field)
		}
		if want.field != "Backend.PresharedKey" && err != nil && strings.Contains(err.Error(), psk[:12]) {
			t.Errorf("the PSK is told: %v", err)
		}
	}
	if _, err := parseOptions(config(`{"ListenPort":7,"ListenPortV6":7,"Mode":"auto"}`, dual...)); err != nil {
		t.Errorf("one device has one port: %v", err)
	}
}

func TestSecretsAreNotPrinted(t *testing.T) {
	o, err := parseOptions(config(`{"PSK":"`+psk+`"}`, "10.1.0.0/16"))
	if err != nil {
		t.Fatal(err)
	}
	raw, _ := json.Marshal(o)
	for _, text := range []string{fmt.Sprint(o), fmt.Sprintf("%+v %#v %x %d %s", o, o.PSK, o.PSK, o.PSK, o.PSK), string(raw)} {
		if strings.Contains(text, "1 2 3") || strings.Contains(text, "010203") || strings.Contains(text, "AQID") || strings.Contains(text, "0x1, 0x2") {
			t.Errorf("printed: %s", text)
		}
	}
}

func TestModesChooseTheAddress(t *testing.T) {
	a := netip.MustParseAddr
	private, public := a("10.0.0.2"), a("203.0.113.2")
	private6, public6 := a("fd00::2"), a("2001:db8::2")
	for name, c := range map[string]struct {
		mode mode
		v6   bool // the device is that of IPv6
		own  []netip.Addr
		peer []netip.Addr
		want netip.Addr
	}{
		"separate, IPv4":            {mode: separate, peer: []netip.Addr{private, private6}, want: private},
		"separate, IPv6":            {mode: separate, v6: true, peer: []netip.Addr{private, private6}, want: private6},
		"ipv4":                      {mode: onlyIPv4, v6: true, peer: []netip.Addr{private, public6}, want: private},
		"ipv6":                      {mode: onlyIPv6, peer: []netip.Addr{public, private6}, want: private6},
		"auto, IPv4 alone":          {mode: auto, own: []netip.Addr{private}, peer: []netip.Addr{private}, want: private},
		"auto, IPv6 alone":          {mode: auto, own: []netip.Addr{private6}, peer: []netip.Addr{private6}, want: private6},
		"auto, peer's IPv4 public":  {mode: auto, own: []netip.Addr{private, public6}, peer: []netip.Addr{public, public6}, want: public},
		"auto, both's IPv6 public":  {mode: auto, own: []netip.Addr{private, public6}, peer: []netip.Addr{private, public6}, want: public6},
		"auto, only peer's public6": {mode: auto, own: []netip.Addr{private, private6}, peer: []netip.Addr{private, public6}, want: private},
		"auto, nothing public":      {mode: auto, own: []netip.Addr{private, private6}, peer: []netip.Addr{private, private6}, want: private},
	} {
		d := &device{opts: options{Mode: c.mode}, publics: c.own, tunnels: tunnelsOf(c.v6)}
		if got := d.choose(c.peer); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func TestWhereADeviceFoundItsPeerIsKept(t *testing.T) {
	at := netip.MustParseAddrPort
	l := &subnet.Lease{PublicIPs: []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")}}
	n := []netip.Prefix{netip.MustParsePrefix("10.1.2.0/24")}
	d := &device{port: 51820, opts: options{Mode: auto}, tunnels: tunnelsOf(false)}
	for name, c := range map[string]struct {
		endpoint string
		fresh    bool
		want     bool
	}{
		"as told":                     {"10.0.0.2:51820", false, true},
		"another port, by a session":  {"10.0.0.2:1024", true, true},
		"another port, set by a hand": {"10.0.0.2:1024", false, false},
		"its other address":           {"[fd00::2]:51820", true, true},
		"somebody's address":          {"10.0.0.3:51820", true, false},
	} {
		e := &entry{has: &wg.Peer{Endpoint: at(c.endpoint), Allowed: n}, fresh: c.fresh, lease: l, allowed: n}
		if got := d.fits(e); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func FuzzParseData(f *testing.F) {
	own := wg.Key{1}
	for _, s := range []string{
		`{"PublicKey":"` + psk + `"}`, `{"publickey":"` + psk + `","x":[1]}`, `{"PublicKey":null}`, `null`, `7`, ``, `{"PublicKey":""}`,
		string(marshalData(own)),
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		k, err := parseData(raw, own)
		if err != nil {
			if len(err.Error()) > 400 {
				t.Errorf("error of %d bytes", len(err.Error()))
			}
			return
		}
		if k == own || k == (wg.Key{}) {
			t.Errorf("key %s is accepted", k)
		}
		if again, err := parseData(marshalData(k), own); err != nil || again != k {
			t.Errorf("%s came back as %s, %v", k, again, err)
		}
	})
}

func TestFlannelsDataIsRead(t *testing.T) {
	k, err := wg.ParseKey(psk)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(marshalData(k)); got != `{"PublicKey":"`+psk+`"}` {
		t.Errorf("wrote %s", got)
	}
	if _, err := parseData(marshalData(k), k); err == nil || !strings.Contains(err.Error(), "clone") {
		t.Errorf("our own key: %v", err)
	}
}
