package vxlan

import (
	"github.com/flanneld/flanneld/backend/routed"
	"github.com/flanneld/flanneld/subnet"
)

const (
	defaultVNI  = 1
	defaultPort = 8472 // the kernel's, which flannel leaves it to

	// Interface names have at most 15 characters, "flannel." and
	// "flannel-v6." included.
	mostVNI4, mostVNI6 = 9999999, 9999
)

// overhead is the outer IP header, UDP, VXLAN and the inner Ethernet header.
var overhead = routed.Overhead{V4: 50, V6: 70}

// options are the VXLAN options of the configuration's Backend.
type options struct {
	VNI    uint32
	Port   uint16
	MTU    int // of the underlay, as flannel's; 0: the interface's
	GBP    bool
	Direct routed.Direct
}

// parseOptions reads the Backend object. Errors are *subnet.ConfigError.
func parseOptions(n subnet.Config) (options, error) {
	o := options{VNI: defaultVNI, Port: defaultPort, Direct: routed.ByWay}
	mostVNI := mostVNI4
	for _, r := range n.Ranges {
		if r.Network.Addr().Is6() {
			mostVNI = mostVNI6
		}
	}
	err := routed.ParseOptions(n, "VNI, Port, MTU, GBP, Learning, DirectRouting, MacPrefix", func(name string, f routed.Option) (bool, error) {
		switch name {
		case "macprefix": // flannel's, for Windows hosts only
			return true, nil
		case "learning": // flannel's; peers are known, there is nothing to learn
			return true, f.Bool(new(bool))
		case "vni":
			vni := int(o.VNI)
			err := f.Int(&vni, 0, mostVNI)
			o.VNI = uint32(vni)
			return true, err
		case "port":
			return true, f.Port(&o.Port)
		case "mtu":
			return true, f.Size(&o.MTU, n.Ranges, overhead)
		case "gbp":
			return true, f.Bool(&o.GBP)
		case "directrouting":
			return true, f.Direct(&o.Direct)
		}
		return false, nil
	})
	return o, err
}
