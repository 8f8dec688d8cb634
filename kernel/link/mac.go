package link

import (
	"fmt"
	"net"
)

// MAC is an Ethernet address. The zero value is "none".
type MAC [6]byte

// ParseMAC reads six bytes in any of the usual notations.
func ParseMAC(s string) (MAC, error) {
	hw, err := net.ParseMAC(s)
	if err != nil || len(hw) != len(MAC{}) {
		return MAC{}, fmt.Errorf("%q is not an Ethernet address (six bytes, as in 46:0a:5c:00:00:01)", s)
	}
	return MAC(hw), nil
}

// String is the usual notation: 46:0a:5c:00:00:01.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// IsUnicast reports whether m is the address of one interface: neither a
// group's, nor none.
func (m MAC) IsUnicast() bool { return m[0]&1 == 0 && m != MAC{} }
