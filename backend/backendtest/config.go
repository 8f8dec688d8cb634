package backendtest

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/subnet"
)

// testFormer changes the configuration while nobody looks.
func testFormer(t *testing.T, s Suite, fams Families) {
	c := NewCluster(t, s, fams, 2)
	c.up(t)
	a, b := c.Hosts[0], c.Hosts[1]
	before := lines(a.State(t))
	a.Device.Close()
	a.Cleanup(t)
	c.Config.Backend.Raw = s.Former
	a.Open(t)
	a.Sync(t)
	former := a.Device.Info()
	a.Device.Close()

	c.Config.Backend.Raw = s.Options
	a.Open(t)
	if a.Device.Info().Link == former.Link {
		t.Fatalf("both have device %s", former.Link)
	}
	ip(t, a.NS, "link", "show", former.Link) // until there is another way
	a.Sync(t, b.Own)
	if got := lines(a.State(t)); got != before {
		t.Errorf("the former configuration has left something:\n%s\nwanted:\n%s", got, before)
	}
	a.Reach(t, b)
	b.Reach(t, a)
}

// testWrong has Check and Open refuse the same, and nothing happen.
func testWrong(t *testing.T, s Suite, fams Families) {
	c := NewCluster(t, s, fams, 1)
	h, driver := c.Hosts[0], s.Driver()
	if err := driver.Check(c.Config); err != nil {
		t.Errorf("good options are refused: %v", err)
	}
	before := lines(h.State(t))
	refused := func(who, field string, err error) {
		t.Helper()
		ce, ok := errors.AsType[*subnet.ConfigError](err)
		if !ok || ce.Field != field || ce.Remedy == "" {
			t.Errorf("%s: got %v, want a remedy for %s", who, err, field)
		}
	}
	for field, options := range s.Wrong {
		c.Config.Backend.Raw = json.RawMessage(options)
		refused("Check", field, driver.Check(c.Config))
		err := h.NS.Do(func() error {
			var dev backend.Device
			dev, err := driver.Open(t.Context(), c.Config, h.Underlay, "identity")
			if err == nil {
				dev.Close()
			}
			return err
		})
		refused("Open", field, err)
	}
	if got := lines(h.State(t)); got != before {
		t.Errorf("the kernel was touched:\n%s\nwas:\n%s", got, before)
	}
}
