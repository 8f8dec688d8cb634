package zone

import (
	"strings"
	"testing"

	"github.com/flanneld/flanneld/endpoint"
)

const (
	none = "nothing cluster.local."
	nx   = "NXDOMAIN cluster.local."
)

// questions are "<name> <type>" by their answers, of the example.
func questions() map[string]string {
	return map[string]string{
		// Containers.
		"web.default.cluster.local A":               "10.1.19.3 10.1.20.3 192.0.2.7",
		"web.default.cluster.local. A":              "10.1.19.3 10.1.20.3 192.0.2.7",
		"web.default.cluster.local AAAA":            "fd00:1:19::3",
		"web.default.cluster.local MX":              none,
		"web.default.cluster.local HTTPS":           none,
		"web.default.cluster.local SRV":             none,
		"web.default.cluster.local PTR":             none,
		"web.default.cluster.local SOA":             none,
		"web.default.cluster.local NS":              none,
		"web.default.cluster.local HINFO":           none,
		"web.default.cluster.local ANY":             `"RFC8482" ""`,
		"web-1.default.cluster.local A":             "10.1.19.3",
		"web-1.default.cluster.local AAAA":          "fd00:1:19::3",
		"000000000001.default.cluster.local A":      "10.1.19.3",
		"000000000007.default.cluster.local A":      "10.1.20.8",
		"00000000000100000.default.cluster.local A": nx,
		"abc.default.cluster.local A":               "10.1.20.13",
		"under_score.default.cluster.local AAAA":    "fd00:1:20::",
		"six.default.cluster.local A":               none,
		"two.default.cluster.local A":               "10.1.20.6 10.1.20.7",
		"bare.default.cluster.local A":              none,
		"odd.default.cluster.local A":               nx,
		`odd\.name.default.cluster.local A`:         nx,
		"web.cluster.local A":                       nx,
		"www.web.default.cluster.local A":           nx,
		"nope.default.cluster.local A":              nx,
		"nope.default.cluster.local ANY":            nx,
		`\003web.default.cluster.local A`:           nx,
		`w\.eb.default.cluster.local A`:             nx,
		"WEB.Default.CLUSTER.local A":               "10.1.19.3 10.1.20.3 192.0.2.7", // lower-cased before
		// Left out, but there.
		"sick.default.cluster.local A":         none,
		"sick.default.cluster.local AAAA":      none,
		"sick.default.cluster.local ANY":       none,
		"gone.default.cluster.local A":         none,
		"000000000004.default.cluster.local A": none,
		// Namespaces and networks.
		"db.prod.cluster.local A":           "10.1.20.5",
		"db.default.cluster.local A":        nx,
		"000000000005.prod.cluster.local A": "10.1.20.5",
		"a.back.cluster.local A":            "10.1.20.11",
		"default.cluster.local A":           none,
		"prod.cluster.local A":              none,
		"back.cluster.local NS":             none,
		"other.cluster.local A":             nx,
		"web.other.cluster.local A":         nx,
		"hidden.svc.cluster.local A":        nx,
		"000000000008.svc.cluster.local A":  nx,
		"000000000009.dns.cluster.local A":  "10.1.20.10",
		"secret.front.cluster.local A":      nx,
		"secret.front.blue.cluster.local A": nx,
		"blue.cluster.local A":              nx,
		"default.default.cluster.local A":   nx,
		// Added names.
		"printer.default.cluster.local A":         "10.1.200.1 192.0.2.9",
		"printer.default.cluster.local AAAA":      none,
		"a.b.c.default.cluster.local A":           "192.0.2.10",
		"a.b.c.default.cluster.local AAAA":        "2001:db8::1",
		"x.b.c.default.cluster.local A":           "192.0.2.11",
		"y.b.c.default.cluster.local A":           nx,
		"b.c.default.cluster.local A":             none,
		"c.default.cluster.local A":               none,
		"c.default.cluster.local ANY":             none,
		"b.default.cluster.local A":               nx,
		"z.a.b.c.default.cluster.local A":         nx,
		`a\.b.c.default.cluster.local A`:          nx,
		`\001a\001b\001c.default.cluster.local A`: nx,
		"only.here.extra.cluster.local A":         "192.0.2.12",
		"here.extra.cluster.local A":              none,
		"extra.cluster.local A":                   none,
		// The zone itself.
		"cluster.local SOA":               "ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5",
		"cluster.local NS":                "ns.dns.cluster.local. + ns.dns.cluster.local. A 10.0.0.10 10.1.19.1; ns.dns.cluster.local. AAAA fd00:1:19::1",
		"cluster.local A":                 none,
		"cluster.local ANY":               `"RFC8482" ""`,
		"ns.dns.cluster.local A":          "10.0.0.10 10.1.19.1",
		"ns.dns.cluster.local AAAA":       "fd00:1:19::1",
		"ns.dns.cluster.local TXT":        none,
		"dns.cluster.local A":             none,
		"x.ns.dns.cluster.local A":        nx,
		"y.dns.cluster.local A":           nx,
		"dns-version.cluster.local TXT":   `"1.1.0"`,
		"dns-version.cluster.local A":     none,
		"x.dns-version.cluster.local TXT": nx,
		"local SOA":                       "upstream",
		". NS":                            "upstream",
		"cluster.locale A":                "upstream",
		"mycluster.local A":               "upstream",
		"example.com A":                   "upstream",
		`web.default\.cluster.local A`:    "upstream",
		// Services.
		"frontend.default.svc.cluster.local A":    "10.0.0.80",
		"frontend.default.svc.cluster.local AAAA": "fd00:1:ffff::80",
		"frontend.default.svc.cluster.local SRV":  none,
		"frontend.default.svc.cluster.local ANY":  `"RFC8482" ""`,
		"headless.default.svc.cluster.local A":    "10.1.19.3 10.1.20.3",
		"headless.default.svc.cluster.local AAAA": "fd00:1:19::3",
		"narrow.default.svc.cluster.local A":      "10.1.19.3",
		"listed.default.svc.cluster.local A":      "10.1.20.6 172.20.0.1 192.0.2.1",
		"nobody.default.svc.cluster.local A":      none,
		"frontend.back.svc.cluster.local A":       none,
		"nope.default.svc.cluster.local A":        nx,
		"frontend.prod.svc.cluster.local A":       nx,
		"shop.front.svc.cluster.local A":          nx,
		"svc.cluster.local A":                     none,
		"default.svc.cluster.local A":             none,
		"prod.svc.cluster.local A":                nx,
		"x.frontend.default.svc.cluster.local A":  nx,
		// Their ports.
		"_http._tcp.frontend.default.svc.cluster.local SRV": "0 100 8888 frontend.default.svc.cluster.local. + " +
			"frontend.default.svc.cluster.local. A 10.0.0.80; frontend.default.svc.cluster.local. AAAA fd00:1:ffff::80",
		"_dns._udp.frontend.default.svc.cluster.local SRV": "0 100 53 frontend.default.svc.cluster.local. + " +
			"frontend.default.svc.cluster.local. A 10.0.0.80; frontend.default.svc.cluster.local. AAAA fd00:1:ffff::80",
		"_http._tcp.headless.default.svc.cluster.local SRV": "0 100 80 10-1-19-3.headless.default.svc.cluster.local. " +
			"0 100 80 10-1-20-3.headless.default.svc.cluster.local. 0 100 80 fd00-1-19--3.headless.default.svc.cluster.local. + " +
			"10-1-19-3.headless.default.svc.cluster.local. A 10.1.19.3; 10-1-20-3.headless.default.svc.cluster.local. A 10.1.20.3; " +
			"fd00-1-19--3.headless.default.svc.cluster.local. AAAA fd00:1:19::3",
		"_http._tcp.frontend.default.svc.cluster.local A":   none,
		"_http._tcp.frontend.default.svc.cluster.local ANY": `"RFC8482" ""`,
		"_http._udp.frontend.default.svc.cluster.local SRV": nx,
		"_nope._tcp.frontend.default.svc.cluster.local SRV": nx,
		"http._tcp.frontend.default.svc.cluster.local SRV":  nx,
		"_http.tcp.frontend.default.svc.cluster.local SRV":  nx,
		"_http._tcp.nobody.default.svc.cluster.local SRV":   none,
		"_tcp.frontend.default.svc.cluster.local SRV":       none,
		"_udp.frontend.default.svc.cluster.local A":         none,
		"_udp.headless.default.svc.cluster.local A":         nx,
		"_sctp.listed.default.svc.cluster.local A":          nx,
		"_http._tcp.nope.default.svc.cluster.local SRV":     nx,
		// Ports that the endpoints name.
		"_web._tcp.named.default.svc.cluster.local SRV": "0 100 8081 10-1-19-18.named.default.svc.cluster.local. 0 100 8081 fd00-1-19--18.named.default.svc.cluster.local. " +
			"0 100 8082 10-1-20-19.named.default.svc.cluster.local. + 10-1-19-18.named.default.svc.cluster.local. A 10.1.19.18; " +
			"10-1-20-19.named.default.svc.cluster.local. A 10.1.20.19; fd00-1-19--18.named.default.svc.cluster.local. AAAA fd00:1:19::18",
		"_odd._tcp.named.default.svc.cluster.local SRV": none,
		"_any._tcp.named.default.svc.cluster.local SRV": "0 100 82 10-1-19-18.named.default.svc.cluster.local. 0 100 82 10-1-20-19.named.default.svc.cluster.local. " +
			"0 100 82 10-1-20-20.named.default.svc.cluster.local. 0 100 82 192-0-2-3.named.default.svc.cluster.local. 0 100 82 fd00-1-19--18.named.default.svc.cluster.local. + " +
			"10-1-19-18.named.default.svc.cluster.local. A 10.1.19.18; 10-1-20-19.named.default.svc.cluster.local. A 10.1.20.19; " +
			"10-1-20-20.named.default.svc.cluster.local. A 10.1.20.20; 192-0-2-3.named.default.svc.cluster.local. A 192.0.2.3; " +
			"fd00-1-19--18.named.default.svc.cluster.local. AAAA fd00:1:19::18",
		"_web._tcp.virtual.default.svc.cluster.local SRV": "0 100 80 virtual.default.svc.cluster.local. + virtual.default.svc.cluster.local. A 10.0.0.81",
		"81.0.0.10.in-addr.arpa PTR":                      "virtual.default.svc.cluster.local.",
		// Health for each service, and for any.
		"named.default.svc.cluster.local A":              "10.1.19.18 10.1.20.19 10.1.20.20 192.0.2.3",
		"other.default.svc.cluster.local A":              "10.1.19.18 10.1.20.20 10.1.20.21",
		"virtual.default.svc.cluster.local A":            "10.0.0.81",
		"10-1-20-19.named.default.svc.cluster.local A":   "10.1.20.19",
		"10-1-20-19.other.default.svc.cluster.local A":   none,
		"10-1-20-21.named.default.svc.cluster.local A":   none,
		"10-1-20-21.other.default.svc.cluster.local A":   "10.1.20.21",
		"10-1-20-21.virtual.default.svc.cluster.local A": "10.1.20.21",
		"10-1-20-21.default.pod.cluster.local A":         none,
		"named-4.default.cluster.local A":                none,
		"21.20.1.10.in-addr.arpa PTR":                    "nothing 1.10.in-addr.arpa.",
		// Their endpoints.
		"10-1-19-3.headless.default.svc.cluster.local A":       "10.1.19.3",
		"10-1-19-3.headless.default.svc.cluster.local AAAA":    none,
		"fd00-1-19--3.headless.default.svc.cluster.local AAAA": "fd00:1:19::3",
		"10-1-20-4.headless.default.svc.cluster.local A":       none,
		"10-1-20-5.headless.default.svc.cluster.local A":       nx,
		"10-1-20-3.narrow.default.svc.cluster.local A":         nx,
		"10-1-19-3.frontend.default.svc.cluster.local A":       "10.1.19.3",
		"10-1-20-6.listed.default.svc.cluster.local A":         "10.1.20.6",
		"192-0-2-1.listed.default.svc.cluster.local A":         "192.0.2.1",
		"10-1-20-7.listed.default.svc.cluster.local A":         nx,
		"x.10-1-19-3.headless.default.svc.cluster.local A":     nx,
		// Pods.
		"10-1-19-3.default.pod.cluster.local A":              "10.1.19.3",
		"10-1-19-3.default.pod.cluster.local AAAA":           none,
		"fd00-1-19--3.default.pod.cluster.local AAAA":        "fd00:1:19::3",
		"fd00-1-19-0-0-0-0-3.default.pod.cluster.local AAAA": "fd00:1:19::3",
		"fd00-1-20--0.default.pod.cluster.local AAAA":        "fd00:1:20::",
		"fd00-1-20--.default.pod.cluster.local AAAA":         "fd00:1:20::",
		"10-1-20-7.default.pod.cluster.local A":              "10.1.20.7",
		"10-1-20-5.prod.pod.cluster.local A":                 "10.1.20.5",
		"10-1-20-5.default.pod.cluster.local A":              nx,
		"10-1-20-9.svc.pod.cluster.local A":                  "10.1.20.9",
		"10-1-20-4.default.pod.cluster.local A":              none,
		"10-1-99-9.default.pod.cluster.local A":              nx,
		"192-0-2-9.default.pod.cluster.local A":              nx,
		"010-1-19-3.default.pod.cluster.local A":             nx,
		"--ffff-a01-1303.default.pod.cluster.local AAAA":     nx,
		"x.10-1-19-3.default.pod.cluster.local A":            nx,
		"pod.cluster.local A":                                none,
		"default.pod.cluster.local A":                        none,
		"svc.pod.cluster.local A":                            none,
		"extra.pod.cluster.local A":                          nx,
		// Reverse.
		"3.19.1.10.in-addr.arpa PTR":                "web.default.cluster.local.",
		"3.19.1.10.in-addr.arpa A":                  "nothing 1.10.in-addr.arpa.",
		"3.19.1.10.in-addr.arpa ANY":                `"RFC8482" ""`,
		"3.20.1.10.in-addr.arpa PTR":                "web.default.cluster.local.",
		"5.20.1.10.in-addr.arpa PTR":                "db.prod.cluster.local.",
		"7.20.1.10.in-addr.arpa PTR":                "two.default.cluster.local.",
		"8.20.1.10.in-addr.arpa PTR":                "000000000007.default.cluster.local.",
		"9.20.1.10.in-addr.arpa PTR":                "10-1-20-9.svc.pod.cluster.local.",
		"10.20.1.10.in-addr.arpa PTR":               "000000000009.dns.cluster.local.",
		"14.20.1.10.in-addr.arpa PTR":               "10-1-20-14.default.pod.cluster.local.",
		"4.20.1.10.in-addr.arpa PTR":                "nothing 1.10.in-addr.arpa.",
		"3.21.1.10.in-addr.arpa PTR":                "nothing 1.10.in-addr.arpa.",
		"99.99.1.10.in-addr.arpa PTR":               "NXDOMAIN 1.10.in-addr.arpa.",
		"80.0.0.10.in-addr.arpa PTR":                "frontend.default.svc.cluster.local.",
		"10.0.0.10.in-addr.arpa PTR":                "ns.dns.cluster.local.",
		"1.19.1.10.in-addr.arpa PTR":                "ns.dns.cluster.local.",
		"1.200.1.10.in-addr.arpa PTR":               "printer.default.cluster.local.",
		"1.0.20.172.in-addr.arpa PTR":               "172-20-0-1.listed.default.svc.cluster.local.",
		"6.20.1.10.in-addr.arpa PTR":                "two.default.cluster.local.",
		"19.1.10.in-addr.arpa PTR":                  "nothing 1.10.in-addr.arpa.",
		"77.1.10.in-addr.arpa A":                    "nothing 1.10.in-addr.arpa.",
		"1.10.in-addr.arpa SOA":                     "ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5",
		"1.10.in-addr.arpa NS":                      "ns.dns.cluster.local. + ns.dns.cluster.local. A 10.0.0.10 10.1.19.1; ns.dns.cluster.local. AAAA fd00:1:19::1",
		"19.1.10.in-addr.arpa SOA":                  "nothing 1.10.in-addr.arpa.",
		"10.in-addr.arpa SOA":                       "upstream",
		"2.10.in-addr.arpa PTR":                     "upstream",
		"in-addr.arpa NS":                           "upstream",
		"arpa NS":                                   "upstream",
		"x.in-addr.arpa A":                          "upstream",
		"8.8.8.8.in-addr.arpa PTR":                  "upstream",
		"03.19.1.10.in-addr.arpa PTR":               "NXDOMAIN 1.10.in-addr.arpa.",
		"300.19.1.10.in-addr.arpa PTR":              "NXDOMAIN 1.10.in-addr.arpa.",
		"x.1.10.in-addr.arpa PTR":                   "NXDOMAIN 1.10.in-addr.arpa.",
		"3.x.1.10.in-addr.arpa PTR":                 "NXDOMAIN 1.10.in-addr.arpa.",
		"0.3.19.1.10.in-addr.arpa PTR":              "NXDOMAIN 1.10.in-addr.arpa.",
		"lb._dns-sd._udp.0.0.1.10.in-addr.arpa PTR": "NXDOMAIN 1.10.in-addr.arpa.",
		"16.172.in-addr.arpa SOA":                   "ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5",
		"31.172.in-addr.arpa NS":                    "ns.dns.cluster.local. + ns.dns.cluster.local. A 10.0.0.10 10.1.19.1; ns.dns.cluster.local. AAAA fd00:1:19::1",
		"5.16.172.in-addr.arpa A":                   "nothing 16.172.in-addr.arpa.",
		"1.2.30.172.in-addr.arpa PTR":               "NXDOMAIN 30.172.in-addr.arpa.",
		"32.172.in-addr.arpa SOA":                   "upstream",
		"172.in-addr.arpa SOA":                      "upstream",
		"9.7.168.192.in-addr.arpa PTR":              "edge.default.cluster.local.",
		"9.7.168.192.in-addr.arpa SOA":              "ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5",
		"8.7.168.192.in-addr.arpa PTR":              "nothing 8.7.168.192.in-addr.arpa.",
		"200.7.168.192.in-addr.arpa PTR":            "upstream",
		"7.168.192.in-addr.arpa PTR":                "upstream",
		"3.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.9.1.0.0.1.0.0.0.0.0.d.f.ip6.arpa PTR": "web.default.cluster.local.",
		"4.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.9.1.0.0.1.0.0.0.0.0.d.f.ip6.arpa PTR": "NXDOMAIN 1.0.0.0.0.0.d.f.ip6.arpa.",
		"0.8.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.f.f.f.f.1.0.0.0.0.0.d.f.ip6.arpa PTR": "frontend.default.svc.cluster.local.",
		"9.1.0.0.1.0.0.0.0.0.d.f.ip6.arpa PTR":                                         "nothing 1.0.0.0.0.0.d.f.ip6.arpa.",
		"1.0.0.0.0.0.d.f.ip6.arpa SOA":                                                 "ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5",
		"0.0.0.0.0.d.f.ip6.arpa SOA":                                                   "upstream",
		"10.0.1.0.0.0.0.0.d.f.ip6.arpa PTR":                                            "NXDOMAIN 1.0.0.0.0.0.d.f.ip6.arpa.",
		"g.1.0.0.0.0.0.d.f.ip6.arpa PTR":                                               "NXDOMAIN 1.0.0.0.0.0.d.f.ip6.arpa.",
		"3.0.0.0.9.0.d.f.ip6.arpa A":                                                   "nothing 3.0.0.0.9.0.d.f.ip6.arpa.",
		"4.0.0.0.9.0.d.f.ip6.arpa A":                                                   "upstream",
	}
}

func TestEveryQuestionHasItsAnswer(t *testing.T) {
	z := new(Builder).Build(example())
	for q, want := range questions() {
		f := strings.Fields(q)
		if got := ask(z, f[0], typeOfText(t, f[1])); got != want {
			t.Errorf("%s\n\tis   %s\n\twant %s", q, got, want)
		}
	}
	if n := len(questions()); n < 120 {
		t.Errorf("only %d questions", n)
	}
}

func TestTenantsHaveTheirOwnNames(t *testing.T) {
	s := example()
	s.Tenant, s.Networks = "blue", prefixes("10.1.0.0/16")
	z := new(Builder).Build(s)
	for q, want := range map[string]string{
		"zzz.front.blue.cluster.local A":               "10.1.20.12",
		"secret.front.blue.cluster.local A":            "10.1.19.3",
		"00000000000b.front.blue.cluster.local A":      "10.1.20.12",
		"zzz.ignored.blue.cluster.local A":             nx,
		"zzz.front.cluster.local A":                    nx,
		"added.front.blue.cluster.local A":             "192.0.2.13",
		"shop.front.svc.blue.cluster.local A":          "10.9.9.9",
		"shop.front.svc.cluster.local A":               nx,
		"10-9-9-9.shop.front.svc.blue.cluster.local A": "10.9.9.9",
		"10-1-19-3.front.pod.blue.cluster.local A":     "10.1.19.3",
		"10-1-20-3.front.pod.blue.cluster.local A":     nx,
		"3.19.1.10.in-addr.arpa PTR":                   "secret.front.blue.cluster.local.",
		"web.default.cluster.local A":                  nx,
		"web.default.blue.cluster.local A":             nx,
		"blue.cluster.local A":                         none,
		"front.blue.cluster.local A":                   none,
		"svc.blue.cluster.local A":                     none,
		"default.cluster.local A":                      nx,
		"ns.dns.cluster.local A":                       "10.0.0.10 10.1.19.1",
		"dns-version.cluster.local TXT":                `"1.1.0"`,
		"cluster.local NS":                             "ns.dns.cluster.local. + ns.dns.cluster.local. A 10.0.0.10 10.1.19.1; ns.dns.cluster.local. AAAA fd00:1:19::1",
		"svc.cluster.local A":                          nx,
	} {
		f := strings.Fields(q)
		if got := ask(z, f[0], typeOfText(t, f[1])); got != want {
			t.Errorf("%s is %s, want %s", q, got, want)
		}
	}
}

func TestThisHostsEndpointsComeFirstIfPreferred(t *testing.T) {
	s := example()
	s.PreferLocal = true
	z := new(Builder).Build(s)
	for q, want := range map[string]string{
		"web.default.cluster.local A":          "10.1.19.3 | 10.1.20.3 192.0.2.7",
		"web-1.default.cluster.local A":        "10.1.19.3 | ",
		"headless.default.svc.cluster.local A": "10.1.19.3 | 10.1.20.3",
		"_http._tcp.headless.default.svc.cluster.local SRV": "0 100 80 10-1-19-3.headless.default.svc.cluster.local. " +
			"0 100 80 fd00-1-19--3.headless.default.svc.cluster.local. | 0 100 80 10-1-20-3.headless.default.svc.cluster.local. + " +
			"10-1-19-3.headless.default.svc.cluster.local. A 10.1.19.3; 10-1-20-3.headless.default.svc.cluster.local. A 10.1.20.3; " +
			"fd00-1-19--3.headless.default.svc.cluster.local. AAAA fd00:1:19::3",
	} {
		f := strings.Fields(q)
		if got := ask(z, f[0], typeOfText(t, f[1])); got != want {
			t.Errorf("%s is %s, want %s", q, got, want)
		}
	}
	if a, _ := z.Lookup(mustWire("web.default.cluster.local"), typeA); a.Set.Local != 1 {
		t.Errorf("%+v", a.Set)
	}
}

func mustWire(name string) []byte {
	wire, ok := Wire(name)
	if !ok {
		panic(name)
	}
	return wire
}

func TestAnAddressOfSeveralNamesHasThemAllItsContainersFirst(t *testing.T) {
	s := example()
	s.Endpoints = append(s.Endpoints, container(90, "host1", "10.1.19.9", "pod-a"), container(91, "host1", "10.1.19.9", "pod-b"))
	s.Names = append(s.Names, &Name{Tenant: "default", Network: "default", Name: "alias.of", Addresses: addrs("10.1.19.9")})
	z := new(Builder).Build(s)
	a, _ := z.Lookup(mustWire("9.19.1.10.in-addr.arpa"), typePTR)
	if got, want := shown(a.sets()), "pod-a.default.cluster.local. pod-b.default.cluster.local. | alias.of.default.cluster.local."; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestOutsiderNetworksAndDomainsAreHarmless(t *testing.T) {
	for _, domain := range []string{"", ".", "a..b", strings.Repeat("x", 64), strings.Repeat("x.", 200) + "x"} {
		s := example()
		s.Domain = domain
		z := new(Builder).Build(s)
		for q := range questions() {
			f := strings.Fields(q)
			ask(z, f[0], typeOfText(t, f[1]))
		}
		if got := ask(z, "example.com", typeA); got != "upstream" {
			t.Errorf("domain %q: %s", domain, got)
		}
	}
	s := example()
	s.Domain = "one"
	s.Networks = append(s.Networks, prefixes("0.0.0.0/0 ::/0")...)
	z := new(Builder).Build(s)
	for q, want := range map[string]string{
		"web.default.one": "10.1.19.3 10.1.20.3 192.0.2.7", "one": "nothing one.", "in-addr.arpa": "nothing in-addr.arpa.",
		"8.8.8.8.in-addr.arpa": "NXDOMAIN in-addr.arpa.", "x.ip6.arpa": "NXDOMAIN ip6.arpa.",
	} {
		if got := ask(z, q, typeA); got != want {
			t.Errorf("%s is %s, want %s", q, got, want)
		}
	}
}

func TestNamesThatWouldBeTooLongAreNotMade(t *testing.T) {
	s := example()
	long := strings.Repeat("a", 63)
	s.Domain = strings.Join([]string{long, long, long}, ".")
	s.Endpoints = append(s.Endpoints, container(90, "host1", "10.1.19.9", long, func(e *endpoint.Endpoint) { e.Network = long }))
	z := new(Builder).Build(s)
	if got := ask(z, "9.19.1.10.in-addr.arpa", typePTR); got != "nothing 1.10.in-addr.arpa." {
		t.Error(got)
	}
	if got := ask(z, "3.19.1.10.in-addr.arpa", typePTR); got != "web.default."+s.Domain+"." {
		t.Error(got)
	}
}
