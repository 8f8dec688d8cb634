package server

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/service"
)

// cluster is Publications and Endpoints in memory.
type cluster struct {
	published map[string]*service.Publication
	notes     []string
	refuses   error // every publication
	endpoints []EndpointState
	labelled  []string
	book      *book // for its edit
}

var (
	_ Publications = &cluster{}
	_ Endpoints    = &cluster{}
)

func (c *cluster) Publications(context.Context) (out []PublicationState, err error) {
	for _, k := range slices.Sorted(maps.Keys(c.published)) {
		out = append(out, PublicationState{c.published[k], 2, 1})
	}
	return out, nil
}

func (c *cluster) CheckPublication(context.Context, *service.Publication) ([]string, error) {
	return c.notes, c.refuses
}

func (c *cluster) EditPublication(_ context.Context, of *service.Publication, f func(*service.Publication) (*service.Publication, error)) error {
	return edit(c.book, c.published, of.Key(""), f)
}

func (c *cluster) Endpoints(context.Context) ([]EndpointState, error) { return c.endpoints, nil }

func (c *cluster) Label(_ context.Context, container string, to api.Relabel) (api.Relabelled, error) {
	c.labelled = append(c.labelled, fmt.Sprint(container, to.Set, to.Remove))
	return api.Relabelled{Changed: true, Container: "0123456789abcdef", Labels: to.Set}, nil
}

func clusterClient(t *testing.T) (*api.Client, *cluster) {
	t.Helper()
	c := &cluster{published: map[string]*service.Publication{}, book: newBook()}
	socket := filepath.Join(t.TempDir(), "s")
	start(t, fake{}, Options{Socket: socket, Publications: c, Endpoints: c})
	return api.NewClient(socket), c
}

func web() api.Publication {
	return api.Publication{Tenant: "default", Host: "host1", Port: 8080, Target: "web", TargetPort: 80}
}

func TestPortIsPublishedListedAndTakenBack(t *testing.T) {
	c, held := clusterClient(t)
	held.notes = []string{"no container is called web"}
	for i := range 2 {
		done, err := c.Publish(t.Context(), web())
		if err != nil || done.Changed != (i == 0) || !slices.Equal(done.Notes, held.notes) {
			t.Fatalf("%d: %+v, %v", i, done, err)
		}
	}
	dns := api.Publication{Tenant: "default", Host: "host1", Port: 8080, Protocol: "udp", Network: "default", Target: "0123456789AB", TargetPort: 53}
	if _, err := c.Publish(t.Context(), dns); err != nil {
		t.Fatal(err)
	}
	all, err := c.Publications(t.Context())
	if err != nil || len(all) != 2 || *all[0].State != (api.PublicationState{Containers: 2, LeftOut: 1}) {
		t.Fatalf("%+v, %v", all, err)
	}
	all[0].State = nil
	want := web()
	want.Protocol, want.Network = "tcp", "default"
	if all[0] != want || all[1].Protocol != "udp" || all[1].Target != "0123456789ab" || held.book.writes != 2 {
		t.Errorf("%+v, %d writes", all, held.book.writes)
	}
	for range 2 {
		err = c.Unpublish(t.Context(), web())
	}
	if status(err) != http.StatusNotFound || !strings.Contains(err.Error(), "nothing is published at host1:8080: flanneld publish list") || len(held.published) != 1 {
		t.Errorf("%v, left %v", err, held.published)
	}
}

func TestPortThatLeadsElsewhereStays(t *testing.T) {
	c, held := clusterClient(t)
	if _, err := c.Publish(t.Context(), web()); err != nil {
		t.Fatal(err)
	}
	other := web()
	other.Target = "db"
	_, err := c.Publish(t.Context(), other)
	if status(err) != http.StatusConflict || !strings.Contains(err.Error(), "host1:8080 already leads to web:80: nothing was changed; flanneld publish remove host1:8080 first") || held.book.writes != 1 {
		t.Errorf("%v, %d writes", err, held.book.writes)
	}
}

func TestPublicationsThatCannotBeAreRefused(t *testing.T) {
	c, held := clusterClient(t)
	for what, tc := range map[string]struct {
		change func(*api.Publication)
		code   int
		says   string
	}{
		"port 0":       {func(p *api.Publication) { p.Port = 0 }, 400, "65535"},
		"a node port":  {func(p *api.Publication) { p.Port = 30000 }, 400, "node ports"},
		"target port":  {func(p *api.Publication) { p.TargetPort = 0 }, 400, "TargetPort"},
		"no target":    {func(p *api.Publication) { p.Target = "" }, 400, "Target"},
		"short id":     {func(p *api.Publication) { p.Target = "a.b" }, 400, "beginning of its id"},
		"protocol":     {func(p *api.Publication) { p.Protocol = "icmp" }, 400, "sctp"},
		"host":         {func(p *api.Publication) { p.Host = "a b" }, 400, "host's name"},
		"network":      {func(p *api.Publication) { p.Network = "blue" }, 404, `"default"`},
		"tenant":       {func(p *api.Publication) { p.Tenant = "blue" }, 404, `"default"`},
		"what has why": {func(*api.Publication) { held.refuses = api.Invalid("host", "host1", "there is none of that name") }, 400, "none of that name"},
	} {
		held.refuses = nil
		p := web()
		tc.change(&p)
		if _, err := c.Publish(t.Context(), p); status(err) != tc.code || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if held.book.writes > 0 {
		t.Errorf("%d writes", held.book.writes)
	}
}

func TestEndpointsAreListedWithWhatIsWrong(t *testing.T) {
	c, held := clusterClient(t)
	held.endpoints = []EndpointState{
		{&endpoint.Endpoint{Tenant: "default", Network: "default", Host: "host1", Container: "c1", IfName: "eth0", Addresses: addrs("10.1.1.2"), Names: []string{"web"}, Labels: map[string]string{"app": "sample"}}, ""},
		{&endpoint.Endpoint{Host: "host2", Container: "c2"}, "host2 is silent"},
	}
	all, err := c.Endpoints(t.Context())
	if err != nil || len(all) != 2 || all[0].NotReady != "" || all[0].Labels["app"] != "sample" || all[0].Interface != "eth0" || all[1].NotReady != "host2 is silent" {
		t.Errorf("%+v, %v", all, err)
	}
}

func TestLabelsAreCheckedBeforeTheyAreSet(t *testing.T) {
	c, held := clusterClient(t)
	if done, err := c.Label(t.Context(), "web", api.Relabel{Set: map[string]string{"app": "sample"}, Remove: []string{"flanneld.io/old"}}); err != nil || !done.Changed || done.Labels["app"] != "sample" {
		t.Errorf("%+v, %v", done, err)
	}
	for says, to := range map[string]api.Relabel{
		"at least one":           {},
		"set and removed":        {Set: map[string]string{"a": "b"}, Remove: []string{"a"}},
		"from 1 to 100":          {Set: map[string]string{"flanneld.io/weight": "1000"}},
		"from 1 to 65535":        {Set: map[string]string{"flanneld.io/port-http": "http"}},
		"flanneld.io/port-NAME;": {Set: map[string]string{"flanneld.io/x": "y"}},
		"printable":              {Set: map[string]string{"a": "\x1b"}},
	} {
		if _, err := c.Label(t.Context(), "web", to); status(err) != 400 || !strings.Contains(err.Error(), says) {
			t.Errorf("%+v: %v", to, err)
		}
	}
	if want := []string{"webmap[app:sample] [flanneld.io/old]"}; !slices.Equal(held.labelled, want) {
		t.Errorf("%q", held.labelled)
	}
}

func TestWhatAHostDoesNotServeIsUnknownThere(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	start(t, fake{}, Options{Socket: socket})
	c := api.NewClient(socket)
	if _, err := c.Services(t.Context()); err == nil || !strings.Contains(err.Error(), "does not know /v1/services") {
		t.Error(err)
	}
	if _, err := c.Publications(t.Context()); err == nil || !strings.Contains(err.Error(), "does not know /v1/publications") {
		t.Error(err)
	}
}
