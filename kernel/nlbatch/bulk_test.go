package nlbatch

import (
	"errors"
	"testing"

	"github.com/flanneld/flanneld/kernel/netns/netnstest"
	"golang.org/x/sys/unix"
)

// TestRefusalsThatDidNotFitAreAskedForAgain gives the socket no room for the
// answers of a whole batch.
func TestRefusalsThatDidNotFitAreAskedForAgain(t *testing.T) {
	ns := netnstest.New(t)
	var c *Conn
	if err := ns.Do(func() (err error) { c, err = Dial(unix.NETLINK_ROUTE); return err }); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SizeForBulk()
	if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 128<<10); err != nil {
		t.Fatal(err)
	}
	const n = 6000
	var b Batch
	for range n {
		b.Message(unix.RTM_DELLINK, 0, []byte{4: 0xff, 5: 0xff, 15: 0}) // no such interface
	}
	next := 0
	err := c.Apply(&b, func(i int, err *Error) {
		if i != next || !errors.Is(err, unix.ENODEV) {
			t.Fatalf("refusal of %d (want %d): %v", i, next, err)
		}
		next++
	})
	if err != nil || next != n {
		t.Errorf("%d refusals, %v", next, err)
	}
	// The socket still answers what is asked next.
	b.Reset()
	b.Message(unix.RTM_GETLINK, unix.NLM_F_DUMP, make([]byte, 16))
	links := 0
	if err := c.Dump(&b, func([]byte) error { links++; return nil }); err != nil || links == 0 {
		t.Errorf("%d links, %v", links, err)
	}
}
