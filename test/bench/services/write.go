package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/flanneld/flanneld/store"
	"github.com/flanneld/flanneld/store/etcd"
	"github.com/flanneld/flanneld/subnet"
)

const (
	etcdURL    = "http://192.168.77.1:2379"
	etcdPrefix = "/coreos.com/network"
)

// write keeps the far hosts alive and writes as it is told, until in ends. It
// answers each line with the time just before, in nanoseconds since 1970:
//
//	fill SERVICES
//	move SERVICES SERVICE COUNT
//
// The latter gives the first endpoint of a service the address moved(COUNT).
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
	for lines := bufio.NewScanner(in); lines.Scan(); {
		var what string
		var n, i, to int
		if _, err := fmt.Sscan(lines.Text(), &what, &n, &i, &to); err != nil {
			return fmt.Errorf("%q: %w", lines.Text(), err)
		}
		at := time.Now()
		if what == "fill" {
			err = fill(ctx, st, s.ID(), n)
		} else {
			e := endpointAt(n, i, 0)
			e.Addresses = []netip.Addr{moved(to)}
			var put store.Put
			if put, err = record(e, e.Key(etcdPrefix)); err == nil {
				_, err = st.Commit(ctx, store.Txn{Put: []store.Put{put}})
			}
		}
		if err != nil {
			return err
		}
		fmt.Fprintln(out, at.UnixNano())
	}
	return s.Close(ctx)
}

func record(v any, key string) (store.Put, error) {
	value, err := json.Marshal(v)
	return store.Put{Key: key, Value: value}, err
}

// fill writes hosts, services and endpoints.
func fill(ctx context.Context, st store.Store, s store.SessionID, n int) error {
	var t store.Txn
	put := func(p store.Put, err error) error {
		if t.Put = append(t.Put, p); err != nil || len(t.Put) < 100 {
			return err
		}
		_, err = st.Commit(ctx, t)
		t.Put = nil
		return err
	}
	for h := range (n*copies + perHost - 1) / perHost {
		lease, host, err := far(h, s)
		if err != nil {
			return err
		}
		if err := put(lease, nil); err != nil {
			return err
		}
		if err := put(host, nil); err != nil {
			return err
		}
	}
	for i := range n {
		v := serviceAt(i)
		if err := put(record(v, v.Key(etcdPrefix))); err != nil {
			return err
		}
		for c := range copies {
			e := endpointAt(n, i, c)
			if err := put(record(e, e.Key(etcdPrefix))); err != nil {
				return err
			}
		}
	}
	_, err := st.Commit(ctx, t)
	return err
}

// far is the lease and the record of a host that exists only there.
func far(h int, s store.SessionID) (lease, host store.Put, err error) {
	public := []netip.Addr{netip.AddrFrom4([4]byte{172, 30, byte(h >> 8), byte(h)})}
	id := fmt.Sprintf(identity, h)
	l := subnet.Lease{
		Subnets: []netip.Prefix{hostSubnet(h)}, PublicIPs: public, Type: "vxlan", Node: hostName(h), Identity: id,
		Data: subnet.BackendData{V4: fmt.Appendf(nil, `{"VNI":1,"VtepMAC":"4a:00:00:00:%02x:%02x"}`, h>>8, h&255)},
	}
	lease.Key = subnet.Key(etcdPrefix, l.Subnets)
	if lease.Value, err = subnet.MarshalLease(l); err != nil {
		return lease, host, err
	}
	host, err = record(subnet.Host{Name: hostName(h), Identity: id, Instance: "bench", PublicIPs: public, Version: "bench", Drivers: []string{"vxlan"}},
		subnet.HostKey(etcdPrefix, hostName(h)))
	host.Session = s
	return lease, host, err
}
