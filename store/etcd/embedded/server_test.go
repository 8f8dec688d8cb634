package embedded

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/store/etcd"
	"github.com/flanneld/flanneld/store/storetest"
)

var anyPort = netip.MustParseAddrPort("127.0.0.1:0")

func serve(t *testing.T, o Options) *Server {
	t.Helper()
	if !o.Listen.IsValid() {
		o.Listen = anyPort
	}
	s, err := Serve(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

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
		dir := filepath.Join(t.TempDir(), "data")
		s := serve(t, Options{Dir: dir})
		proxy := storetest.NewProxy(t, s.Addr().String(), 0)
		start := func() { s = serve(t, Options{Dir: dir, Listen: s.Addr()}) }
		stop := func() { s.Close() }
		replace := func(from string) {
			stop()
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			if from != "" {
				if err := os.CopyFS(dir, os.DirFS(from)); err != nil {
					t.Fatal(err)
				}
			}
			start()
		}
		other := open(t, s.Client())
		return storetest.Subject{
			Store: open(t, etcd.Options{Endpoints: []string{proxy.Addr}}),
			Other: other,
			Stop:  stop,
			Start: start,
			Wipe:  func() { replace("") },
			Save: func() func() {
				stop()
				saved := filepath.Join(t.TempDir(), "saved")
				if err := os.CopyFS(saved, os.DirFS(dir)); err != nil {
					t.Fatal(err)
				}
				start()
				return func() { replace(saved) }
			},
			Compact: func(revision int64) {
				s.guard.compact(t.Context(), s.etcd.Server)
			},
			Cut: proxy.Cut,
		}
	})
}

var _ = strings.Contains
