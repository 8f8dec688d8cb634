package dnswire

import (
	"net/netip"
	"slices"
	"testing"
)

func TestAnswersAreReadAsTheyWerePacked(t *testing.T) {
	for name, addrs := range map[string][]netip.Addr{
		"none":  nil,
		"IPv4":  {netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("10.1.0.3")},
		"IPv6":  {netip.MustParseAddr("fd00::2")},
		"mixed": {netip.MustParseAddr("fd00::2"), netip.MustParseAddr("10.1.0.3")},
	} {
		t.Run(name, func(t *testing.T) {
			q := Query(7, "Web.default.cluster.local.", A)
			asked, qtype, end, err := Question(q)
			if err != nil || asked != "Web.default.cluster.local" || qtype != A {
				t.Fatalf("question read as %q %d: %v", asked, qtype, err)
			}
			r, err := ParseReply(AppendAnswer(nil, q, end, NameError, 5, addrs...))
			if err != nil || r.ID != 7 || r.RCode != NameError || r.Answers != len(addrs) || !slices.Equal(r.Addrs, addrs) {
				t.Errorf("read %+v: %v", r, err)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	q := Query(7, "web.default.cluster.local", A)
	f.Add(q)
	f.Add(AppendAnswer(nil, q, len(q)-11, 0, 5, netip.MustParseAddr("10.1.0.2")))
	f.Fuzz(func(_ *testing.T, msg []byte) {
		_, _ = ParseReply(msg)
		_, _, _, _ = Question(msg)
	})
}
