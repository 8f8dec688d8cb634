package subnet

import (
	"testing"

	"github.com/flanneld/flanneld/store"
	"github.com/flanneld/flanneld/store/mem"
)

func TestReleaseTakesOnlyWhatIsTheHosts(t *testing.T) {
	const prefix = "/n"
	values := map[string]string{
		"/n/subnets/10.1.1.0-24": `{"PublicIP":"10.0.0.1","Identity":"a"}`,
		"/n/subnets/10.1.2.0-24": `{"PublicIP":"10.0.0.2","Identity":"b"}`,
		"/n/subnets/10.1.3.0-24": `{"PublicIP":"10.0.0.3"}`,
		"/n/subnets/10.1.4.0-24": `garbage`,
		"/n/hosts/one":           `{"Name":"one","Identity":"a"}`,
		"/n/hosts/two":           `{"Name":"two","Identity":"b"}`,
		"/n/config":              `{"Identity":"a"}`,
	}
	for identity, gone := range map[string][]string{
		"a": {"/n/hosts/one", "/n/subnets/10.1.1.0-24"}, "": nil, "nobody": nil,
	} {
		t.Run("identity "+identity, func(t *testing.T) {
			st := mem.New()
			for k, v := range values {
				if _, err := st.Commit(t.Context(), store.Txn{Put: []store.Put{{Key: k, Value: []byte(v)}}}); err != nil {
					t.Fatal(err)
				}
			}
			if err := Release(t.Context(), st, prefix, identity); err != nil {
				t.Fatal(err)
			}
			left, err := st.List(t.Context(), prefix)
			if err != nil {
				t.Fatal(err)
			}
			if len(left.KVs) != len(values)-len(gone) {
				t.Errorf("%d keys left", len(left.KVs))
			}
			for _, key := range gone {
				if kv, err := st.Get(t.Context(), key); err != nil || kv.ModRevision != 0 {
					t.Errorf("%s is still there: %v", key, err)
				}
			}
		})
	}
}
