package wireguard

import (
	"net/netip"

	"github.com/flanneld/flanneld/backend/routed"
	"github.com/flanneld/flanneld/subnet"
)

func tunnelsOf(v6 bool) []*routed.Tunnel {
	n := "10.1.0.0/16"
	if v6 {
		n = "fd00:1::/48"
	}
	return []*routed.Tunnel{{Range: subnet.Range{Network: netip.MustParsePrefix(n)}}}
}
