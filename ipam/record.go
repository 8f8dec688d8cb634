package ipam

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Record is one attachment. Its file is written once, complete, before the
// container is plugged in; afterwards only Attached changes, Guarded if the
// kernel cannot do it, and the addresses if another plugin chooses them.
type Record struct {
	// Attached is false while the ADD has not finished.
	Attached    bool   `json:"attached"`
	Network     string `json:"network"`
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
	NetNS       string `json:"netns,omitempty"`
	// HostLink is the host's end of the attachment; "" if the reservation
	// was made for another plugin, which plugs the container in. It is
	// looked for in the namespace HostNS (inode number).
	HostLink string `json:"hostLink,omitempty"`
	HostNS   uint64 `json:"hostNetns,omitempty"`
	Bridge   string `json:"bridge,omitempty"`
	MAC      string `json:"mac,omitempty"`
	// Addresses with their prefix lengths, and the gateway of each (invalid:
	// none).
	Addresses []netip.Prefix `json:"addresses"`
	Gateways  []netip.Addr   `json:"gateways,omitempty"`
	// BridgeAddresses are those of Bridge that this attachment needs. The
	// others are how its port and bridge are to be, where it matters.
	BridgeAddresses []netip.Prefix `json:"bridgeAddresses,omitempty"`
	MTU             int            `json:"mtu,omitempty"`
	Promisc         bool           `json:"promisc,omitempty"`
	Hairpin         bool           `json:"hairpin,omitempty"`
	Isolated        bool           `json:"isolated,omitempty"`
	// Masquerade: what leaves the network is given the host's address.
	// Inside are the prefixes that belong to the network.
	Masquerade bool           `json:"masquerade,omitempty"`
	Inside     []netip.Prefix `json:"inside,omitempty"`
	// Guarded: the host's port lets only the record's addresses pass.
	Guarded bool `json:"guarded,omitempty"`
	// Namespace (Kubernetes'), Names and Labels are as the container engine
	// gave them. Names are the container's own first, then its aliases.
	Namespace string            `json:"namespace,omitempty"`
	Names     []string          `json:"names,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
	// BootID of the machine: no container outlives a reboot.
	BootID  string    `json:"bootID"`
	Created time.Time `json:"created"`
}

// Key tells the attachments of one network apart.
type Key struct {
	ContainerID, IfName string
}

// maxID is the longest container id that a file name holds as it is.
const maxID = 64

// id is how the container id appears in the file name: itself, or if too long
// its hash behind a ~, which is not allowed in ids.
func (k Key) id() string {
	if len(k.ContainerID) <= maxID {
		return k.ContainerID
	}
	sum := sha256.Sum256([]byte(k.ContainerID))
	return "~" + hex.EncodeToString(sum[:20])
}

// HostLink is the name of the host's end of an attachment's veth pair. It
// follows from what the container engine says on every call, so that it can
// be found whatever else was lost.
func (k Key) HostLink(network string) string {
	sum := sha256.Sum256([]byte(network + "\x00" + k.id() + "\x00" + k.IfName))
	return LinkPrefix + hex.EncodeToString(sum[:])[:15-len(LinkPrefix)]
}

// LinkPrefix begins the name of every host link.
const LinkPrefix = "fl"

// entry is what a record's file name says.
type entry struct {
	name      string
	addresses []netip.Addr
	id        string // Key.id
	ifName    string
}

func (e entry) is(k Key) bool { return e.id == k.id() && e.ifName == k.IfName }

// key is the entry's Key; of a hashed container id it serves for HostLink
// only.
func (e entry) key() Key { return Key{e.id, e.ifName} }

func (k Key) fileName(addrs []netip.Addr) string {
	var b strings.Builder
	for i, a := range addrs {
		if i > 0 {
			b.WriteByte('+')
		}
		b.WriteString(a.String())
	}
	if len(addrs) == 0 {
		b.WriteByte('-')
	}
	return b.String() + "," + k.id() + "," + k.IfName
}

// fileName is the name of the record's file.
func (r Record) fileName() (string, error) {
	var addrs []netip.Addr
	for _, p := range r.Addresses {
		addrs = append(addrs, p.Addr())
	}
	name := Key{r.ContainerID, r.IfName}.fileName(addrs)
	if len(name) > 255 {
		return "", fmt.Errorf("attachment %s: too many addresses or too long an interface name for a file name", name)
	}
	return name, nil
}

// parseName is the reverse of fileName; false for files that are no records.
func parseName(name string) (entry, bool) {
	addrs, rest, ok := strings.Cut(name, ",")
	id, ifName, ok2 := strings.Cut(rest, ",")
	if !ok || !ok2 || id == "" || ifName == "" {
		return entry{}, false
	}
	e := entry{name: name, id: id, ifName: ifName}
	if addrs == "-" {
		return e, true
	}
	for s := range strings.SplitSeq(addrs, "+") {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			return entry{}, false
		}
		e.addresses = append(e.addresses, a)
	}
	return e, true
}

// The two states of a file differ in these bytes only, which are overwritten
// in place.
const (
	unattached = `{"attached":false,`
	attached   = `{"attached":true ,`
)

func (r Record) encode() ([]byte, error) {
	finished := r.Attached
	r.Attached = false
	b, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode record: %w", err)
	}
	if finished {
		copy(b, attached)
	}
	return append(b, '\n'), nil
}

// ParseRecord reads the content of a record's file.
func ParseRecord(b []byte) (Record, error) {
	var r Record
	if err := json.Unmarshal(b, &r); err != nil {
		return Record{}, fmt.Errorf("parse attachment record: %w", err)
	}
	return r, nil
}
