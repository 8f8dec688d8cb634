package link

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/nlbatch"
)

// Numbers of linux/netfilter/ipset/ip_set.h.
const (
	ipsetVersion = 6

	ipsetCmdProtocol = 1
	ipsetCmdCreate   = 2
	ipsetCmdDestroy  = 3
	ipsetCmdList     = 7
	ipsetCmdAdd      = 9
	ipsetCmdDel      = 10

	ipsetProtocol = 1
	ipsetSetname  = 2
	ipsetTypename = 3
	ipsetRevision = 4
	ipsetFamily   = 5
	ipsetData     = 7
	ipsetADT      = 8
	ipsetLineno   = 9
	ipsetIP       = 1 // within ipsetData
	ipsetMaxelem  = 19
	ipsetIPv4     = 1 // within ipsetIP
	ipsetIPv6     = 2
)

// IPSets are the kernel's named sets of addresses (ipset, type hash:ip) in
// one network namespace. It is not safe for concurrent use.
type IPSets struct {
	conn *nlbatch.Conn
}

// setCapacity bounds the elements of one set.
const setCapacity = 1 << 20

// entriesPerMessage keeps a message below the 64 KiB that an attribute can
// hold.
const entriesPerMessage = 1000

// OpenIPSets returns the sets of the calling thread's network namespace. It
// fails where the kernel lacks ipset (CONFIG_IP_SET, CONFIG_IP_SET_HASH_IP).
func OpenIPSets() (*IPSets, error) {
	conn, err := nlbatch.Dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	s := &IPSets{conn: conn}
	ask := setMessage(ipsetCmdProtocol, 0, "")
	for _, err := range conn.Get(&ask) {
		if err != nil {
			return nil, errors.Join(fmt.Errorf("ipset (CONFIG_IP_SET): %w", err), s.Close())
		}
	}
	return s, nil
}

// Close frees the socket; the sets stay.
func (s *IPSets) Close() error { return s.conn.Close() }

// Sync makes the set hold exactly these addresses, all of one family, and
// makes it if need be. It reads the set and writes the difference, additions
// first.
func (s *IPSets) Sync(name string, v4 bool, want []netip.Addr) error {
	have, err := s.List(name)
	if errors.Is(err, unix.ENOENT) {
		have, err = nil, s.create(name, v4)
	}
	if err != nil {
		return err
	}
	want = slices.Clone(want)
	slices.SortFunc(want, netip.Addr.Compare)
	slices.SortFunc(have, netip.Addr.Compare)
	without := func(a, b []netip.Addr) []netip.Addr {
		return slices.DeleteFunc(slices.Clone(a), func(x netip.Addr) bool {
			_, found := slices.BinarySearchFunc(b, x, netip.Addr.Compare)
			return found
		})
	}
	return errors.Join(
		s.change(name, ipsetCmdAdd, without(want, have)),
		s.change(name, ipsetCmdDel, without(have, want)))
}

// Destroy removes a set that no rule uses; a set that is not there is no error.
func (s *IPSets) Destroy(name string) error {
	b := setMessage(ipsetCmdDestroy, 0, name)
	if err := s.do(&b); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("destroy ipset %s: %w", name, err)
	}
	return nil
}

// List returns a set's addresses; unix.ENOENT if there is no such set.
func (s *IPSets) List(name string) ([]netip.Addr, error) {
	var out []netip.Addr
	ask := setMessage(ipsetCmdList, unix.NLM_F_DUMP, name)
	for body, err := range s.conn.Get(&ask) {
		if err != nil {
			return nil, fmt.Errorf("list ipset %s: %w", name, err)
		}
		if len(body) < 4 {
			continue
		}
		for kind, entries := range nlbatch.Attrs(body[4:]) {
			if kind != ipsetADT {
				continue
			}
			for _, entry := range nlbatch.Attrs(entries) {
				out = append(out, entryAddrs(entry)...)
			}
		}
	}
	return out, nil
}

// entryAddrs returns the address of a set's entry.
func entryAddrs(entry []byte) (out []netip.Addr) {
	for kind, ip := range nlbatch.Attrs(entry) {
		if kind != ipsetIP {
			continue
		}
		for _, b := range nlbatch.Attrs(ip) {
			if a, ok := netip.AddrFromSlice(b); ok {
				out = append(out, a)
			}
		}
	}
	return out
}

func (s *IPSets) create(name string, v4 bool) error {
	b := setMessage(ipsetCmdCreate, unix.NLM_F_CREATE|unix.NLM_F_EXCL, name)
	family := uint8(unix.AF_INET6)
	if v4 {
		family = unix.AF_INET
	}
	b.String(ipsetTypename, "hash:ip")
	b.Uint8(ipsetRevision, 1)
	b.Uint8(ipsetFamily, family)
	b.Nest(ipsetData, func() {
		b.BigUint32(ipsetMaxelem|unix.NLA_F_NET_BYTEORDER, setCapacity)
	})
	if err := s.do(&b); err != nil {
		return fmt.Errorf("create ipset %s: %w", name, err)
	}
	return nil
}

func (s *IPSets) change(name string, cmd uint16, addrs []netip.Addr) error {
	for part := range slices.Chunk(addrs, entriesPerMessage) {
		b := setMessage(cmd, 0, name)
		b.BigUint32(ipsetLineno|unix.NLA_F_NET_BYTEORDER, 0)
		b.Nest(ipsetADT, func() {
			for _, a := range part {
				kind := uint16(ipsetIPv6)
				if a.Is4() {
					kind = ipsetIPv4
				}
				b.Nest(ipsetData, func() {
					b.Nest(ipsetIP, func() { b.Bytes(kind|unix.NLA_F_NET_BYTEORDER, a.AsSlice()) })
				})
			}
		})
		if err := s.do(&b); err != nil {
			return fmt.Errorf("change ipset %s: %w", name, err)
		}
	}
	return nil
}

// do sends the messages and joins their refusals.
func (s *IPSets) do(b *nlbatch.Batch) error {
	outcomes, err := s.conn.Do(b)
	return errors.Join(append(outcomes, err)...)
}

func setMessage(cmd, flags uint16, name string) nlbatch.Batch {
	var b nlbatch.Batch
	b.Message(unix.NFNL_SUBSYS_IPSET<<8|cmd, flags, []byte{unix.AF_INET, unix.NFNETLINK_V0, 0, 0})
	b.Uint8(ipsetProtocol, ipsetVersion)
	if name != "" {
		b.String(ipsetSetname, name)
	}
	return b
}
