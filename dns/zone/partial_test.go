package zone

import "testing"

func TestWhatIsNotKnownYetIsNotDenied(t *testing.T) {
	st := example()
	var b Builder
	st.Partial = true
	partial := b.Build(st)
	st.Partial = false
	whole := b.Build(st)
	for name, denied := range map[string]bool{
		"nobody.default.cluster.local": true,
		"9.9.1.10.in-addr.arpa":        true,
		"web.default.cluster.local":    false,
		"cluster.local":                false,
		// An alias of what is not known.
		"vanished.default.svc.cluster.local": true,
	} {
		wire, _ := Wire(name)
		a, ours := partial.Lookup(wire, typeA)
		if !ours || a.NameError || a.Unknown != denied || len(a.Apex) == 0 {
			t.Errorf("partial: %s: %+v", name, a)
		}
		if a, ours = whole.Lookup(wire, typeA); !ours || a.Unknown || a.NameError != denied {
			t.Errorf("whole: %s: %+v", name, a)
		}
	}
	if x := partial.Explain("vanished.default.svc.cluster.local", typeA); x.Rcode != "SERVFAIL" || len(x.Notes) != 1 || len(x.Answers) > 0 {
		t.Errorf("%+v", x)
	}
	if x := partial.Explain("nobody.default.cluster.local", typeA); x.Rcode != "SERVFAIL" || len(x.Notes) == 0 {
		t.Errorf("%+v", x)
	}
}

func TestShortNamesAreNoStrangersBusiness(t *testing.T) {
	z := (&Builder{}).Build(example())
	for name, nothing := range map[string]bool{"web.default": true, "frontend.default.svc": true, "10-1-1-2.default.pod": true, "svc": false, "default": false} {
		wire, _ := Wire(name)
		a, ours := z.Lookup(wire, typeA)
		if !ours || a.NameError != nothing || a.Set.Type != 0 || len(a.Apex) == 0 {
			t.Errorf("%s: %+v, ours %v", name, a, ours)
		}
	}
	for _, name := range []string{".", "com", "svc.example.com", "mydefault", "xsvc"} {
		wire, _ := Wire(name)
		if _, ours := z.Lookup(wire, typeA); ours {
			t.Errorf("%s is taken for ours", name)
		}
	}
}
