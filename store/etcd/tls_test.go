package etcd

import (
	"os"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/store/storetest"
)

func TestTLS(t *testing.T) {
	ca, cert, key := storetest.Certs(t)
	strangerCA, strangerCert, strangerKey := storetest.Certs(t)
	server, _ := storetest.Etcd(t, "--cert-file", cert, "--key-file", key)
	mutual, _ := storetest.Etcd(t, "--cert-file", cert, "--key-file", key, "--client-cert-auth", "--trusted-ca-file", ca)
	bare := func(e string) string { return strings.TrimPrefix(e, "https://") }
	for name, c := range map[string]struct {
		o    Options
		want []string // nil: it works
	}{
		"authority alone":              {Options{Endpoints: []string{server}, CAFile: ca}, nil},
		"authority alone, no scheme":   {Options{Endpoints: []string{bare(server)}, CAFile: ca}, nil},
		"all":                          {Options{Endpoints: []string{mutual}, CAFile: ca, CertFile: cert, KeyFile: key}, nil},
		"all, no scheme":               {Options{Endpoints: []string{bare(mutual)}, CAFile: ca, CertFile: cert, KeyFile: key}, nil},
		"all, though not asked for":    {Options{Endpoints: []string{server}, CAFile: ca, CertFile: cert, KeyFile: key}, nil},
		"no authority":                 {Options{Endpoints: []string{server}}, []string{"unknown authority", "--etcd-cafile"}},
		"certificate, no authority":    {Options{Endpoints: []string{mutual}, CertFile: cert, KeyFile: key}, []string{"--etcd-cafile"}},
		"a stranger's authority":       {Options{Endpoints: []string{server}, CAFile: strangerCA}, []string{"--etcd-cafile"}},
		"no certificate":               {Options{Endpoints: []string{mutual}, CAFile: ca}, []string{"--etcd-certfile"}},
		"a stranger's certificate":     {Options{Endpoints: []string{mutual}, CAFile: ca, CertFile: strangerCert, KeyFile: strangerKey}, []string{"--etcd-certfile"}},
		"plain to TLS":                 {Options{Endpoints: []string{"http://" + bare(server)}, CAFile: ca}, []string{"https://"}},
		"authority file missing":       {Options{Endpoints: []string{server}, CAFile: "/nowhere/ca"}, []string{"--etcd-cafile", "/nowhere/ca"}},
		"authority file without one":   {Options{Endpoints: []string{server}, CAFile: key}, []string{"--etcd-cafile", "PEM"}},
		"certificate file missing":     {Options{Endpoints: []string{server}, CertFile: "/nowhere/cert", KeyFile: key}, []string{"--etcd-certfile", "/nowhere/cert"}},
		"a key of another certificate": {Options{Endpoints: []string{server}, CertFile: cert, KeyFile: strangerKey}, []string{"--etcd-keyfile"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := open(t, c.o).Get(t.Context(), "/key")
			if c.want == nil {
				if err != nil {
					t.Error(err)
				}
				return
			}
			expect(t, err, c.want...)
			t.Log(err)
		})
	}
}

// Certificates are renewed on disk while the daemon runs.
func TestCertificatesAreReadAgain(t *testing.T) {
	ca, cert, key := storetest.Certs(t)
	endpoint, _ := storetest.Etcd(t, "--cert-file", cert, "--key-file", key)
	missing := t.TempDir() + "/ca.pem"
	s := open(t, Options{Endpoints: []string{endpoint}, CAFile: missing})
	if _, err := s.Get(t.Context(), "/key"); err == nil {
		t.Fatal("without an authority")
	}
	pem, err := os.ReadFile(ca)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(missing, pem, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), "/key"); err != nil {
		t.Error(err)
	}
}
