package api

import "testing"

func TestTypesAreReadAsTheyAreWritten(t *testing.T) {
	for text, want := range map[string]uint16{"A": 1, "aaaa": 28, "Srv": 33, "TYPE65": 65, "type999": 999, "64": 64, "ANY": 255} {
		got, err := ParseType(text)
		if err != nil || got != want {
			t.Errorf("%s is %d, %v", text, got, err)
		}
		if again, err := ParseType(TypeName(got)); err != nil || again != got {
			t.Errorf("%d is called %s, which is %d", got, TypeName(got), again)
		}
	}
	for _, text := range []string{"", "ADDRESS", "TYPE", "TYPE0", "0", "-1", "65536", "TYPE 1"} {
		if got, err := ParseType(text); err == nil {
			t.Errorf("%q is %d", text, got)
		}
	}
	if got := TypeName(999); got != "TYPE999" {
		t.Errorf("999 is called %s", got)
	}
}

func TestCodesHaveTheirNames(t *testing.T) {
	for code, want := range map[int]string{0: "NOERROR", 3: "NXDOMAIN", 5: "REFUSED", 16: "BADVERS", 23: "BADCOOKIE", 15: "RCODE15", -1: "RCODE-1"} {
		if got := RcodeName(code); got != want {
			t.Errorf("%d is called %s, want %s", code, got, want)
		}
	}
}

func TestPortsAndLabelsAreWrittenAsTheyAreTyped(t *testing.T) {
	for want, p := range map[string]Port{
		"80/tcp":           {Port: 80},
		"http=80:8080/tcp": {Name: "http", Port: 80, Target: 8080, Protocol: "tcp"},
		"dns=53/udp":       {Name: "dns", Port: 53, Target: 53, Protocol: "udp"},
		"http=80:web/tcp":  {Name: "http", Port: 80, TargetName: "web", NodePort: 30080},
	} {
		if got := p.String(); got != want {
			t.Errorf("%+v is %s, want %s", p, got, want)
		}
	}
	if got := Labels(map[string]string{"b": "2", "a": ""}); got != "a=,b=2" {
		t.Errorf("labels %s", got)
	}
}

func TestWhatBelongsToServicesReadsAsItIsTyped(t *testing.T) {
	for want, got := range map[string]string{
		"30080/tcp":         Port{Port: 80, NodePort: 30080}.NodePortText(),
		"dns=30053/udp":     Port{Name: "dns", Port: 53, NodePort: 30053, Protocol: "udp"}.NodePortText(),
		"dns=auto/udp":      Port{Name: "dns", Port: 53, NodePortAuto: true, Protocol: "udp"}.NodePortText(),
		"":                  Service{}.AffinityText() + (*Health)(nil).String(),
		"client-ip=3h":      Service{Affinity: 10800}.AffinityText(),
		"client-ip=1h30m":   Service{Affinity: 5400}.AffinityText(),
		"client-ip=1h0m30s": Service{Affinity: 3630}.AffinityText(),
		"client-ip=20m":     Service{Affinity: 1200}.AffinityText(),
		"client-ip=10s":     Service{Affinity: 10}.AffinityText(),
		"tcp":               (&Health{Type: "tcp"}).String(),
		"http:/ok, every 10s, timeout 1s, 3 in a row": (&Health{Type: "http", Path: "/ok", Interval: 10, Timeout: 1, Threshold: 3}).String(),
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
