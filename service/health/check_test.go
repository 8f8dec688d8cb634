package health

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/service"
)

// container is an endpoint from "name addresses labels", lists by commas.
func container(line string) *endpoint.Endpoint {
	w := strings.Fields(line)
	e := &endpoint.Endpoint{Tenant: "default", Network: "default", ID: "host1," + w[0] + ",eth0", Host: "host1", Identity: "id1", Labels: map[string]string{}}
	for a := range strings.SplitSeq(w[1], ",") {
		e.Addresses = append(e.Addresses, netip.MustParseAddr(a))
	}
	for l := range strings.SplitSeq(w[2], ",") {
		k, v, _ := strings.Cut(l, "=")
		e.Labels[k] = v
	}
	return e
}

func TestChecksFollowServicesAndEndpoints(t *testing.T) {
	tcp := func(port, target uint16, name string) service.Port {
		return service.Port{Name: fmt.Sprint("p", port), Port: port, Target: target, TargetName: name, Protocol: "tcp"}
	}
	named := func(name string, h *service.Health, selector map[string]string, ports ...service.Port) *service.Service {
		return &service.Service{Tenant: "default", Network: "default", Name: name, Health: h, Selector: selector, Ports: ports}
	}
	web, both := map[string]string{"app": "web"}, map[string]string{"app": "web", "tier": "1"}
	six := named("six", &service.Health{Type: "tcp"}, web, tcp(80, 0, ""))
	six.VirtualIPs = []netip.Addr{netip.MustParseAddr("fd00:53::80")}
	elsewhere := named("elsewhere", &service.Health{Type: "tcp"}, web, tcp(80, 0, ""))
	elsewhere.Network = "other"
	services := []*service.Service{
		named("all", &service.Health{Type: "tcp"}, web, tcp(80, 8080, ""), tcp(81, 0, ""), tcp(82, 8080, ""),
			service.Port{Port: 53, Protocol: "udp"}, tcp(83, 0, "admin")),
		elsewhere,
		named("first", &service.Health{Type: "http", Path: "/up", Interval: 10, Timeout: 1, Threshold: 5}, both, service.Port{Port: 53, Protocol: "udp"}, tcp(83, 0, "admin"), tcp(80, 0, "")),
		named("listed", &service.Health{Type: "tcp"}, nil, tcp(80, 0, "")),
		named("none", nil, web, tcp(80, 0, "")),
		named("other", &service.Health{Type: "tcp"}, map[string]string{"app": "db"}, tcp(80, 0, "")),
		six,
		named("udp", &service.Health{Type: "tcp"}, web, service.Port{Port: 53, Protocol: "udp"}),
	}
	own := []*endpoint.Endpoint{
		container("a 10.1.1.2,fd00:1::2,10.1.1.9 app=web,tier=1"),
		container("b 10.1.1.3 app=web,tier=1,flanneld.io/port-admin=9000"),
		container("c 10.1.1.4 app=other"),
		container("d 10.1.1.5 app=db"),
	}
	published := []*endpoint.Endpoint{container("a 10.1.1.2,fd00:1::2,10.1.1.9 app=web"), container("b 10.1.1.3 app=web")}
	published = append(published, container("d 10.1.1.6 app=db")) // the address that it had
	published[0].Unhealthy = map[string]string{"all": "connection refused"}
	published[1].Identity = "an earlier life"
	var got []string
	for _, c := range Checks(services, own, published) {
		got = append(got, fmt.Sprintf("%s %s %v %v %s %v/%v/%d %q", c.Endpoint[len("/endpoints/default/default/"):], c.Service, c.Addrs, c.Ports, c.Path, c.Interval, c.Timeout, c.Threshold, c.Former))
	}
	want := []string{
		`host1,a,eth0 all [10.1.1.2 fd00:1::2] [8080 81]  5s/2s/2 "connection refused"`,
		`host1,a,eth0 first [10.1.1.2 fd00:1::2] [80] /up 10s/1s/5 ""`,
		`host1,a,eth0 six [fd00:1::2] [80]  5s/2s/2 ""`,
		`host1,b,eth0 all [10.1.1.3] [8080 81 9000]  5s/2s/2 "no answer yet"`,
		`host1,b,eth0 first [10.1.1.3] [9000] /up 10s/1s/5 "no answer yet"`,
		`host1,d,eth0 other [10.1.1.5] [80]  5s/2s/2 "no answer yet"`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("checks:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestRecordsSayVerdictsAndFormerOnesUntilThen(t *testing.T) {
	checks := []Check{check(Subject{"a", "web"}, NotYet), check(Subject{"a", "db"}, ""), check(Subject{"b", "web"}, refused), check(Subject{"c", "web"}, NotYet)}
	v := Verdicts{{"c", "web"}: "", {"a", "db"}: silent, {"gone", "web"}: refused}
	got := v.Unhealthy(checks)
	if want := "map[a:map[db:" + silent + " web:" + NotYet + "] b:map[web:" + refused + "]]"; fmt.Sprint(got) != want {
		t.Errorf("%v, want %s", got, want)
	}
	if got := Verdicts(nil).Unhealthy(nil); len(got) != 0 {
		t.Errorf("%v", got)
	}
}

func TestManyServicesCostLittle(t *testing.T) {
	var services []*service.Service
	for i := range 10000 {
		services = append(services, &service.Service{Tenant: "default", Network: "default", Name: fmt.Sprint("s", i), Health: &service.Health{Type: "tcp"},
			Selector: map[string]string{"app": fmt.Sprint(i)}, Ports: []service.Port{{Port: 80, Protocol: "tcp"}}})
	}
	var own []*endpoint.Endpoint
	for i := range 1000 {
		own = append(own, container(fmt.Sprintf("c%04d 10.1.1.2 app=%d", i, i)))
	}
	begin := time.Now()
	if n := len(Checks(services, own, own)); n != 1000 {
		t.Errorf("%d checks", n)
	}
	t.Logf("10,000 services, 1,000 endpoints: %v", time.Since(begin))
}
