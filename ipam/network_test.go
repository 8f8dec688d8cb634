package ipam

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func open(t testing.TB) *Network {
	t.Helper()
	n, err := Open(t.TempDir(), "podnet")
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func sets(t testing.TB, rs ...Range) []Set {
	t.Helper()
	var out []Set
	for _, r := range rs {
		out = append(out, Set{r})
	}
	out, err := CanonicalSets(out)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func who(i int) Record {
	k := Key{fmt.Sprintf("c%d", i), "eth0"}
	return Record{ContainerID: k.ContainerID, IfName: k.IfName, HostLink: k.HostLink("podnet")}
}

// reserve takes addresses and lets go of the lock.
func reserve(t testing.TB, n *Network, r Record, q Request) []string {
	t.Helper()
	h, err := n.Reserve(r, q)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := h.Attached(); err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, p := range h.Record.Addresses {
		out = append(out, p.String())
	}
	return out
}

func release(t testing.TB, n *Network, k Key) {
	t.Helper()
	h, err := n.Find(k)
	if err != nil || h == nil {
		t.Fatalf("find %v: %v %v", k, h, err)
	}
	if err := h.Release(); err != nil {
		t.Fatal(err)
	}
}

func TestAddressesGoRoundAndSkipTheGateway(t *testing.T) {
	n := open(t)
	s := sets(t, rng("10.1.2.0/29", "", "", ""), rng("fd00::/64", "", "", ""))
	var got []string
	for i := range 8 {
		got = append(got, reserve(t, n, who(i), Request{Sets: s})[0])
		release(t, n, Key{fmt.Sprintf("c%d", i), "eth0"})
	}
	want := "10.1.2.2/29 10.1.2.3/29 10.1.2.4/29 10.1.2.5/29 10.1.2.6/29 10.1.2.2/29 10.1.2.3/29 10.1.2.4/29"
	if strings.Join(got, " ") != want {
		t.Errorf("got  %v\nwant %s", got, want)
	}
}

func TestReservationIsACompleteRecord(t *testing.T) {
	n := open(t)
	s := sets(t, rng("10.1.2.0/24", "", "", ""), rng("fd00::/64", "", "", ""))
	in := who(1)
	in.Labels = map[string]string{"app": "web"}
	h, err := n.Reserve(in, Request{Sets: s, Fill: func(r *Record) { r.MAC = "0a:58:0a:01:02:02" }})
	if err != nil {
		t.Fatal(err)
	}
	read := func() Record {
		r, ok, err := n.Peek(Key{"c1", "eth0"})
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		return r
	}
	r := read()
	if r.Attached || r.MAC == "" || r.Labels["app"] != "web" || r.Network != "podnet" || r.BootID == "" ||
		fmt.Sprint(r.Addresses, r.Gateways) != "[10.1.2.2/24 fd00::2/64] [10.1.2.1 fd00::1]" {
		t.Errorf("record %+v", r)
	}
	if err := h.Attached(); err != nil {
		t.Fatal(err)
	}
	h.Close()
	if !read().Attached {
		t.Error("not attached")
	}
}

func TestFullRangeSaysWhoHasTheAddresses(t *testing.T) {
	n := open(t)
	s := sets(t, rng("10.1.2.0/29", "", "", ""))
	for i := range 5 {
		reserve(t, n, who(i), Request{Sets: s})
	}
	_, err := n.Reserve(who(9), Request{Sets: s})
	if !errors.Is(err, ErrFull) {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{"all 5 are taken", "10.1.2.2 by c0 eth0", "podnet", n.Dir()} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in %v", want, err)
		}
	}
	if used, err := n.Usage(s[0]); err != nil || used != s[0].Size() {
		t.Errorf("usage %d of %d, %v", used, s[0].Size(), err)
	}
	release(t, n, Key{"c3", "eth0"})
	if got := reserve(t, n, who(9), Request{Sets: s}); got[0] != "10.1.2.5/29" {
		t.Errorf("got %v", got)
	}
}

func TestSecondReservationOfAnAttachmentIsRefused(t *testing.T) {
	n := open(t)
	s := sets(t, rng("10.1.2.0/24", "", "", ""))
	reserve(t, n, who(1), Request{Sets: s})
	if _, err := n.Reserve(who(1), Request{Sets: s}); !errors.Is(err, ErrExists) {
		t.Errorf("got %v", err)
	}
	other := who(1)
	other.IfName = "eth1"
	if got := reserve(t, n, other, Request{Sets: s}); got[0] != "10.1.2.3/24" {
		t.Errorf("second interface got %v", got)
	}
}

func TestRequestedAddresses(t *testing.T) {
	n := open(t)
	s := sets(t, rng("10.1.2.0/24", "", "", ""), rng("fd00::/64", "", "", ""))
	want := func(a ...string) (out []netip.Addr) {
		for _, x := range a {
			out = append(out, netip.MustParseAddr(x))
		}
		return out
	}
	if got := reserve(t, n, who(1), Request{Sets: s, Want: want("fd00::77")}); got[0] != "10.1.2.2/24" || got[1] != "fd00::77/64" {
		t.Errorf("got %v", got)
	}
	for _, c := range []struct {
		want []netip.Addr
		err  error
		text string
	}{
		{want("fd00::77"), ErrTaken, "by c1 eth0"},
		{want("10.1.2.1"), ErrTaken, "gateway"},
		{want("10.9.9.9"), ErrOutside, "10.9.9.9"},
		{want("10.1.2.8", "10.1.2.9"), ErrOutside, "10.1.2.9"},
	} {
		if _, err := n.Reserve(who(2), Request{Sets: s, Want: c.want}); !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%v: got %v", c.want, err)
		}
	}
	if all, _ := n.entries(); len(all) != 1 {
		t.Errorf("refused requests left %v", all)
	}
}

func TestStaleRecordsAreGivenUpOnlyWhenUnlockedAndNeeded(t *testing.T) {
	n := open(t)
	s := sets(t, rng("10.1.2.0/29", "", "", ""))
	for i := range 4 {
		reserve(t, n, who(i), Request{Sets: s})
	}
	working, err := n.Reserve(who(4), Request{Sets: s}) // an ADD in progress
	if err != nil {
		t.Fatal(err)
	}
	defer working.Close()
	var asked []string
	stale := func(r Record) bool {
		asked = append(asked, r.ContainerID)
		return r.ContainerID == "c2" || r.ContainerID == "c4"
	}
	if got := reserve(t, n, who(5), Request{Sets: s, Stale: stale}); got[0] != "10.1.2.4/29" {
		t.Errorf("got %v", got)
	}
	if slices.Contains(asked, "c4") {
		t.Error("a record in use was asked about")
	}
	if _, err := n.Reserve(who(6), Request{Sets: s, Stale: func(Record) bool { return false }}); !errors.Is(err, ErrFull) {
		t.Errorf("got %v", err)
	}
}

func TestReservationForAnotherPluginIsNeverStale(t *testing.T) {
	n := open(t)
	s := sets(t, rng("10.1.2.0/30", "", "", ""))
	alone := who(1)
	alone.HostLink = ""
	reserve(t, n, alone, Request{Sets: s})
	if _, err := n.Reserve(who(2), Request{Sets: s, Stale: func(Record) bool { return true }}); !errors.Is(err, ErrFull) {
		t.Errorf("got %v", err)
	}
}

func TestRecordsOfAnotherBootAreSwept(t *testing.T) {
	n := open(t)
	s := sets(t, rng("10.1.2.0/24", "", "", ""))
	before := *n
	before.boot = "another"
	for i := range 3 {
		r := who(i)
		if i == 1 {
			r.HostLink = ""
		}
		reserve(t, &before, r, Request{Sets: s})
	}
	reserve(t, n, who(9), Request{Sets: s})
	if all, _ := n.entries(); len(all) != 1 || all[0].id != "c9" {
		t.Errorf("left %v", all)
	}
}

func TestEmptyAndBrokenRecordFilesDoNotLeakForEver(t *testing.T) {
	n := open(t)
	s := sets(t, rng("10.1.2.0/30", "", "", ""))
	for _, content := range []string{"", "{", `{"attached":1}`, "\x00\x00"} {
		reserve(t, n, who(1), Request{Sets: s})
		path := filepath.Join(n.Dir(), Key{"c1", "eth0"}.fileName([]netip.Addr{netip.MustParseAddr("10.1.2.2")}))
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		var seen Record
		got := reserve(t, n, who(2), Request{Sets: s, Stale: func(r Record) bool { seen = r; return true }})
		if got[0] != "10.1.2.2/30" || seen.HostLink != who(1).HostLink || fmt.Sprint(seen.Addresses) != "[10.1.2.2/32]" {
			t.Errorf("%q: got %v, asked about %+v", content, got, seen)
		}
		release(t, n, Key{"c2", "eth0"})

		reserve(t, n, who(1), Request{Sets: s})
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		release(t, n, Key{"c1", "eth0"}) // as DEL does
	}
}

func TestLeftoverOfAKilledAllocationIsNoReservation(t *testing.T) {
	n := open(t)
	s := sets(t, rng("10.1.2.0/30", "", "", ""))
	if err := os.MkdirAll(n.Dir(), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{newFile: `{"attached":false,"addresses":["10.1.2.2/30"]`, hintFile: "", "README": "x", "a,b": ""} {
		if err := os.WriteFile(filepath.Join(n.Dir(), name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := reserve(t, n, who(1), Request{Sets: s}); got[0] != "10.1.2.2/30" {
		t.Errorf("got %v", got)
	}
}

func TestFindWaitsForWhoeverWorksOnTheAttachment(t *testing.T) {
	n := open(t)
	h, err := n.Reserve(who(1), Request{Sets: sets(t, rng("10.1.2.0/24", "", "", ""))})
	if err != nil {
		t.Fatal(err)
	}
	n.Wait = 20 * time.Millisecond
	if _, err := n.Find(Key{"c1", "eth0"}); !errors.Is(err, ErrBusy) {
		t.Errorf("got %v", err)
	}
	for h2, err := range n.All() {
		t.Errorf("a record in use is yielded: %v %v", h2, err)
	}
	n.Wait = 10 * time.Second
	go func() {
		time.Sleep(20 * time.Millisecond)
		if err := h.Release(); err != nil {
			t.Error(err)
		}
	}()
	if got, err := n.Find(Key{"c1", "eth0"}); got != nil || err != nil {
		t.Errorf("released meanwhile, found %v %v", got, err)
	}
}

func TestLongContainerIDsAreHashed(t *testing.T) {
	n := open(t)
	s := sets(t, rng("10.1.2.0/24", "", "", ""))
	for _, end := range []string{"a", "b"} {
		r := Record{ContainerID: strings.Repeat("x", 300) + end, IfName: "eth0"}
		reserve(t, n, r, Request{Sets: s})
		got, ok, err := n.Peek(Key{r.ContainerID, "eth0"})
		if err != nil || !ok || got.ContainerID != r.ContainerID {
			t.Errorf("%v %v", ok, err)
		}
	}
	release(t, n, Key{strings.Repeat("x", 300) + "a", "eth0"})
	if all, _ := n.entries(); len(all) != 1 {
		t.Errorf("left %v", all)
	}
}

func TestParallelReservationsAreUnique(t *testing.T) {
	n := open(t)
	s := sets(t, rng("10.1.2.0/26", "", "", ""))
	var mu sync.Mutex
	held := map[string]int{}
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(w)))
			mine := map[int]string{}
			for i := range 60 {
				id := w*1000 + i
				h, err := n.Reserve(who(id), Request{Sets: s})
				if errors.Is(err, ErrFull) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				a := h.Record.Addresses[0].String()
				h.Close()
				mu.Lock()
				if other, ok := held[a]; ok {
					t.Errorf("%s was given to %d and %d", a, other, id)
				}
				held[a] = id
				mu.Unlock()
				mine[id] = a
				for old, a := range mine {
					if r.IntN(2) == 0 {
						mu.Lock()
						delete(held, a)
						mu.Unlock()
						delete(mine, old)
						if h, err := n.Find(Key{fmt.Sprintf("c%d", old), "eth0"}); err != nil || h == nil || h.Release() != nil {
							t.Errorf("release %d: %v", old, err)
						}
						break
					}
				}
			}
		})
	}
	wg.Wait()
}

func TestNamesThatCannotBeADirectoryAreRefused(t *testing.T) {
	for _, name := range []string{"", ".", "..", ".new", "a/b", "a\x00b", strings.Repeat("n", 201)} {
		if _, err := Open(t.TempDir(), name); err == nil {
			t.Errorf("%q was taken", name)
		}
	}
}

func TestHostLinkIsOneForEachAttachment(t *testing.T) {
	a := Key{"c1", "eth0"}
	link := a.HostLink("podnet")
	if len(link) > 15 || !strings.HasPrefix(link, LinkPrefix) {
		t.Errorf("link %q", link)
	}
	for _, other := range []string{Key{"c1", "eth1"}.HostLink("podnet"), Key{"c2", "eth0"}.HostLink("podnet"), a.HostLink("other")} {
		if other == link {
			t.Errorf("%q twice", link)
		}
	}
	long := Key{strings.Repeat("x", 100), "eth0"}
	e, ok := parseName(long.fileName(nil))
	if !ok || e.key().HostLink("podnet") != long.HostLink("podnet") {
		t.Error("the file name alone does not lead to the host link")
	}
}

func FuzzFileNamesAreReadBack(f *testing.F) {
	f.Add("c1", "eth0", []byte{10, 1, 2, 3})
	f.Add(strings.Repeat("x", 80), "a,b", make([]byte, 16))
	f.Fuzz(func(t *testing.T, id, ifName string, addr []byte) {
		k := Key{id, ifName}
		if id == "" || ifName == "" || strings.Contains(id, ",") || id[0] == '~' {
			return
		}
		var addrs []netip.Addr
		if a, ok := netip.AddrFromSlice(addr); ok {
			addrs = append(addrs, a)
		}
		e, ok := parseName(k.fileName(addrs))
		if !ok || !e.is(k) || !slices.Equal(e.addresses, addrs) {
			t.Errorf("%+v from %q", e, k.fileName(addrs))
		}
	})
}

func FuzzParsersNeverPanic(f *testing.F) {
	f.Add("10.1.2.3+fd00::3,c1,eth0", []byte(`{"attached":true ,"network":"n","addresses":["10.1.2.3/24"]}`))
	f.Add("-,c1,eth0", []byte(`{}`))
	f.Add("boot 10.1.2.3 invalid", []byte(`null`))
	f.Fuzz(func(t *testing.T, s string, b []byte) {
		if e, ok := parseName(s); ok && (e.id == "" || e.ifName == "") {
			t.Errorf("%+v", e)
		}
		parseHint(s)
		if r, err := ParseRecord(b); err == nil {
			if _, err := r.encode(); err != nil {
				t.Error(err)
			}
		}
	})
}

func BenchmarkReserve(b *testing.B) {
	for _, taken := range []int{0, 1000, 10000} {
		b.Run(fmt.Sprint(taken), func(b *testing.B) {
			n := open(b)
			s := sets(b, rng("10.0.0.0/8", "", "", ""))
			for i := range taken {
				k := Key{fmt.Sprintf("old%d", i), "eth0"}
				a := netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)})
				if err := os.MkdirAll(n.Dir(), 0o700); err != nil {
					b.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(n.Dir(), k.fileName([]netip.Addr{a})), []byte("{}"), 0o600); err != nil {
					b.Fatal(err)
				}
			}
			for b.Loop() {
				h, err := n.Reserve(who(1), Request{Sets: s})
				if err != nil {
					b.Fatal(err)
				}
				if err := h.Release(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
