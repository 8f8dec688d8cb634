package etcd

import (
	"strings"
	"testing"
)

func TestOptionsNameTheFlag(t *testing.T) {
	for name, c := range map[string]struct {
		o    Options
		want string // "": no error
	}{
		"ordinary":          {Options{Endpoints: []string{"http://10.0.0.1:2379", "https://a.example:2379/", "b.example", "[fd00::1]:2379", "unix:/run/etcd"}}, ""},
		"authority alone":   {Options{Endpoints: []string{"https://a:2379"}, CAFile: "ca"}, ""},
		"no endpoint":       {Options{}, "--etcd-endpoints"},
		"empty endpoint":    {Options{Endpoints: []string{""}}, "no host"},
		"wrong scheme":      {Options{Endpoints: []string{"ftp://a"}}, `"ftp"`},
		"path":              {Options{Endpoints: []string{"http://a:2379/v2"}}, "nothing may follow"},
		"password in URL":   {Options{Endpoints: []string{"http://root:hunter2@a:2379"}}, "--etcd-password"},
		"certificate alone": {Options{Endpoints: []string{"https://a"}, CertFile: "c"}, "--etcd-keyfile"},
		"user alone":        {Options{Endpoints: []string{"https://a"}, Username: "u"}, "--etcd-password"},
		"password alone":    {Options{Endpoints: []string{"https://a"}, Password: "hunter2"}, "--etcd-username"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := New(c.o)
			switch {
			case err == nil:
				if c.want != "" {
					t.Fatalf("accepted, want an error with %q", c.want)
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			case c.want == "" || !strings.Contains(err.Error(), c.want):
				t.Errorf("got %v, want %q", err, c.want)
			case strings.Contains(err.Error(), "hunter2"):
				t.Errorf("a secret in %v", err)
			}
		})
	}
}

func TestEndpointsGetTheDefaultPort(t *testing.T) {
	for in, want := range map[string]string{
		"http://a:4001":     "http://a:4001",
		"http://a/":         "http://a:2379",
		"https://[fd00::1]": "https://[fd00::1]:2379",
		"a":                 "a:2379",
		"127.0.0.1:2379":    "127.0.0.1:2379",
		"unix:///run/etcd":  "unix:///run/etcd",
	} {
		if got := normal(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

func FuzzEndpoint(f *testing.F) {
	for _, s := range []string{"http://a:1", "a", "unix:x", "https://[::1]:2379/", "://", "http://[", "a:b:c", "%zz"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, e string) {
		if s, err := New(Options{Endpoints: []string{e}}); err == nil {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}
