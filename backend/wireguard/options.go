package wireguard

import (
	"time"

	"github.com/flanneld/flanneld/backend/routed"
	wg "github.com/flanneld/flanneld/kernel/wireguard"
	"github.com/flanneld/flanneld/subnet"
)

const (
	defaultPort   = 51820
	defaultPortV6 = 51821
)

// overhead is flannel's for both families: the outer header of IPv6, 40 bytes,
// UDP's, WireGuard's own 32.
var overhead = routed.Overhead{V4: 80, V6: 80}

// mode says how many devices there are, and by which family packets leave.
type mode string

const (
	separate mode = "separate" // a device for each family, each on its own
	auto     mode = "auto"     // one device; the family that is likelier to get through
	onlyIPv4 mode = "ipv4"     // one device, over IPv4
	onlyIPv6 mode = "ipv6"     // one device, over IPv6
)

// options are flannel's WireGuard options of the configuration's Backend.
type options struct {
	Port, PortV6 uint16
	MTU          int // of the underlay; 0: the interface's
	PSK          wg.Secret
	Keepalive    time.Duration
	Mode         mode
}

// parseOptions reads the Backend object. Errors are *subnet.ConfigError; they
// do not tell the PSK.
func parseOptions(n subnet.Config) (options, error) {
	o := options{Port: defaultPort, PortV6: defaultPortV6, Mode: separate}
	const known = "ListenPort, ListenPortV6, MTU, PSK, PersistentKeepaliveInterval, Mode"
	err := routed.ParseOptions(n, known, func(name string, f routed.Option) (bool, error) {
		switch name {
		case "listenport":
			return true, f.Port(&o.Port)
		case "listenportv6":
			return true, f.Port(&o.PortV6)
		case "mtu":
			return true, f.Size(&o.MTU, n.Ranges, overhead)
		case "psk":
			return true, o.psk(f)
		case "persistentkeepaliveinterval":
			seconds := 0
			err := f.Int(&seconds, 0, 65535)
			o.Keepalive = time.Duration(seconds) * time.Second
			return true, err
		case "mode":
			return true, o.mode(f, n)
		}
		return false, nil
	})
	if err == nil && o.Mode == separate && len(n.Ranges) > 1 && o.Port == o.PortV6 {
		err = &subnet.ConfigError{Field: "Backend.ListenPortV6", Remedy: "must be another than ListenPort where each family has a device of its own: set another, or a Mode of one device (auto)"}
	}
	return o, err
}

func (o *options) psk(f routed.Option) error {
	refused := &subnet.ConfigError{Field: "Backend." + f.Name, Value: "(secret)", Remedy: "must be 32 bytes in base64, as wg genpsk prints"}
	var text string
	if f.String(&text) != nil {
		return refused
	}
	if text == "" {
		return nil
	}
	var err error
	if o.PSK, err = wg.ParseSecret(text); err != nil {
		return refused
	}
	return nil
}

func (o *options) mode(f routed.Option, n subnet.Config) error {
	text := string(o.Mode)
	if err := f.String(&text); err != nil {
		return err
	}
	switch o.Mode = mode(text); o.Mode {
	case separate, auto:
		return nil
	case onlyIPv4, onlyIPv6:
		for _, r := range n.Ranges {
			if r.Network.Addr().Is4() == (o.Mode == onlyIPv4) {
				return nil
			}
		}
		return f.Refuse("needs a network of that family too, or the hosts tell each other no address of it: enable it, or use auto")
	}
	return f.Refuse("must be separate, auto, ipv4 or ipv6")
}
