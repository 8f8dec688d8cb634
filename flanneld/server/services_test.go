package server

import (
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/service"
)

// frontend is a service as a client makes it.
func frontend() api.Service {
	return api.Service{Tenant: "default", Network: "default", Name: "frontend", Ports: []api.Port{{Name: "http", Port: 8888, Protocol: "tcp"}, {Name: "dns", Port: 53, Target: 5353, Protocol: "udp"}},
		Selector: map[string]string{"app": "sample"}, Endpoints: addrs("192.0.2.8", "192.0.2.7")}
}

func TestServiceIsMadeListedAndDeleted(t *testing.T) {
	b := newBook()
	c := client(t, b)
	ch, err := c.CreateService(t.Context(), frontend())
	if err != nil || !ch.Changed || !ch.Created || ch.FQDN != "frontend.default.svc.cluster.local" || fmt.Sprint(ch.Addresses) != "[10.0.0.99]" {
		t.Fatalf("%+v, %v", ch, err)
	}
	all, err := c.Services(t.Context())
	if err != nil || len(all) != 1 {
		t.Fatalf("%+v, %v", all, err)
	}
	s := all[0]
	if s.Ports[1].Target != 5353 || s.Selector["app"] != "sample" || fmt.Sprint(s.Endpoints) != "[192.0.2.7 192.0.2.8]" || *s.State != (api.ServiceState{Endpoints: 2, LeftOut: 1}) {
		t.Errorf("%+v", s)
	}
	if ch, err := c.DeleteService(t.Context(), "default", "default", "frontend"); err != nil || ch.Note != "" || len(b.services) != 0 {
		t.Errorf("%+v, %v, left %v", ch, err, b.services)
	}
	if _, err := c.DeleteService(t.Context(), "default", "default", "frontend"); status(err) != http.StatusNotFound || !strings.Contains(err.Error(), "flanneld service list") {
		t.Errorf("got %v", err)
	}
}

func TestSameServiceAgainChangesNothing(t *testing.T) {
	b := newBook()
	c := client(t, b)
	s := frontend()
	if _, err := c.CreateService(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	slices.Reverse(s.Ports)
	slices.Reverse(s.Endpoints)
	s.Ports[1].Target = 8888 // what it is anyway
	ch, err := c.CreateService(t.Context(), s)
	if err != nil || ch.Changed || b.writes != 1 {
		t.Errorf("%+v, %v, %d writes", ch, err, b.writes)
	}
}

func TestOtherServiceOfThatNameIsAConflictThatSaysWhatDiffers(t *testing.T) {
	b := newBook()
	c := client(t, b)
	if _, err := c.CreateService(t.Context(), frontend()); err != nil {
		t.Fatal(err)
	}
	b.services["default/default/frontend"].VirtualIPs = addrs("10.0.0.20")
	s := frontend()
	s.Ports = s.Ports[:1]
	s.Selector["tier"] = "web"
	_, err := c.CreateService(t.Context(), s)
	if status(err) != http.StatusConflict {
		t.Fatalf("got %v", err)
	}
	for _, w := range []string{"ports: dns=53:5353/udp http=8888/tcp instead of http=8888/tcp", "selector: app=sample instead of app=sample,tier=web", "--replace", "nothing was changed"} {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
	ch, err := c.ReplaceService(t.Context(), s, false)
	now := b.services["default/default/frontend"]
	if err != nil || !ch.Changed || len(now.Ports) != 1 || fmt.Sprint(now.VirtualIPs) != "[10.0.0.20]" {
		t.Errorf("replaced: %+v, %v, %+v", ch, err, now)
	}
}

// everything is a service that has what a service can have.
func everything() api.Service {
	s := frontend()
	s.Ports[0].TargetName, s.Ports[0].NodePort, s.Ports[1].NodePortAuto = "web", 30080, true
	s.Affinity, s.Local, s.Balance = 3600, "prefer-local", "round-robin"
	s.Health = &api.Health{Type: "http", Path: "/ok", Interval: 10, Timeout: 1, Threshold: 3}
	s.VirtualIPs = addrs("fd00::9", "10.0.0.9")
	return s
}

func TestWhatIsAskedForIsWhatIsTold(t *testing.T) {
	b := newBook()
	c := client(t, b)
	asked := everything()
	ch, err := c.CreateService(t.Context(), asked)
	if err != nil || ch.Service == nil {
		t.Fatalf("%+v, %v", ch, err)
	}
	asked.Endpoints, asked.VirtualIPs = addrs("192.0.2.7", "192.0.2.8"), addrs("10.0.0.9", "fd00::9")
	asked.Ports[1].NodePortAuto, asked.Ports[1].NodePort = false, 31001
	asked.Version = ch.Service.Version
	if !reflect.DeepEqual(*ch.Service, asked) || asked.Version == "" {
		t.Errorf("answered\n%+v, want\n%+v", *ch.Service, asked)
	}
	stored, err := c.StoredService(t.Context(), "default", "default", "frontend")
	if err != nil || !reflect.DeepEqual(stored, asked) {
		t.Errorf("stored\n%+v, %v, want\n%+v", stored, err, asked)
	}
	alias := api.Service{Tenant: "default", Network: "default", Name: "db", External: "DB.example.com."}
	if ch, err = c.CreateService(t.Context(), alias); err != nil || ch.Service.External != "db.example.com" || len(ch.Addresses) != 0 {
		t.Errorf("%+v, %v", ch, err)
	}
}

func TestServiceIsDescribedWithWhatIsBehindIt(t *testing.T) {
	b := newBook()
	c := client(t, b)
	if _, err := c.Service(t.Context(), "default", "default", "frontend"); status(err) != http.StatusNotFound || !strings.Contains(err.Error(), "flanneld service list") {
		t.Errorf("got %v", err)
	}
	if _, err := c.StoredService(t.Context(), "default", "default", "frontend"); status(err) != http.StatusNotFound {
		t.Errorf("got %v", err)
	}
	if _, err := c.CreateService(t.Context(), frontend()); err != nil {
		t.Fatal(err)
	}
	d, err := c.Service(t.Context(), "default", "default", "Frontend")
	if err != nil || d.FQDN != "frontend.default.svc.cluster.local" || len(d.Behind) != 3 || *d.State != (api.ServiceState{Endpoints: 1, LeftOut: 1}) ||
		d.Behind[0].Why != "unhealthy: connection refused" || len(d.Problems) != 1 || d.Selector["app"] != "sample" {
		t.Errorf("%+v, %v", d, err)
	}
}

func TestWhatTheDaemonChoseStaysWhenAServiceIsReplaced(t *testing.T) {
	b := newBook()
	c := client(t, b)
	s := everything()
	if _, err := c.CreateService(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	b.services["default/default/frontend"].Ports[1].NodePort = 32000
	// The same, less and usual ways to say it.
	s.VirtualIPs = addrs("fd00::9")
	if ch, err := c.CreateService(t.Context(), s); err != nil || ch.Changed || ch.Service.Ports[1].NodePort != 32000 {
		t.Errorf("%+v, %v", ch, err)
	}
	s.VirtualIPs, s.Local, s.Balance = nil, "cluster", "random"
	ch, err := c.ReplaceService(t.Context(), s, false)
	if err != nil || !slices.Equal(ch.Fields, []string{"local", "balance"}) || fmt.Sprint(ch.Addresses) != "[10.0.0.9 fd00::9]" || ch.Service.Ports[1].NodePort != 32000 {
		t.Errorf("%+v, %v", ch, err)
	}
	s.VirtualIPs = addrs("10.0.0.10")
	if ch, err = c.ReplaceService(t.Context(), s, false); err != nil || !slices.Equal(ch.Fields, []string{"virtual ip"}) || fmt.Sprint(ch.Addresses) != "[10.0.0.10 fd00::9]" {
		t.Errorf("%+v, %v", ch, err)
	}
	s.Ports[0].NodePort, s.Ports[1].NodePortAuto, s.VirtualIPs, s.Headless, s.Affinity = 0, false, nil, true, 0
	if ch, err = c.ReplaceService(t.Context(), s, false); err != nil || len(ch.Addresses) != 0 || ch.Service.Ports[1].NodePort != 0 {
		t.Errorf("%+v, %v", ch, err)
	}
}

func TestOtherAddressesAreChosenIfThatIsAskedFor(t *testing.T) {
	b := newBook()
	c := client(t, b)
	if _, err := c.CreateService(t.Context(), everything()); err != nil {
		t.Fatal(err)
	}
	s := everything()
	s.VirtualIPs, s.VirtualIPsAuto = nil, true
	if ch, err := c.ReplaceService(t.Context(), s, true); err != nil || !slices.Equal(ch.Fields, []string{"virtual ip"}) || b.writes != 1 {
		t.Errorf("%+v, %v, %d writes", ch, err, b.writes)
	}
	if ch, err := c.ReplaceService(t.Context(), s, false); err != nil || !slices.Equal(ch.Fields, []string{"virtual ip"}) || fmt.Sprint(ch.Addresses) != "[10.0.0.99]" {
		t.Errorf("%+v, %v", ch, err)
	}
}

func TestProgramAtANodePortIsNotedWhenThePortIsNew(t *testing.T) {
	b := newBook()
	c := client(t, b)
	const note = "nginx listens on port 30080"
	s := frontend()
	s.Ports[0].NodePort = 30080
	if ch, err := c.ReplaceService(t.Context(), s, true); err != nil || ch.Note != note {
		t.Errorf("only to see: %+v, %v", ch, err)
	}
	if ch, err := c.CreateService(t.Context(), s); err != nil || ch.Note != note {
		t.Errorf("made: %+v, %v", ch, err)
	}
	s.Selector = map[string]string{"a": "b"}
	if ch, err := c.ReplaceService(t.Context(), s, false); err != nil || ch.Note != "" {
		t.Errorf("another selector: %+v, %v", ch, err)
	}
	s.Ports[0].NodePort = 0
	if ch, err := c.ReplaceService(t.Context(), s, false); err != nil || ch.Note != "" {
		t.Errorf("given up: %+v, %v", ch, err)
	}
	s.Ports[0].NodePort = 30080
	if ch, err := c.ReplaceService(t.Context(), s, false); err != nil || ch.Note != note {
		t.Errorf("again: %+v, %v", ch, err)
	}
}

func TestDryRunSaysWhatWouldBeAndWritesNothing(t *testing.T) {
	b := newBook()
	c := client(t, b)
	auto := frontend()
	auto.Ports[0].NodePortAuto = true
	ch, err := c.ReplaceService(t.Context(), auto, true)
	if err != nil || !ch.Created || b.writes != 0 || len(ch.Addresses) != 0 || !ch.Service.Ports[0].NodePortAuto {
		t.Errorf("%+v, %v, %d writes", ch, err, b.writes)
	}
	if _, err := c.CreateService(t.Context(), frontend()); err != nil {
		t.Fatal(err)
	}
	s := frontend()
	s.Selector["tier"] = "web"
	if ch, err = c.ReplaceService(t.Context(), s, true); err != nil || !ch.Changed || ch.Created || !slices.Equal(ch.Fields, []string{"selector"}) || b.writes != 1 {
		t.Errorf("%+v, %v, %d writes", ch, err, b.writes)
	}
	if ch, err = c.ReplaceService(t.Context(), frontend(), true); err != nil || ch.Changed || b.writes != 1 {
		t.Errorf("%+v, %v, %d writes", ch, err, b.writes)
	}
	s.Ports[0].Port = 0
	if _, err = c.ReplaceService(t.Context(), s, true); status(err) != http.StatusBadRequest {
		t.Errorf("got %v", err)
	}
}

func TestToReplaceAServiceThatCannotBeReadIsSaid(t *testing.T) {
	b := newBook()
	c := client(t, b)
	b.services["default/default/frontend"] = &service.Service{Tenant: "default", Network: "default", Name: "frontend"} // as EditService has it
	const cure = "the record of service frontend is damaged, it cannot be read: nothing was changed; write it anew with flanneld service create frontend --replace, or remove it with flanneld service delete frontend"
	if _, err := c.CreateService(t.Context(), frontend()); status(err) != http.StatusConflict || err.Error() != cure {
		t.Errorf("got %v", err)
	}
	if _, err := c.StoredService(t.Context(), "default", "default", "frontend"); status(err) != http.StatusConflict || err.Error() != cure {
		t.Errorf("got %v", err)
	}
	if ch, err := c.DeleteService(t.Context(), "default", "default", "frontend"); err != nil || !strings.Contains(ch.Note, "could not be read") || len(b.services) != 0 {
		t.Errorf("%+v, %v, left %v", ch, err, b.services)
	}
	b.services["default/default/frontend"] = &service.Service{Tenant: "default", Network: "default", Name: "frontend"}
	if ch, err := c.ReplaceService(t.Context(), frontend(), false); err != nil || !strings.Contains(ch.Note, "could not be read") {
		t.Errorf("%+v, %v", ch, err)
	}
	if ch, err := c.ReplaceService(t.Context(), frontend(), false); err != nil || ch.Changed || ch.Note != "" {
		t.Errorf("%+v, %v", ch, err)
	}
}

func TestNobodysChangeIsUndoneByOneMadeMeanwhile(t *testing.T) {
	b := newBook()
	c := client(t, b)
	if _, err := c.CreateService(t.Context(), frontend()); err != nil {
		t.Fatal(err)
	}
	mine, err := c.StoredService(t.Context(), "default", "default", "frontend")
	if err != nil {
		t.Fatal(err)
	}
	theirs := mine
	theirs.Selector = map[string]string{"app": "theirs"}
	if _, err := c.ReplaceService(t.Context(), theirs, false); err != nil {
		t.Fatal(err)
	}
	mine.Affinity = 60
	if _, err := c.ReplaceService(t.Context(), mine, false); status(err) != http.StatusPreconditionFailed || !strings.Contains(err.Error(), "nothing was changed") || b.services["default/default/frontend"].Affinity != 0 {
		t.Errorf("got %v", err)
	}
	if _, err := c.DeleteService(t.Context(), "default", "default", "frontend"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ReplaceService(t.Context(), mine, false); status(err) != http.StatusPreconditionFailed || len(b.services) != 0 {
		t.Errorf("got %v", err)
	}
}

func TestEveryFieldCrossesTheWireAndIsCompared(t *testing.T) {
	s := Domain(everything())
	s.Tenant, s.Network, s.Name = "default", "default", "frontend"
	for _, f := range []func(*service.Service){
		func(s *service.Service) { s.Ports[0].Port = 1 },
		func(s *service.Service) { s.Ports[0].TargetName = "other" },
		func(s *service.Service) { s.Ports[0].NodePort = 30001 },
		func(s *service.Service) { s.Ports[1].NodePort = 0 },
		func(s *service.Service) { s.Ports[0].Protocol = "sctp" },
		func(s *service.Service) { s.Selector = nil },
		func(s *service.Service) { s.Endpoints = nil },
		func(s *service.Service) { s.VirtualIPs = nil },
		func(s *service.Service) { s.Headless = true },
		func(s *service.Service) { s.External = "a.example" },
		func(s *service.Service) { s.Affinity = 1 },
		func(s *service.Service) { s.Local = "local" },
		func(s *service.Service) { s.Balance = "" },
		func(s *service.Service) { s.Health = nil },
		func(s *service.Service) {
			s.Health = &service.Health{Type: "http", Path: "/ok", Interval: 10, Timeout: 2, Threshold: 3}
		},
		func(s *service.Service) {
			s.Health = &service.Health{Type: "http", Path: "/ok", Interval: 10, Timeout: 1, Threshold: 4}
		},
	} {
		other := *s
		other.Ports = slices.Clone(s.Ports)
		f(&other)
		if d := differences(Wire(s), Wire(&other)); len(d) == 0 {
			t.Errorf("no difference to %+v", other)
		}
		if version(s) == version(&other) {
			t.Errorf("one version for two services: %+v", other)
		}
		if back := Domain(Wire(&other)); !reflect.DeepEqual(*back, other) {
			t.Errorf("%+v became %+v", other, *back)
		}
	}
}
