package zone

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// told is an explanation in a few lines.
func told(x Explanation) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s %s\n", x.Name, x.Type, x.Zone, x.Rcode)
	for _, r := range x.Answers {
		fmt.Fprintf(&b, "is %s: %s\n", r.Data, r.Source)
	}
	for _, r := range x.Additional {
		fmt.Fprintf(&b, "with %s %s: %s\n", r.Name, r.Data, r.Source)
	}
	for _, l := range x.LeftOut {
		fmt.Fprintf(&b, "not %s: %s: %s\n", l.Data, l.Source, l.Why)
	}
	for _, n := range x.Notes {
		fmt.Fprintf(&b, "note %s\n", n)
	}
	return b.String()
}

func TestAnswersAreExplained(t *testing.T) {
	s := example()
	s.Endpoints = append(s.Endpoints, container(90, "host1", "10.1.19.9", "frontend", labelled("app=other")))
	z := new(Builder).Build(s)
	for q, want := range map[string]string{
		"Web.default.cluster.local A": `web.default.cluster.local. A cluster.local. NOERROR
is 10.1.19.3: container web on host1
is 10.1.20.3: container web on host2
is 192.0.2.7: added by hand
not 10.1.20.4: container web on host2: unhealthy for service frontend: connection refused; service headless: connection refused
not 10.1.21.3: container web on host3: host3 has not been seen since 12:00:00
`,
		"sick.default.cluster.local A": `sick.default.cluster.local. A cluster.local. NOERROR
not 10.1.20.4: container web on host2: unhealthy for service frontend: connection refused; service headless: connection refused
`,
		"headless.default.svc.cluster.local A": `headless.default.svc.cluster.local. A cluster.local. NOERROR
is 10.1.19.3: container web on host1
is 10.1.20.3: container web on host2
not 10.1.20.4: container web on host2: unhealthy for service headless: connection refused
not 10.1.21.3: container web on host3: host3 has not been seen since 12:00:00
`,
		"narrow.default.svc.cluster.local A": `narrow.default.svc.cluster.local. A cluster.local. NOERROR
is 10.1.19.3: container web on host1
not 10.1.20.3: container web on host2: labels do not match: tier=front is missing
not 10.1.20.4: container web on host2: labels do not match: tier=front is missing
not 10.1.21.3: container web on host3: labels do not match: tier=front is missing
`,
		"frontend.default.svc.cluster.local A": `frontend.default.svc.cluster.local. A cluster.local. NOERROR
is 10.0.0.80: service frontend
not 10.1.20.4: container web on host2: unhealthy for service frontend: connection refused
not 10.1.21.3: container web on host3: host3 has not been seen since 12:00:00
not 10.1.19.9: container frontend on host1: labels do not match: app is other, not sample
note service frontend stands for its virtual IP, with 2 endpoints behind it
`,
		"listed.default.svc.cluster.local A": `listed.default.svc.cluster.local. A cluster.local. NOERROR
is 10.1.20.6: service listed
is 172.20.0.1: service listed
is 192.0.2.1: service listed
note service listed has no selector: its endpoints are those that are listed
`,
		"_http._tcp.frontend.default.svc.cluster.local SRV": `_http._tcp.frontend.default.svc.cluster.local. SRV cluster.local. NOERROR
is 0 100 8888 frontend.default.svc.cluster.local.: service frontend
with frontend.default.svc.cluster.local. 10.0.0.80: service frontend
with frontend.default.svc.cluster.local. fd00:1:ffff::80: service frontend
not 10.1.20.4: container web on host2: unhealthy for service frontend: connection refused
not 10.1.21.3: container web on host3: host3 has not been seen since 12:00:00
not 10.1.19.9: container frontend on host1: labels do not match: app is other, not sample
note service frontend stands for its virtual IP, with 2 endpoints behind it
`,
		"10-1-20-4.default.pod.cluster.local A": `10-1-20-4.default.pod.cluster.local. A cluster.local. NOERROR
not 10.1.20.4: container web on host2: unhealthy for service frontend: connection refused; service headless: connection refused
`,
		"named-4.default.cluster.local A": `named-4.default.cluster.local. A cluster.local. NOERROR
not 10.1.20.21: container named-4 on host2: unhealthy for service named: connection refused
`,
		"other.default.svc.cluster.local A": `other.default.svc.cluster.local. A cluster.local. NOERROR
is 10.1.19.18: container named-1 on host1
is 10.1.20.20: container named-3 on host2
is 10.1.20.21: container named-4 on host2
not 10.1.20.19: container named-2 on host2: unhealthy for service other: connection refused
`,
		"10-1-20-19.other.default.svc.cluster.local A": `10-1-20-19.other.default.svc.cluster.local. A cluster.local. NOERROR
not 10.1.20.19: container named-2 on host2: unhealthy for service other: connection refused
`,
		"_odd._tcp.named.default.svc.cluster.local SRV": `_odd._tcp.named.default.svc.cluster.local. SRV cluster.local. NOERROR
not 10.1.19.18: container named-1 on host1: its label flanneld.io/port-odd is http, which is no port
not fd00:1:19::18: container named-1 on host1: its label flanneld.io/port-odd is http, which is no port
not 10.1.20.19: container named-2 on host2: it has no port odd: label flanneld.io/port-odd is missing
not 10.1.20.20: container named-3 on host2: it has no port odd: label flanneld.io/port-odd is missing
not 10.1.20.21: container named-4 on host2: unhealthy for service named: connection refused
`,
		"out.default.svc.cluster.local A": `out.default.svc.cluster.local. A cluster.local. NOERROR
is www.example.com.: service out
note service out is an alias of www.example.com., which upstreams are asked for
`,
		"twice.default.svc.cluster.local A": `twice.default.svc.cluster.local. A cluster.local. NOERROR
is in.default.svc.cluster.local.: service twice
is headless.default.svc.cluster.local.: service in
is 10.1.19.3: container web on host1
is 10.1.20.3: container web on host2
note service twice is an alias of in.default.svc.cluster.local.
`,
		"vanished.default.svc.cluster.local A": `vanished.default.svc.cluster.local. A cluster.local. NXDOMAIN
is nope.default.cluster.local.: service vanished
note service vanished is an alias of nope.default.cluster.local., and there is no such name
`,
		"without.default.svc.cluster.local A": `without.default.svc.cluster.local. A cluster.local. NOERROR
is six.default.cluster.local.: service without
note service without is an alias of six.default.cluster.local., which has no records of type A
`,
		"ping.default.svc.cluster.local A": `ping.default.svc.cluster.local. A cluster.local. SERVFAIL
note service ping is an alias of pong.default.svc.cluster.local., which leads in a circle: flanneld service update ping --external another name
`,
		"3.19.1.10.in-addr.arpa PTR": `3.19.1.10.in-addr.arpa. PTR 1.10.in-addr.arpa. NOERROR
is web.default.cluster.local.: container web on host1
`,
		"10.0.0.10.in-addr.arpa PTR": `10.0.0.10.in-addr.arpa. PTR 0.10.in-addr.arpa. NOERROR
is ns.dns.cluster.local.: this host's name server
`,
		"db.default.cluster.local A": `db.default.cluster.local. A cluster.local. NXDOMAIN
note db.prod.cluster.local. is container db on host2
`,
		"headless.default.cluster.local A": `headless.default.cluster.local. A cluster.local. NXDOMAIN
note headless.default.svc.cluster.local. is service headless
`,
		"hidden.default.cluster.local A": `hidden.default.cluster.local. A cluster.local. NXDOMAIN
note container hidden on host2 has no names: its namespace svc is reserved
`,
		"default.cluster.local A": `default.cluster.local. A cluster.local. NOERROR
note there are names below this one, but it has no records itself
`,
		"web-1.default.cluster.local MX": `web-1.default.cluster.local. MX cluster.local. NOERROR
note the name exists, but has no records of type MX
`,
		"cluster.local SOA": `cluster.local. SOA cluster.local. NOERROR
is ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5: 
`,
		"example.com A": "example.com. A  \n",
		"a..b A":        "a..b A  \nnote \"a..b\" is not a name\n",
	} {
		f := strings.Fields(q)
		if got := told(z.Explain(f[0], typeOfText(t, f[1]))); got != want {
			t.Errorf("%s is\n%s\nwant\n%s", q, got, want)
		}
	}
	b, err := json.Marshal(z.Explain("sick.default.cluster.local", typeA))
	want := `{"name":"sick.default.cluster.local.","type":"A","zone":"cluster.local.","rcode":"NOERROR","answers":null,` +
		`"left_out":[{"data":"10.1.20.4","source":"container web on host2","why":"unhealthy for service frontend: connection refused; service headless: connection refused"}]}`
	if err != nil || string(b) != want {
		t.Errorf("%s %v", b, err)
	}
	if c := z.Counts(); c != (Counts{Endpoints: 20, LeftOut: 4, Services: 22, Names: 5}) {
		t.Errorf("%+v", c)
	}
	if n, out := z.Behind("default", "headless"); n != 2 || out != 2 {
		t.Errorf("%d endpoints, %d left out", n, out)
	}
	if n, out := z.Behind("default", "other"); n != 3 || out != 1 {
		t.Errorf("%d endpoints, %d left out", n, out)
	}
	if n, out := z.Behind("default", "listed"); n != 3 || out != 0 {
		t.Errorf("%d endpoints, %d left out", n, out)
	}
}

func TestLongListsOfWhatIsLeftOutAreCut(t *testing.T) {
	s := example()
	for i := range 80 {
		s.Endpoints = append(s.Endpoints, container(100+i, "host3", fmt.Sprintf("10.1.60.%d", i+1), "many"))
	}
	z := new(Builder).Build(s)
	x := z.Explain("many.default.cluster.local", typeA)
	if len(x.LeftOut) != mostLeftOut || len(x.Notes) != 1 || x.Notes[0] != "30 more are left out" {
		t.Errorf("%d left out, %q", len(x.LeftOut), x.Notes)
	}
}
