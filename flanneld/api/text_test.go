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
	} {
		if got := p.String(); got != want {
			t.Errorf("%+v is %s, want %s", p, got, want)
		}
	}
	if got := Labels(map[string]string{"b": "2", "a": ""}); got != "a=,b=2" {
		t.Errorf("labels %s", got)
	}
}
