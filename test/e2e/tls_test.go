package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/lab"
)

// pki is a certificate authority with a certificate for every host.
type pki struct{ ca, cert, key, otherCA string }

func newPKI(t *testing.T, addrs []net.IP) pki {
	t.Helper()
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	sign := func(c, parent *x509.Certificate, k, by *ecdsa.PrivateKey) []byte {
		c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, c, parent, k.Public(), by)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	ca := func(name string) (*x509.Certificate, *ecdsa.PrivateKey, string) {
		k := key()
		c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
		return c, k, write(name+".pem", "CERTIFICATE", sign(c, c, k, k))
	}
	c, caKey, caFile := ca("ca")
	_, _, other := ca("other")
	k := key()
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "host"}, IPAddresses: addrs,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	keyDER, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pki{ca: caFile, otherCA: other, cert: write("host.pem", "CERTIFICATE", sign(leaf, c, k, caKey)), key: write("host.key", "EC PRIVATE KEY", keyDER)}
}

// Debian's etcd that asks for client certificates, and for a password.
func TestEtcdOverTLSWithPassword(t *testing.T) {
	t.Parallel()
	c := newLab(t, 2)
	addr := lab.SwitchAddrs()[0].Addr()
	p := newPKI(t, []net.IP{addr.AsSlice()})
	url := "https://" + addr.String() + ":2379"
	server := c.lab.Switch().Command(t.Context(), "etcd", "--data-dir", etcdDir, "--log-level", "error",
		"--listen-client-urls", url, "--advertise-client-urls", url, "--listen-peer-urls", "http://127.0.0.1:2380",
		"--cert-file", p.cert, "--key-file", p.key, "--trusted-ca-file", p.ca, "--client-cert-auth",
		"--heartbeat-interval", "20", "--election-timeout", "200")
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	ctl := func(args ...string) error {
		args = append([]string{"--endpoints", url, "--cacert", p.ca, "--cert", p.cert, "--key", p.key, "--command-timeout", "1s"}, args...)
		return c.lab.Switch().Command(t.Context(), "etcdctl", args...).Run()
	}
	within(t, 15*time.Second, "etcd is up", func() error { return ctl("put", prefix+"/config", ipv4) })
	for _, args := range [][]string{
		{"user", "add", "root:secret"}, {"user", "grant-role", "root", "root"},
		{"user", "add", "flanneld:pass-word"}, {"role", "add", "net"},
		{"role", "grant-permission", "net", "--prefix=true", "readwrite", prefix + "/"}, {"user", "grant-role", "flanneld", "net"},
		{"auth", "enable"},
	} {
		if err := ctl(args...); err != nil {
			t.Fatalf("etcdctl %v: %v", args, err)
		}
	}
	flags := func(ca, password string) []string {
		return []string{"--etcd-endpoints", url, "--iface", lab.Interface, "--etcd-cafile", ca, "--etcd-certfile", p.cert, "--etcd-keyfile", p.key,
			"--etcd-username", "flanneld", "--etcd-password", password}
	}
	for _, h := range c.lab.Hosts() {
		if _, err := h.StartDaemon(t.Context(), flags(p.ca, "pass-word")...); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range c.lab.Hosts() {
		c.waitOK(h, 1)
	}
	h := c.host(1)
	for what, f := range map[string][]string{"wrong authority": flags(p.otherCA, "pass-word"), "wrong password": flags(p.ca, "wrong-word")} {
		d, err := h.Daemon()
		if err == nil {
			_ = d.Kill(t.Context())
		}
		if _, err := h.StartDaemon(t.Context(), f...); err != nil {
			t.Fatal(err)
		}
		within(t, 15*time.Second, "status tells of a "+what, func() error {
			s, err := c.status(h)
			if err == nil && s.Etcd.Connected {
				t.Errorf("connected with a %s", what)
			}
			return err
		})
	}
	for _, h := range c.lab.Hosts() {
		if b, err := os.ReadFile(h.LogFile()); err != nil || strings.Contains(string(b), "-word") {
			t.Errorf("the password is in the log of %s (%v)", h.Name, err)
		}
	}
}

// The embedded server with the same files, as an admin would give them.
func TestEmbeddedEtcdOverTLS(t *testing.T) {
	t.Parallel()
	c := newLab(t, 2)
	h1, h2 := c.host(1), c.host(2)
	p := newPKI(t, []net.IP{h1.Addr().AsSlice(), net.IPv4(127, 0, 0, 1)})
	files := []string{"--etcd-cafile", p.ca, "--etcd-certfile", p.cert, "--etcd-keyfile", p.key, "--iface", lab.Interface}
	start := func(h *lab.Host, flags ...string) {
		t.Helper()
		if _, err := h.StartDaemon(t.Context(), append(flags, files...)...); err != nil {
			t.Fatal(err)
		}
	}
	start(h1, "--embed-etcd", "--embed-etcd-listen", h1.Addr().String(), "--network", "10.1.0.0/16")
	start(h2, "--etcd-endpoints", "https://"+h1.Addr().String()+":2379")
	c.waitOK(h1, 1)
	c.waitOK(h2, 1)
	a, b := c.attach(h1, "a"), c.attach(h2, "b")
	c.reach(a, b.Addrs[0].Addr())
	// Nobody without a certificate.
	out, err := h2.Command(t.Context(), "etcdctl", "--endpoints", "https://"+h1.Addr().String()+":2379", "--cacert", p.ca, "--command-timeout", "2s", "get", prefix+"/config").CombinedOutput()
	if err == nil {
		t.Errorf("etcd answers a client without certificate: %s", out)
	}
}
