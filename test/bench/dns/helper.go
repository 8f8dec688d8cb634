package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/store"
	"github.com/flanneld/flanneld/store/etcd"
	"github.com/flanneld/flanneld/subnet"
	"github.com/flanneld/flanneld/test/dnswire"
)

// helper is what the benchmark runs of itself in the switch.
func helper(ctx context.Context, what string, stderr io.Writer) int {
	var err error
	if what == "write" {
		err = write(ctx, os.Stdin, os.Stdout)
	} else {
		err = upstream(ctx)
	}
	if err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	return 0
}

// The host that all names are on lives only in etcd, and so does its lease,
// which is large enough for all addresses.
const (
	fakeHost     = "host9"
	fakeIdentity = "00112233445566778899aabbccddeeff"
)

func fakeSubnet() netip.Prefix { return netip.MustParsePrefix("10.128.0.0/12") }

// write keeps the host alive and puts names as it is told, until in ends. It
// answers each line with the time just before, in nanoseconds since 1970:
//
//	flanneld FROM TO COPIES
//	coredns FROM TO COPIES
func write(ctx context.Context, in io.Reader, out io.Writer) error {
	st, err := etcd.New(etcd.Options{Endpoints: []string{etcdURL}})
	if err != nil {
		return err
	}
	defer st.Close()
	s, err := st.Session(ctx, subnet.HostTTL, 0)
	if err != nil {
		return err
	}
	if err := live(ctx, st, s.ID()); err != nil {
		return err
	}
	for lines := bufio.NewScanner(in); lines.Scan(); {
		var form string
		var from, to, copies int
		if _, err := fmt.Sscan(lines.Text(), &form, &from, &to, &copies); err != nil {
			return fmt.Errorf("%q: %w", lines.Text(), err)
		}
		at := time.Now()
		if err := putNames(ctx, st, form, from, to, copies); err != nil {
			return err
		}
		fmt.Fprintln(out, at.UnixNano())
	}
	return s.Close(ctx)
}

// live writes the lease and the record of the host.
func live(ctx context.Context, st store.Store, s store.SessionID) error {
	public := netip.MustParseAddr("192.168.77.200")
	l := subnet.Lease{
		Subnets: []netip.Prefix{fakeSubnet()}, PublicIPs: []netip.Addr{public}, Type: "vxlan", Node: fakeHost, Identity: fakeIdentity,
		Data: subnet.BackendData{V4: json.RawMessage(`{"VNI":1,"VtepMAC":"4a:00:00:00:00:01"}`)},
	}
	value, err := subnet.MarshalLease(l)
	if err != nil {
		return err
	}
	host, err := json.Marshal(subnet.Host{
		Name: fakeHost, Identity: fakeIdentity, Instance: "bench", PublicIPs: l.PublicIPs, Version: "bench", Drivers: []string{"vxlan"},
	})
	if err != nil {
		return err
	}
	_, err = st.Commit(ctx, store.Txn{Put: []store.Put{
		{Key: subnet.Key(etcdPrefix, l.Subnets), Value: value},
		{Key: subnet.HostKey(etcdPrefix, fakeHost), Value: host, Session: s},
	}})
	return err
}

// label is the first part of the n-th name.
func label(n int) string { return fmt.Sprintf("n%06d", n) }

// address is the c-th address of the n-th name.
func address(n, c int) netip.Addr {
	a := fakeSubnet().Addr().As4()
	at := n*4 + c + 1
	a[1] |= byte(at >> 16)
	a[2], a[3] = byte(at>>8), byte(at)
	return netip.AddrFrom4(a)
}

// putNames writes names in the form of one server.
func putNames(ctx context.Context, st store.Store, form string, from, to, copies int) error {
	var t store.Txn
	for n := from; n < to; n++ {
		for c := range copies {
			p, err := record(form, n, c)
			if err != nil {
				return err
			}
			t.Put = append(t.Put, p)
		}
		if len(t.Put) < 100 && n < to-1 {
			continue
		}
		if _, err := st.Commit(ctx, t); err != nil {
			return err
		}
		t.Put = nil
	}
	return nil
}

// record is the c-th address of the n-th name as a key of etcd.
func record(form string, n, c int) (store.Put, error) {
	a := address(n, c)
	if form == "coredns" { // SkyDNS's form
		return store.Put{Key: fmt.Sprintf("/skydns/local/cluster/default/%s/a%d", label(n), c), Value: fmt.Appendf(nil, `{"host":"%s"}`, a)}, nil
	}
	id := fmt.Sprintf("%x", sha256.Sum256(a.AsSlice()))
	e := endpoint.Endpoint{
		Tenant: endpoint.DefaultTenant, Network: endpoint.DefaultNetwork, ID: fakeHost + "," + id + ",eth0",
		Host: fakeHost, Identity: fakeIdentity, Container: id, IfName: "eth0",
		Addresses: []netip.Addr{a}, MAC: "0a:00:" + net.HardwareAddr(a.AsSlice()).String(), Names: []string{label(n)},
	}
	value, err := json.Marshal(e)
	return store.Put{Key: e.Key(etcdPrefix), Value: value}, err
}

// upstream is the name server of all outside names: each has one address,
// for an hour.
func upstream(ctx context.Context) error {
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(switchAddr(), 53)))
	if err != nil {
		return err
	}
	if err := conn.SetReadBuffer(8 << 20); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	in, out := make([]byte, 4096), make([]byte, 0, 4096)
	answer := netip.MustParseAddr("192.0.2.1")
	for {
		n, from, err := conn.ReadFromUDPAddrPort(in)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		_, qtype, end, err := dnswire.Question(in[:n])
		if err != nil {
			continue
		}
		var addrs []netip.Addr
		if qtype == dnswire.A {
			addrs = append(addrs, answer)
		}
		out = dnswire.AppendAnswer(out[:0], in[:n], end, dnswire.NoError, 3600, addrs...)
		if _, err := conn.WriteToUDPAddrPort(out, from); err != nil {
			return err
		}
	}
}
