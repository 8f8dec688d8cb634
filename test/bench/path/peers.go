package main

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/subnet"
	"golang.org/x/sys/unix"
)

// manyPeers is how many hosts a large cluster has.
const manyPeers = 5000

// invented is host n of a cluster that does not exist, with what the leases of
// each backend tell.
func invented(kind string, n int) *subnet.Lease {
	l := &subnet.Lease{
		Key: fmt.Sprintf("invented-%06d", n), Type: kind, Created: int64(n),
		Subnets:   []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(2 + n>>8), byte(n), 0}), 24)},
		PublicIPs: []netip.Addr{netip.AddrFrom4([4]byte{192, 168, byte(80 + n>>8), byte(n)})},
	}
	switch kind {
	case "vxlan":
		l.Data.V4 = fmt.Appendf(nil, `{"VNI":1,"VtepMAC":"46:00:00:00:%02x:%02x"}`, n>>8, n&255)
	case "gre":
		l.Data.V4 = json.RawMessage(`{}`)
	case "wireguard":
		key := sha256.Sum256(fmt.Append(nil, n))
		l.Data.V4 = fmt.Appendf(nil, `{"PublicKey":%q}`, base64.StdEncoding.EncodeToString(key[:]))
	}
	return l
}

// peers prints what programming a large cluster costs each driver.
func peers(ctx context.Context, o options, w io.Writer) error {
	fmt.Fprintf(w, "\n### %d peers\n\nWall time, CPU time of the process that syncs (not of a keeper of its own), writes to the kernel\n\n", manyPeers)
	fmt.Fprintln(w, "| backend | first sync | one more | one less |\n|---|---|---|---|")
	for _, d := range drivers() {
		if !o.only.MatchString(d.name) {
			continue
		}
		row, err := peersOf(ctx, d)
		if errors.Is(err, unix.EOPNOTSUPP) {
			row, err = "this kernel has it not | | ", nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
		fmt.Fprintf(w, "| %s | %s |\n", d.name, row)
	}
	return nil
}

// peersOf tells one driver of many peers, then of one more and one less.
func peersOf(ctx context.Context, d driver) (row string, err error) {
	p, err := newPair(ctx, 1500)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	if err := run(ctx, p.hosts[0], "ip addr replace 192.168.77.1/16 dev eth0"); err != nil { // all are on one link
		return "", err
	}
	c := configOf(d.options)
	c.Ranges[0].Network = netip.MustParsePrefix("10.0.0.0/8")
	dev, err := d.open(ctx, p, 0, c)
	if err != nil {
		return "", err
	}
	var all []backend.Peer
	for n := range manyPeers + 1 {
		all = append(all, backend.Peer{Lease: invented(c.Backend.Type, n)})
	}
	own := &subnet.Lease{Type: c.Backend.Type, Subnets: []netip.Prefix{subnetOf(0)}, PublicIPs: []netip.Addr{hostAddr(0)}, Data: dev.Info().Data}
	for i, told := range [][]backend.Peer{all[:manyPeers], all, all[:manyPeers]} {
		counter, ok := dev.(interface{ Writes() uint64 })
		if !ok {
			return "", fmt.Errorf("%T does not count its writes", dev)
		}
		began, cpu, writes := time.Now(), used(), counter.Writes()
		if err := dev.Sync(ctx, own, told); err != nil {
			return "", err
		}
		if i > 0 {
			row += " | "
		}
		row += fmt.Sprintf("%.1f ms, %.1f ms, %d", ms(time.Since(began)), ms(used()-cpu), counter.Writes()-writes)
	}
	return row, nil
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// used is the CPU time of this process.
func used() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0 // it has no other reason than a wrong argument
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
