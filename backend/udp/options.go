package udp

import (
	"github.com/flanneld/flanneld/backend/routed"
	"github.com/flanneld/flanneld/subnet"
)

const defaultPort = 8285 // flannel's

// overhead is the outer IP header and UDP.
func overhead() routed.Overhead { return routed.Overhead{V4: 28, V6: 48} }

// options are the options of the configuration's Backend.
type options struct {
	Port uint16
	MTU  int // of the underlay; 0: the interface's
}

// parseOptions reads the Backend object. Errors are *subnet.ConfigError.
func parseOptions(n subnet.Config) (options, error) {
	o := options{Port: defaultPort}
	err := routed.ParseOptions(n, "Port, MTU", func(name string, f routed.Option) (bool, error) {
		switch name {
		case "port":
			return true, f.Port(&o.Port)
		case "mtu":
			return true, f.Size(&o.MTU, n.Ranges, overhead())
		}
		return false, nil
	})
	return o, err
}
