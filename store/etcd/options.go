// Package etcd is the store in an etcd cluster, version 3.4 or newer.
package etcd

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"
)

// Options say how to reach etcd.
type Options struct {
	// Endpoints are URLs (http, https, unix, unixs) or host:port. Any one
	// that answers will do; the others are for when it does not.
	Endpoints []string
	// CAFile holds the certificates that the servers' are checked against;
	// "": the system's. CertFile and KeyFile are this client's own, both or
	// none. All are read again for each new connection.
	CAFile, CertFile, KeyFile string
	// Username and Password, both or none.
	Username, Password string
	// DialTimeout is how long an endpoint may take to accept a connection;
	// 0: 3 s.
	DialTimeout time.Duration
	Log         *slog.Logger // nil: quiet
}

// check returns every mistake that shows without asking anybody. No text in
// it holds a secret.
func (o Options) check() error {
	var errs []error
	if len(o.Endpoints) == 0 {
		errs = append(errs, errors.New("no etcd endpoint: set --etcd-endpoints"))
	}
	for i, e := range o.Endpoints {
		if err := checkEndpoint(e); err != nil {
			errs = append(errs, fmt.Errorf("etcd endpoint %d: %w: correct --etcd-endpoints", i+1, err))
		}
	}
	if (o.CertFile == "") != (o.KeyFile == "") {
		errs = append(errs, errors.New("a client certificate needs its key: set both --etcd-certfile and --etcd-keyfile, or neither"))
	}
	if (o.Username == "") != (o.Password == "") {
		errs = append(errs, errors.New("an etcd user needs a password: set both --etcd-username and --etcd-password, or neither"))
	}
	return errors.Join(errs...)
}

// checkEndpoint does not repeat e in its errors when it may hold a password.
func checkEndpoint(e string) error {
	if strings.Contains(e, "@") {
		return errors.New("user and password do not belong in the URL: use --etcd-username and --etcd-password")
	}
	if !strings.Contains(e, "://") {
		if strings.HasPrefix(e, "unix:") || strings.HasPrefix(e, "unixs:") {
			return nil
		}
		e = "http://" + e
	}
	u, err := url.Parse(e)
	if err != nil {
		return err
	}
	switch u.Scheme {
	case "unix", "unixs":
		return nil
	case "http", "https":
	default:
		return fmt.Errorf("%s: scheme %q is none of http, https, unix", e, u.Scheme)
	}
	if u.Hostname() == "" {
		return fmt.Errorf("%q has no host", e)
	}
	if u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("%s: nothing may follow host and port", e)
	}
	return nil
}

// normal adds the port that etcd has by default and drops a trailing slash.
func normal(e string) string {
	if strings.HasPrefix(e, "unix") {
		return e
	}
	scheme, host, ok := strings.Cut(e, "://")
	if !ok {
		scheme, host = "", e
	} else {
		scheme += "://"
	}
	host = strings.TrimSuffix(host, "/")
	if u, err := url.Parse("http://" + host); err == nil && u.Port() == "" {
		host = strings.TrimSuffix(host, ":") + ":2379"
	}
	return scheme + host
}

// wantsTLS reports whether the options ask for TLS where the endpoint's
// scheme leaves it open.
func (o Options) wantsTLS() bool { return o.CAFile != "" || o.CertFile != "" }

// isTLS reports whether a connection to this endpoint is encrypted.
func (o Options) isTLS(endpoint string) bool {
	switch {
	case strings.HasPrefix(endpoint, "https:"), strings.HasPrefix(endpoint, "unixs:"):
		return true
	case strings.HasPrefix(endpoint, "http:"), strings.HasPrefix(endpoint, "unix:"):
		return false
	}
	return o.wantsTLS()
}

// tlsConfig reads the files.
func (o Options) tlsConfig() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read --etcd-cafile: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("--etcd-cafile %s holds no certificate in PEM format", o.CAFile)
		}
	}
	if o.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("read --etcd-certfile %s and --etcd-keyfile %s: %w", o.CertFile, o.KeyFile, err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// loopback reports whether the endpoint can only be this machine.
func loopback(endpoint string) bool {
	_, host, ok := strings.Cut(endpoint, "://")
	if !ok {
		host = endpoint
	}
	u, err := url.Parse("http://" + host)
	if err != nil {
		return false
	}
	a, err := netip.ParseAddr(u.Hostname())
	return u.Hostname() == "localhost" || err == nil && a.IsLoopback()
}
