package config

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestNamesAreAnsweredUnlessToldOtherwise(t *testing.T) {
	d := mustParse(t, nil).DNS
	if d.Off || d.Domain != "cluster.local" || d.TTL != 5*time.Second || len(d.Upstreams) != 0 || d.PreferLocal {
		t.Errorf("%+v", d)
	}
	if !mustParse(t, map[string]string{"FLANNELD_NO_DNS": "true"}).DNS.Off {
		t.Error("FLANNELD_NO_DNS is not heard")
	}
}

func TestDNSFlagsAreTakenAsPeopleWriteThem(t *testing.T) {
	d := mustParse(t, nil, "--dns-domain", "Pods.Example.ORG.", "--dns-ttl", "30", "--dns-prefer-local",
		"--dns-upstream", "192.0.2.1, 192.0.2.2:5353,2001:db8::1,[2001:db8::2]:53,[2001:db8::3],127.0.0.53,fe80::1%eth0").DNS
	if d.Domain != "pods.example.org" || d.TTL != 30*time.Second || !d.PreferLocal {
		t.Errorf("%+v", d)
	}
	want := "[192.0.2.1:53 192.0.2.2:5353 [2001:db8::1]:53 [2001:db8::2]:53 [2001:db8::3]:53 127.0.0.53:53 [fe80::1%eth0]:53]"
	if got := fmt.Sprint(d.Upstreams); got != want {
		t.Errorf("upstreams %s, want %s", got, want)
	}
	for _, ttl := range []string{"0", "0s", "1h", "3600", "90s", "1m30s"} {
		mustParse(t, nil, "--dns-ttl", ttl)
	}
	mustParse(t, nil, "--dns-domain", "internal")
	mustParse(t, nil, "--dns-domain", "xn--bcher-kva.example")
}

func TestWrongDNSFlagsNameValueAndRemedy(t *testing.T) {
	long := strings.Repeat("a23456789.", 10) + "b"
	for name, tc := range map[string]struct {
		flag, value string
		says        []string
	}{
		"empty domain":          {"dns-domain", "", []string{"--dns-domain", "cluster.local"}},
		"the root":              {"dns-domain", ".", []string{`"."`, "cluster.local"}},
		"two dots":              {"dns-domain", "cluster..local", []string{"cluster..local"}},
		"two dots at the end":   {"dns-domain", "cluster.local..", []string{"not a DNS name"}},
		"underscore":            {"dns-domain", "my_cluster.local", []string{"my_cluster.local", "dashes"}},
		"leading dash":          {"dns-domain", "-a.local", []string{"-a.local"}},
		"umlaut":                {"dns-domain", "bücher.example", []string{"letters"}},
		"address":               {"dns-domain", "10.1.0.0", []string{"address", "cluster.local"}},
		"reverse names":         {"dns-domain", "in-addr.arpa", []string{"arpa"}},
		"too long":              {"dns-domain", long, []string{"100"}},
		"label too long":        {"dns-domain", strings.Repeat("a", 64) + ".local", []string{"not a DNS name"}},
		"ttl without sense":     {"dns-ttl", "soon", []string{"--dns-ttl", `"soon"`, "5s"}},
		"negative ttl":          {"dns-ttl", "-1s", []string{"-1s", "0s"}},
		"ttl of a day":          {"dns-ttl", "24h", []string{"24h", "1h"}},
		"half a second":         {"dns-ttl", "500ms", []string{"500ms", "whole seconds"}},
		"upstream name":         {"dns-upstream", "dns.example", []string{"--dns-upstream", "dns.example", "192.0.2.1"}},
		"upstream url":          {"dns-upstream", "udp://192.0.2.1", []string{"udp://192.0.2.1"}},
		"upstream port":         {"dns-upstream", "192.0.2.1:70000", []string{"70000"}},
		"upstream port 0":       {"dns-upstream", "192.0.2.1:0", []string{"port 0", "53"}},
		"upstream unspecified":  {"dns-upstream", "0.0.0.0", []string{"0.0.0.0", "/etc/resolv.conf"}},
		"upstream unspecified6": {"dns-upstream", "[::]:53", []string{"[::]:53"}},
		"upstream multicast":    {"dns-upstream", "224.0.0.251", []string{"224.0.0.251"}},
		"one of several":        {"dns-upstream", "192.0.2.1,nonsense", []string{"nonsense"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse([]string{"-node-name", "h", "--" + tc.flag + "=" + tc.value}, env(nil), nil)
			if !errors.As(err, new(*UsageError)) {
				t.Fatalf("got %v", err)
			}
			for _, w := range tc.says {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not say %q", err, w)
				}
			}
		})
	}
}

func FuzzDNSFlags(f *testing.F) {
	f.Add("cluster.local", "192.0.2.1,[::1]:53", "5s")
	f.Fuzz(func(t *testing.T, domain, upstream, ttl string) {
		c, err := Parse([]string{"--node-name=h", "--dns-domain=" + domain, "--dns-upstream=" + upstream, "--dns-ttl=" + ttl}, env(nil), nil)
		if err != nil {
			return
		}
		if d := c.DNS; domainProblem(d.Domain) != "" || d.TTL < 0 || d.TTL > longestTTL {
			t.Errorf("%+v", d)
		}
		for _, u := range c.DNS.Upstreams {
			if !u.IsValid() || u.Port() == 0 {
				t.Errorf("upstream %v", u)
			}
		}
	})
}
