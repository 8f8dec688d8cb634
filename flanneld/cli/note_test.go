package cli

import (
	"testing"

	"github.com/flanneld/flanneld/flanneld/api"
)

func TestWhatNobodyAskedForIsSaid(t *testing.T) {
	c, _ := client(t, map[string]any{
		"PUT /v1/names/default/default/db": api.Change{Changed: true, FQDN: "db.default.cluster.local", Addresses: ips("192.0.2.7"), Note: "there was another"},
	})
	code, out, errs := do(t, c, "dns add db 192.0.2.7")
	if code != exitOK || out != "db.default.cluster.local 192.0.2.7\n" || errs != "there was another\n" {
		t.Errorf("exit code %d, %q, %q", code, out, errs)
	}
}
