package service

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/store"
	"github.com/flanneld/flanneld/store/mem"
	"github.com/flanneld/flanneld/subnet"
)

func parsePublication(name, value string) (*Publication, error) {
	return ParsePublication("/p", store.KV{Key: "/p/published/" + name, Value: []byte(value)})
}

func TestPublicationsAreReadAsTheyWereWritten(t *testing.T) {
	for _, p := range []*Publication{
		published("host1", "web"),
		{Tenant: "blue", Host: "Host.example-2", Protocol: "sctp", Port: 1, Network: "back", Target: "0123456789AB_.", TargetPort: 65535},
		{Tenant: "blue", Host: "h", Protocol: "udp", Port: 29999, Network: "back", Target: strings.Repeat("0a", 64), TargetPort: 1},
	} {
		if err := p.Validate(); err != nil {
			t.Error(err)
			continue
		}
		value, err := p.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParsePublication("/p", store.KV{Key: p.Key("/p"), Value: value})
		if err != nil || !reflect.DeepEqual(got, p) {
			t.Errorf("%s %s is read as %+v, %v", p.Key("/p"), value, got, err)
		}
	}
}

func TestWrongPublicationsAreRefusedByFieldValueAndRemedy(t *testing.T) {
	const good = `{"Network":"default","Target":"web","TargetPort":80}`
	for q, want := range map[string]string{
		`default/host1/tcp-80 ` + good: "",
		`default/host1/tcp-80 {"Network":"default","Target":"web","TargetPort":80,"Future":1}`: "",
		`default/host1 ` + good:                                                            "must end in <tenant>/<host>/<protocol>-<port>",
		`default/host1/tcp-80/x ` + good:                                                   "must end in",
		`default/host1/tcp ` + good:                                                        "must end in",
		`default/host1/tcp-080 ` + good:                                                    "must end in",
		`default/host1/tcp-65536 ` + good:                                                  "must end in",
		`default/host1/icmp-8 ` + good:                                                     `Protocol = "icmp": must be tcp, udp or sctp`,
		`default/host1/tcp-0 ` + good:                                                      "Port = 0: must be from 1 to 65535",
		`default/host1/tcp-30000 ` + good:                                                  "Port = 30000: must not be from 30000 to 32767",
		`default/host1/udp-32767 ` + good:                                                  "Port = 32767: must not be",
		`Default/host1/tcp-80 ` + good:                                                     `Tenant = "Default": must be a DNS label`,
		`default/-host/tcp-80 ` + good:                                                     `Host = "-host": must be a host's name`,
		`default//tcp-80 ` + good:                                                          `Host = "": must be`,
		`default/host1/tcp-80 []`:                                                          "must be a publication's JSON object",
		`default/host1/tcp-80 {"Target":7}`:                                                "must be a publication's JSON object",
		`default/host1/tcp-80 {}`:                                                          "Network: is missing; correct it or delete the key",
		`default/host1/tcp-80 {"Network":"svc"}`:                                           `Network = "svc": is reserved`,
		`default/host1/tcp-80 {"TargetPort":-1}`:                                           "TargetPort = -1: must be from 1 to 65535",
		`default/host1/tcp-80 {"Network":"n"}`:                                             "TargetPort = 0",
		`default/host1/tcp-80 ` + good[:len(good)-len(`80}`)] + `70000}`:                   "TargetPort = 70000",
		`default/host1/tcp-80 {"Network":"n","TargetPort":1}`:                              "Target: is missing",
		`default/host1/tcp-80 {"Network":"n","TargetPort":1,"Target":"Web"}`:               `Target = "Web": must be a container's name`,
		`default/host1/tcp-80 {"Network":"n","TargetPort":1,"Target":"a b c d e f g h i"}`: "must be a container's name",
		`default/host1/tcp-80 {"Network":"n","TargetPort":1,"Target":"` + strings.Repeat("x", maxText+1) + `"}`: "must be a container's name",
		`default/host1/tcp-80 ` + strings.Repeat(" ", maxPublication) + `{}`:                                    "must be at most 4 KiB",
		`default/` + strings.Repeat("h", maxHost+1) + `/tcp-80 ` + good:                                         "must be a host's name",
	} {
		name, value, _ := strings.Cut(q, " ")
		p, err := parsePublication(name, value)
		if want == "" {
			if err != nil {
				t.Errorf("%s: %v", q, err)
			}
			continue
		}
		if _, ok := errors.AsType[*subnet.RecordError](err); !ok || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "/p/published/") {
			t.Errorf("%.90q: %+v, %v, want %s", q, p, err, want)
		}
		if err != nil && (len(err.Error()) > 500 || strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' })) {
			t.Errorf("%.90q: not fit for a line: %q", q, err.Error())
		}
	}
	if _, err := ParsePublication("/p", store.KV{Key: "/elsewhere"}); err == nil {
		t.Error("a key of something else is taken")
	}
}

func FuzzParsePublication(f *testing.F) {
	value, err := published("host1", "web").Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add("default/host1/tcp-80", value)
	f.Add("default/host1/udp-65535", []byte(`{"Network":"n","TargetPort":1,"Target":"0123456789AB"}`))
	f.Fuzz(func(t *testing.T, name string, value []byte) {
		p, err := parsePublication(name, string(value))
		if err != nil {
			if strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' }) {
				t.Fatalf("not fit for a line: %q", err.Error())
			}
			return
		}
		again, err := p.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if p.Key("/p") != "/p/published/"+name {
			t.Fatalf("%s is of the key %s", name, p.Key("/p"))
		}
		same, err := ParsePublication("/p", store.KV{Key: p.Key("/p"), Value: again})
		if err != nil || *same != *p {
			t.Fatalf("%s is read as %+v, %v", again, same, err)
		}
	})
}

func TestPublicationsAreWatched(t *testing.T) {
	st := mem.New()
	p := published("host1", "web")
	value, err := p.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Commit(t.Context(), store.Txn{Put: []store.Put{{Key: p.Key("/p"), Value: value}, {Key: "/p/published/x", Value: value}}}); err != nil {
		t.Fatal(err)
	}
	for r, err := range WatchPublished(t.Context(), st, "/p") {
		if err != nil || len(r.Values) != 1 || r.Values[0].created == 0 || len(r.Problems) != 1 {
			t.Fatalf("%+v, %v", r, err)
		}
		if p.created = r.Values[0].created; *r.Values[0] != *p {
			t.Fatalf("%+v", r.Values[0])
		}
		break
	}
}
