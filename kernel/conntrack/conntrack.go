// Package conntrack forgets connections that the kernel tracks and that lead
// where a service does not lead any more.
//
// A connection of TCP stays with its endpoint, and one whose endpoint is gone
// ends by itself; SCTP's associations too. But one that nobody ever answered is
// not over when its client gives up: who comes from the same port again is led
// the same way. And UDP has no end that anybody could see: as long as a client
// sends from the same port the kernel sends it where it sent the first packet.
package conntrack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/flanneld/flanneld/kernel/nlbatch"
	"github.com/flanneld/flanneld/kernel/rules"
	"golang.org/x/sys/unix"
)

// ErrNotSupported says that this kernel does not tell what it tracks. What
// wraps it names what is missing.
var ErrNotSupported = errors.New("tracked connections cannot be read")

// Changed returns the frontends whose connections Clean is to look at when now
// takes the place of was: those that lost a slot, that got their first ones,
// and, without slots, those that are gone. After a restart, and if the rules
// were missing for a while, was is the zero value. Pointers are compared: what
// did not change costs nothing more.
func Changed(was, now rules.Services) []*rules.Frontend {
	var out []*rules.Frontend
	old := was.Frontends
	gone := func(f *rules.Frontend) {
		if len(f.Slots) > 0 {
			out = append(out, &rules.Frontend{Addr: f.Addr, Protocol: f.Protocol, Port: f.Port, Node: f.Node})
		}
	}
	for _, f := range now.Frontends {
		for len(old) > 0 && old[0].Compare(f) < 0 {
			gone(old[0])
			old = old[1:]
		}
		var before *rules.Frontend
		if len(old) > 0 && old[0].Compare(f) == 0 {
			before, old = old[0], old[1:]
		}
		if f != before && stale(before, f) {
			out = append(out, f)
		}
	}
	for _, f := range old {
		gone(f)
	}
	return out
}

// stale tells whether connections to a frontend may be wrong now; before is nil
// if it is new.
func stale(before, f *rules.Frontend) bool {
	if before == nil || len(before.Slots) == 0 {
		return len(f.Slots) > 0
	}
	return slices.ContainsFunc(before.Slots, func(s netip.AddrPort) bool { return !slices.Contains(f.Slots, s) })
}

// Clean deletes the entries whose original destination is one of frontends and
// that lead to none of its slots: to an endpoint that went, or, where there is
// one now, to none, also because they began while rules were missing. It
// returns how many it deleted. Of several frontends at the same place the last
// one counts. Nothing is kept and nothing written to.
//
// Of TCP and SCTP these are entries that nobody has answered, and those that
// lead nowhere else and are not established (else it is this host's own server
// at a node port), and only if settled: the change is some seconds ago, and no
// answer is under way.
//
// It is to be called after the rules are in place, in the network namespace of
// the calling thread. The table is read once per family, whatever the number
// of frontends (unless settled the kernel selects UDP, from Linux 5.8 on); it is
// not locked meanwhile: a packet that was under way between the old rules and
// the entry may escape, and is caught by the second call, when all is settled.
func Clean(ctx context.Context, frontends []*rules.Frontend, settled bool) (deleted int, err error) {
	for _, v4 := range []bool{true, false} {
		wanted := makeTable(frontends, v4, settled)
		if len(wanted.frontends) == 0 {
			continue
		}
		n, err := wanted.clean(ctx)
		deleted += n
		if err != nil {
			return deleted, err
		}
	}
	return deleted, nil
}

// place is where a frontend is.
type place struct {
	protocol uint8
	at       netip.AddrPort
}

// table is the frontends of one family, by where they are.
type table struct {
	family    byte
	udp       bool // and no other protocol
	frontends map[place]*rules.Frontend
}

func makeTable(frontends []*rules.Frontend, v4, settled bool) table {
	t := table{unix.AF_INET6, !settled, map[place]*rules.Frontend{}}
	if v4 {
		t.family = unix.AF_INET
	}
	for _, f := range frontends {
		if (settled || f.Protocol == unix.IPPROTO_UDP) && f.Addr.Is4() == v4 {
			t.frontends[place{f.Protocol, netip.AddrPortFrom(f.Addr, f.Port)}] = f
		}
	}
	return t
}

// stale tells whether e is to be deleted. What the host itself answers, or
// nobody, is so only where there are slots now.
func (t *table) stale(e *entry) bool {
	f := t.frontends[place{e.protocol, e.to}]
	nowhere := e.from == e.to
	switch {
	case f == nil || nowhere && len(f.Slots) == 0 || slices.Contains(f.Slots, e.from):
		return false
	case e.protocol == unix.IPPROTO_UDP:
		return true
	}
	return e.status&answered == 0 || nowhere && e.status&assured == 0
}

func (t *table) clean(ctx context.Context) (deleted int, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	c, err := nlbatch.Dial(unix.NETLINK_NETFILTER)
	if err != nil {
		if errors.Is(err, unix.EPROTONOSUPPORT) {
			err = fmt.Errorf("%w: the kernel has no nfnetlink (CONFIG_NETFILTER_NETLINK)", ErrNotSupported)
		}
		return 0, err
	}
	defer c.Close()
	c.SizeForBulk()
	var dels nlbatch.Batch
	if err := t.find(c, &dels); err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	deleted = dels.Len()
	var refused error
	err = c.Apply(&dels, func(_ int, e *nlbatch.Error) {
		deleted--
		if !errors.Is(e, unix.ENOENT) { // else it ended by itself
			refused = e
		}
	})
	if err = errors.Join(err, refused); err != nil {
		return max(deleted, 0), fmt.Errorf("delete tracked connections of services: %w", err)
	}
	return deleted, nil
}

// find adds a deletion to dels for each entry that is stale.
func (t *table) find(c *nlbatch.Conn, dels *nlbatch.Batch) error {
	each := func(body []byte) error {
		var e entry
		if e.read(body) && t.stale(&e) {
			e.delete(dels, t.family)
		}
		return nil
	}
	var err error
	for _, selected := range []bool{true, false} {
		if selected && !t.udp {
			continue
		}
		dels.Reset()
		err = c.Dump(t.request(selected), each)
		// A kernel that knows the filter may refuse this one.
		if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP) {
			break
		}
	}
	switch {
	case errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%w: the kernel has no ctnetlink: modprobe nf_conntrack_netlink", ErrNotSupported)
	case err != nil && !errors.Is(err, nlbatch.ErrInterrupted): // it changes all the time
		return fmt.Errorf("list tracked connections: %w", err)
	}
	return nil
}

// Numbers of linux/netfilter/nfnetlink_conntrack.h, which x/sys lacks.
const (
	msgGet    = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1 // IPCTNL_MSG_CT_GET
	msgDelete = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2

	tupleOrig, tupleReply = 1, 2 // CTA_TUPLE_…
	status                = 3    // CTA_STATUS
	entryID               = 12   // CTA_ID
	zone                  = 18   // CTA_ZONE
	filter                = 25   // CTA_FILTER

	tupleIP, tupleProto        = 1, 2 // CTA_TUPLE_…
	ip4Src, ip4Dst             = 1, 2 // CTA_IP_V4_…
	ip6Src, ip6Dst             = 3, 4
	protoNum                   = 1    // CTA_PROTO_NUM
	srcPort, dstPort           = 2, 3 // CTA_PROTO_…_PORT
	filterOrig                 = 1    // CTA_FILTER_ORIG_FLAGS
	filterByProtocol    uint32 = 1 << 3
	answered            uint32 = 1 << 1 // IPS_SEEN_REPLY
	assured             uint32 = 1 << 2 // IPS_ASSURED

	nfgenmsgLen = 4
)

// request asks for the table; selected: for UDP only, which kernels before 5.8
// do not understand and answer with everything.
func (t *table) request(selected bool) *nlbatch.Batch {
	var b nlbatch.Batch
	b.Message(msgGet, unix.NLM_F_DUMP, []byte{t.family, 0, 0, 0})
	if selected {
		b.Nest(tupleOrig, func() {
			b.Nest(tupleProto, func() { b.Uint8(protoNum, unix.IPPROTO_UDP) })
		})
		b.Nest(filter, func() { b.Uint32(filterOrig, filterByProtocol) })
	}
	return &b
}

// entry is what is read of a tracked connection. Its slices are the dump's.
type entry struct {
	protocol uint8
	to       netip.AddrPort // that the client sent to
	from     netip.AddrPort // that answers come from: where it leads
	status   uint32
	orig     []byte
	id, zone []byte
}

// read reads a message; false if it is no connection between ports.
func (e *entry) read(body []byte) bool {
	if len(body) < nfgenmsgLen {
		return false
	}
	for kind, data := range nlbatch.Attrs(body[nfgenmsgLen:]) {
		switch kind {
		case tupleOrig:
			_, e.to, e.protocol = readTuple(data)
			e.orig = data
		case tupleReply:
			e.from, _, _ = readTuple(data)
		case status:
			if len(data) == 4 {
				e.status = binary.BigEndian.Uint32(data)
			}
		case entryID:
			e.id = data
		case zone:
			e.zone = data
		}
	}
	return e.to.IsValid() && e.from.IsValid()
}

// delete asks for the deletion of e and of no other that took its place.
func (e *entry) delete(b *nlbatch.Batch, family byte) {
	b.Message(msgDelete, 0, []byte{family, 0, 0, 0})
	b.Bytes(tupleOrig|unix.NLA_F_NESTED, e.orig)
	if e.id != nil {
		b.Bytes(entryID, e.id)
	}
	if e.zone != nil {
		b.Bytes(zone, e.zone)
	}
}

// readTuple reads one direction; what is missing is not valid.
func readTuple(b []byte) (src, dst netip.AddrPort, protocol uint8) {
	var from, to netip.Addr
	var fromPort, toPort uint16
	for part, data := range nlbatch.Attrs(b) {
		for kind, value := range nlbatch.Attrs(data) {
			switch {
			case part == tupleIP && (kind == ip4Src || kind == ip6Src):
				from, _ = netip.AddrFromSlice(value)
			case part == tupleIP && (kind == ip4Dst || kind == ip6Dst):
				to, _ = netip.AddrFromSlice(value)
			case part == tupleProto && kind == protoNum && len(value) == 1:
				protocol = value[0]
			case part == tupleProto && kind == srcPort && len(value) == 2:
				fromPort = binary.BigEndian.Uint16(value)
			case part == tupleProto && kind == dstPort && len(value) == 2:
				toPort = binary.BigEndian.Uint16(value)
			}
		}
	}
	return netip.AddrPortFrom(from, fromPort), netip.AddrPortFrom(to, toPort), protocol
}
