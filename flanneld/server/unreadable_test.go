package server

import (
	"strings"
	"testing"

	"github.com/flanneld/flanneld/dns/zone"
	"github.com/flanneld/flanneld/flanneld/api"
)

func TestToReplaceARecordThatCannotBeReadIsSaid(t *testing.T) {
	b := &book{names: map[string]*zone.Name{"default/default/db": {Tenant: "default", Network: "default", Name: "db"}}}
	c := client(t, b)
	ch, err := c.AddName(t.Context(), api.Name{Tenant: "default", Network: "default", Name: "db", Addresses: addrs("192.0.2.7")})
	if err != nil || !ch.Changed || !strings.Contains(ch.Note, "could not be read") {
		t.Errorf("%+v, %v", ch, err)
	}
	ch, err = c.AddName(t.Context(), api.Name{Tenant: "default", Network: "default", Name: "db", Addresses: addrs("192.0.2.8")})
	if err != nil || len(ch.Addresses) != 2 || ch.Note != "" {
		t.Errorf("%+v, %v", ch, err)
	}
}
