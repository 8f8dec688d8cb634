package zone

import (
	"encoding/binary"
	"slices"
)

// head is what a zone says of itself.
type head struct {
	apex   []byte // the domain
	labels int    // of apex
	base   []byte // below which the view's names are: the domain or the tenant's part of it
	tenant string // the label of base in front of apex, "" if they are the same

	top         []Set // SOA and NS, of every apex
	server      []Set // A and AAAA of ns.dns.<domain>
	serverExtra []Set // the same with their owner
	version     []Set
	any         Set // RFC 8482

	soa           []byte
	ttl, negative uint32
	serial        uint32
}

// SOA is the data of the SOA record, names in it uncompressed. It is the same
// for all zones that a Zone answers; its owner is Answer.Apex.
func (h *head) SOA() []byte { return h.soa }

// TTL of all records, in seconds.
func (h *head) TTL() uint32 { return h.ttl }

// NegativeTTL is how long the absence of something may be remembered, in
// seconds: the TTL of the SOA record where it tells of one (RFC 2308).
func (h *head) NegativeTTL() uint32 { return h.negative }

// Serial of the SOA record.
func (h *head) Serial() uint32 { return h.serial }

// soa is the data of an SOA record, RFC 1035, section 3.3.13. Nobody
// transfers the zone: the times between say nothing.
func soa(server, mailbox []byte, serial, minimum uint32) []byte {
	b := slices.Concat(server, mailbox)
	for _, v := range []uint32{serial, 7200, 1800, 86400, minimum} {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return b
}
