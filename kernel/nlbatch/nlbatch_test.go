package nlbatch_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"github.com/flanneld/flanneld/kernel/nlbatch"
	"golang.org/x/sys/unix"
)

func dial(t *testing.T) *nlbatch.Conn {
	t.Helper()
	n := netnstest.New(t)
	var c *nlbatch.Conn
	if err := n.Do(func() (err error) { c, err = nlbatch.Dial(unix.NETLINK_ROUTE); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func addBridge(b *nlbatch.Batch, name string) {
	b.Message(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, make([]byte, unix.SizeofIfInfomsg))
	b.String(unix.IFLA_IFNAME, name)
	b.Nest(unix.IFLA_LINKINFO, func() { b.String(unix.IFLA_INFO_KIND, "bridge") })
}

func names(t *testing.T, c *nlbatch.Conn) (names []string) {
	t.Helper()
	var b nlbatch.Batch
	b.Message(unix.RTM_GETLINK, unix.NLM_F_DUMP, make([]byte, unix.SizeofIfInfomsg))
	for m, err := range c.Get(&b) {
		if err != nil {
			t.Fatal(err)
		}
		for kind, data := range nlbatch.Attrs(m[unix.SizeofIfInfomsg:]) {
			if kind == unix.IFLA_IFNAME {
				names = append(names, string(data[:len(data)-1]))
			}
		}
	}
	return names
}

func TestEachMessageHasItsOwnOutcome(t *testing.T) {
	c := dial(t)
	var b nlbatch.Batch
	addBridge(&b, "one")
	addBridge(&b, "one")
	addBridge(&b, "two")
	for range 2 { // the second time all three exist
		out, err := c.Do(&b)
		if err != nil {
			t.Fatal(err)
		}
		if !errors.Is(out[1], unix.EEXIST) {
			t.Errorf("the same name again: %v", out[1])
		}
	}
	if got := names(t, c); !slices.Equal(got, []string{"lo", "one", "two"}) {
		t.Errorf("links %q", got)
	}
}

func TestKernelExplanationIsKept(t *testing.T) {
	c := dial(t)
	var b nlbatch.Batch
	b.Message(unix.RTM_NEWLINK, unix.NLM_F_CREATE, make([]byte, unix.SizeofIfInfomsg))
	b.Nest(unix.IFLA_LINKINFO, func() { b.String(unix.IFLA_INFO_KIND, "nosuchkind") })
	out, err := c.Do(&b)
	if err != nil {
		t.Fatal(err)
	}
	e, ok := errors.AsType[*nlbatch.Error](out[0])
	if !ok || e.Errno != unix.EOPNOTSUPP || e.Text == "" {
		t.Errorf("got %v", out[0])
	}
}

func TestStoppingEarlyLeavesTheSocketUsable(t *testing.T) {
	c := dial(t)
	var b nlbatch.Batch
	for _, n := range []string{"a", "b", "c"} {
		addBridge(&b, n)
	}
	if _, err := c.Do(&b); err != nil {
		t.Fatal(err)
	}
	b.Reset()
	b.Message(unix.RTM_GETLINK, unix.NLM_F_DUMP, make([]byte, unix.SizeofIfInfomsg))
	for range c.Get(&b) {
		break
	}
	if got := names(t, c); len(got) != 4 {
		t.Errorf("links %q", got)
	}
}

func FuzzAttrs(f *testing.F) {
	f.Add([]byte{8, 0, 3, 0, 'a', 'b', 'c', 0})
	f.Add([]byte{3, 0, 3, 0, 5, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		total := 0
		for _, data := range nlbatch.Attrs(b) {
			total += 4 + len(data)
		}
		if total > len(b) {
			t.Errorf("%d bytes out of %d", total, len(b))
		}
	})
}
