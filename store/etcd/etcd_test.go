package etcd_test

import (
	"strings"
	"testing"

	"github.com/flanneld/flanneld/store/etcd"
	"github.com/flanneld/flanneld/store/storetest"
)

func open(t *testing.T, o etcd.Options) *etcd.Store {
	t.Helper()
	s, err := etcd.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestContract(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Subject {
		endpoint, ctl := storetest.Etcd(t)
		proxy := storetest.NewProxy(t, strings.TrimPrefix(endpoint, "http://"), 0)
		return storetest.Subject{
			Store: open(t, etcd.Options{Endpoints: []string{proxy.Addr}}),
			Other: open(t, etcd.Options{Endpoints: []string{endpoint}}),
			Stop:  ctl.Stop,
			Start: ctl.Start,
			Wipe:  ctl.Wipe,
			Save: func() func() {
				dir := ctl.Snapshot()
				return func() { ctl.Restore(dir) }
			},
			Compact: ctl.Compact,
			Cut:     proxy.Cut,
		}
	})
}
