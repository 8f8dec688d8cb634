package subnet

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/flanneld/flanneld/store"
	"github.com/flanneld/flanneld/store/etcd"
	"github.com/flanneld/flanneld/store/storetest"
)

// TestTwoDozenDaemonsOnEtcd is the race for leases on the real store, and the
// second one when its data is lost.
func TestTwoDozenDaemonsOnEtcd(t *testing.T) {
	endpoint, server := storetest.Etcd(t)
	open := func() *etcd.Store {
		st, err := etcd.New(etcd.Options{Endpoints: []string{endpoint}})
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	admin := open()
	defer admin.Close()
	configure := func() error {
		_, err := admin.Commit(t.Context(), store.Txn{Put: []store.Put{{Key: ConfigKey(testPrefix), Value: []byte(`{"Network":"10.5.0.0/19"}`)}}})
		return err
	}
	await(t, "the configuration", configure)
	const n = 24
	ctx, stop := context.WithCancel(t.Context())
	var daemons, holding sync.WaitGroup
	defer daemons.Wait()
	defer stop()
	holding.Add(n)
	began := time.Now()
	for i := range n {
		daemons.Go(func() {
			st := open()
			defer st.Close()
			var watch sync.WaitGroup
			defer watch.Wait()
			views, self := make(chan View, 1), make(chan Self, 1)
			watch.Go(func() {
				for v, err := range Watch(ctx, st, testPrefix, nil) {
					if err == nil {
						latest(views, v)
					}
				}
			})
			name := fmt.Sprintf("host%d", i)
			self <- Self{Host: Host{Name: name, Identity: "id-of-" + name, Instance: name, PublicIPs: addrs(fmt.Sprintf("192.168.7.%d", i+1))}, Type: "vxlan"}
			k := &Keeper{Store: st, Prefix: testPrefix}
			if err := k.Run(ctx, self, views, func(Lease) { holding.Done() }); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	holding.Wait() // a second call of held by anybody would panic
	t.Logf("%d daemons hold a lease after %v", n, time.Since(began).Round(time.Millisecond))
	before := fmt.Sprint(everyLease(t, admin, n))

	server.Wipe()
	await(t, "the configuration after the wipe", configure)
	if after := fmt.Sprint(everyLease(t, admin, n)); after != before {
		t.Errorf("after the wipe %s, before %s", after, before)
	}
	stop()
	daemons.Wait()
	if s, err := admin.List(t.Context(), HostsPrefix(testPrefix)); err != nil || len(s.KVs) != 0 {
		t.Errorf("%d host records after a clean end, %v", len(s.KVs), err)
	}
}

// everyLease waits until there are n leases and n hosts and returns the
// leases' values.
func everyLease(t *testing.T, st store.Store, n int) []string {
	t.Helper()
	var values []string
	await(t, "leases and hosts", func() error {
		leases, err := st.List(t.Context(), SubnetsPrefix(testPrefix))
		if err != nil {
			return err
		}
		hosts, err := st.List(t.Context(), HostsPrefix(testPrefix))
		if err != nil {
			return err
		}
		if len(leases.KVs) != n || len(hosts.KVs) != n {
			return fmt.Errorf("%d leases, %d hosts, want %d", len(leases.KVs), len(hosts.KVs), n)
		}
		if a, b, found := overlapIn(leases); found {
			t.Fatalf("%s and %s overlap", a, b)
		}
		values = nil
		for _, kv := range leases.KVs {
			values = append(values, kv.Key+" "+string(kv.Value))
		}
		return nil
	})
	return values
}

func await(t *testing.T, what string, done func() error) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := done()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited for %s: %v", what, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
