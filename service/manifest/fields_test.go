package manifest

import (
	"reflect"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/service"
)

func field(name string) Field {
	for _, f := range Fields() {
		if f.Name == name {
			return f
		}
	}
	panic(name)
}

func TestWhatAServiceHadStaysAsItIsWhenAFieldIsSet(t *testing.T) {
	was := func() *service.Service {
		return &service.Service{Ports: []service.Port{{Name: "a", Port: 80, Protocol: "tcp", NodePort: 30080}, {Name: "b", Port: 81, Protocol: "tcp"}},
			Selector: map[string]string{"a": "b"}, Endpoints: addrs("192.0.2.1"), VirtualIPs: addrs("10.0.0.9"), Health: &service.Health{Type: "tcp"}}
	}
	for name, text := range map[string]string{"port": "c=82", "selector": "c=d", "endpoint": "192.0.2.2", "ip": "10.0.0.8", "node-port": "auto", "health": "http:/", "health-interval": "7s", "health-threshold": "9"} {
		s := was()
		changed := *s
		if err := field(name).Set(&changed, []string{text}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !reflect.DeepEqual(s, was()) {
			t.Errorf("%s wrote to %+v", name, s)
		}
		if reflect.DeepEqual(&changed, s) {
			t.Errorf("%s changed nothing", name)
		}
	}
}

func TestNodePortsStayWithTheirPorts(t *testing.T) {
	s := &service.Service{Ports: []service.Port{{Port: 80, Protocol: "tcp", NodePort: 30080}}}
	if err := field("port").Set(s, []string{"dns=80/udp", "http=80:8080"}); err != nil || s.Ports[0].NodePort != 0 || s.Ports[1].NodePort != 30080 {
		t.Errorf("%+v, %v", s.Ports, err)
	}
	if err := field("node-port").Set(s, []string{"dns=30053,http="}); err != nil || s.Ports[0].NodePort != 30053 || s.Ports[1].NodePort != 0 {
		t.Errorf("%+v, %v", s.Ports, err)
	}
}

func TestEachFieldOfAServiceHasItsFlag(t *testing.T) {
	for of, want := range map[string]string{
		"Ports": "port", "Ports[3]": "port", "Ports[3].TargetName": "port", "Ports[0].NodePort": "node-port", "NodePort": "node-port", "Selector": "selector", "Health.Path": "health",
		"Health.Interval": "health-interval", "Health": "health", "VirtualIPs": "ip", "External": "external", "Name": "", "Network": "", "body": "", "address": "", "": "",
	} {
		if got := NameOf(of); got != want {
			t.Errorf("%s is set by %q, want %q", of, got, want)
		}
	}
}

// FuzzFields: whatever is said, it is refused or can be said again.
func FuzzFields(f *testing.F) {
	for _, name := range Fields() {
		f.Add(name.Name, "80")
	}
	for _, s := range []string{"http=80:8080/tcp", "dns=53/udp", "80:web", "=", ":", "/", "80:"} {
		f.Add("port", s)
	}
	f.Add("affinity", "client-ip=1h")
	f.Add("health", "http:/x")
	f.Fuzz(func(t *testing.T, name, text string) {
		s := &service.Service{Ports: []service.Port{{Name: "a", Port: 80, Protocol: "tcp"}}, Health: &service.Health{Type: "tcp"}}
		for _, fd := range Fields() {
			if fd.Name != name {
				continue
			}
			err := fd.Set(s, []string{text})
			if err != nil {
				if strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' }) {
					t.Errorf("not fit for a line: %q", err.Error())
				}
				return
			}
			var again []string
			for _, p := range s.Ports {
				again = append(again, api.Port{Name: p.Name, Port: p.Port, Target: p.Target, TargetName: p.TargetName, Protocol: p.Protocol}.String())
			}
			twice := &service.Service{}
			if err := field("port").Set(twice, again); err != nil || len(twice.Ports) != len(s.Ports) {
				t.Fatalf("%q is %+v, which is %q: %v", text, s.Ports, again, err)
			}
			for i, p := range s.Ports {
				p.NodePort = 0
				if twice.Ports[i] != p {
					t.Errorf("%q is %+v, which is %+v", text, p, twice.Ports[i])
				}
			}
		}
	})
}
