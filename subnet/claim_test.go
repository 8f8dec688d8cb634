package subnet

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/store"
)

// record is a row with a holder.
func record(name string, created int64, ip, identity string) row {
	return row{name, created, fmt.Sprintf(`{"PublicIP":%q,"BackendType":"vxlan","Node":"node-%s","Identity":%q}`, ip, identity, identity)}
}

func hostSnapshot(t *testing.T, hosts ...Host) store.Snapshot {
	t.Helper()
	s := store.Snapshot{Epoch: 1, Revision: 50}
	for _, h := range hosts {
		b, err := json.Marshal(h)
		if err != nil {
			t.Fatal(err)
		}
		s.KVs = append(s.KVs, store.KV{Key: HostKey(testPrefix, h.Name), Value: b, ModRevision: 40, Session: 3})
	}
	slices.SortFunc(s.KVs, func(a, b store.KV) int { return strings.Compare(a.Key, b.Key) })
	return s
}

// TestClaimRules is the table of who takes what: host "me" at 192.168.7.1,
// in a cluster that was listed long ago.
func TestClaimRules(t *testing.T) {
	live := func(identity, ip string) Host {
		return Host{Name: "host-" + identity, Identity: identity, Instance: "i-" + identity, PublicIPs: addrs(ip)}
	}
	mineHeld := Lease{Key: SubnetsPrefix(testPrefix) + "10.5.9.0-24", Subnets: prefixes("10.5.9.0/24"), PublicIPs: addrs("192.168.7.1"),
		Type: "vxlan", Identity: "me", Node: "node-me", Revision: 9}
	elsewhere := mineHeld
	elsewhere.Key, elsewhere.Subnets = SubnetsPrefix(testPrefix)+"10.6.9.0-24", prefixes("10.6.9.0/24")
	tests := map[string]struct {
		rows  []row
		hosts []Host
		held  Lease
		epoch store.Epoch // of held; 0: 1
		fresh time.Duration
		// patient: it already waited
		patient  bool
		previous string
		past     string // held before, newest first

		verdict verdict
		key     string // "": any
		drop    string
		err     error
		inUse   bool // the error is *InUseError
	}{
		"a: mine":                       {rows: []row{record("10.5.9.0-24", 3, "192.168.7.1", "me")}, verdict: keep, key: "10.5.9.0-24"},
		"a: other value":                {rows: []row{{"10.5.9.0-24", 3, `{"PublicIP":"192.168.7.1","Identity":"me"}`}}, verdict: write, key: "10.5.9.0-24"},
		"a: before b":                   {rows: []row{record("10.5.8.0-24", 2, "192.168.7.1", ""), record("10.5.9.0-24", 3, "192.168.7.1", "me")}, verdict: keep, key: "10.5.9.0-24"},
		"a: two of them":                {rows: []row{record("10.5.8.0-24", 2, "192.168.7.1", "me"), record("10.5.9.0-24", 3, "192.168.7.1", "me")}, verdict: write, key: "10.5.8.0-24", drop: "10.5.9.0-24"},
		"a: outside the network":        {rows: []row{record("10.6.9.0-24", 3, "192.168.7.1", "me")}, verdict: write, drop: "10.6.9.0-24"},
		"a: overlapped by an older one": {rows: []row{record("10.5.9.0-24", 3, "192.168.7.1", "me"), record("10.5.8.0-22", 2, "192.168.7.5", "z")}, verdict: write, drop: "10.5.9.0-24"},
		"b: flannel's":                  {rows: []row{record("10.5.9.0-24", 3, "192.168.7.1", "")}, verdict: write, key: "10.5.9.0-24"},
		"b: flannel's, unfit":           {rows: []row{record("10.6.9.0-24", 3, "192.168.7.1", "")}, verdict: write, drop: "10.6.9.0-24"},
		"c: dead":                       {rows: []row{record("10.5.9.0-24", 3, "192.168.7.1", "x")}, verdict: write, key: "10.5.9.0-24"},
		"c: dead, unfit":                {rows: []row{record("10.6.9.0-24", 3, "192.168.7.1", "x")}, verdict: write, drop: "10.6.9.0-24"},
		"c: absent too shortly":         {rows: []row{record("10.5.9.0-24", 3, "192.168.7.1", "x")}, fresh: 7 * time.Second, verdict: wait},
		"c: alive":                      {rows: []row{record("10.5.9.0-24", 3, "192.168.7.1", "x")}, hosts: []Host{live("x", "192.168.7.1")}, verdict: wait},
		"c: still alive":                {rows: []row{record("10.5.9.0-24", 3, "192.168.7.1", "x")}, hosts: []Host{live("x", "192.168.7.1")}, patient: true, verdict: fail, inUse: true},
		"c: moved away":                 {rows: []row{record("10.5.9.0-24", 3, "192.168.7.1", "x")}, hosts: []Host{live("x", "192.168.7.7")}, verdict: write},
		"d: gone":                       {rows: []row{record("10.5.9.0-24", 3, "192.168.7.7", "me")}, verdict: write, key: "10.5.9.0-24"},
		"d: absent too shortly":         {rows: []row{record("10.5.9.0-24", 3, "192.168.7.7", "me")}, fresh: time.Second, verdict: wait},
		"d: alive":                      {rows: []row{record("10.5.9.0-24", 3, "192.168.7.7", "me")}, hosts: []Host{live("me", "192.168.7.7")}, verdict: wait},
		"d: still alive":                {rows: []row{record("10.5.9.0-24", 3, "192.168.7.7", "me")}, hosts: []Host{live("me", "192.168.7.7")}, patient: true, verdict: fail, err: ErrClone},
		"d: my last daemon moved here":  {rows: []row{record("10.5.9.0-24", 3, "192.168.7.7", "me")}, hosts: []Host{live("me", "192.168.7.1")}, verdict: write, key: "10.5.9.0-24"},
		"e: previous":                   {previous: "10.5.77.0/24", verdict: write, key: "10.5.77.0-24"},
		"e: previous is held":           {previous: "10.5.77.0/24", rows: []row{record("10.5.77.0-24", 3, "192.168.7.7", "x")}, verdict: write},
		"f: free":                       {verdict: write},
		"f: none":                       {rows: []row{record("10.5.0.0-17", 3, "192.168.7.7", "x"), record("10.5.128.0-17", 3, "192.168.7.8", "y")}, verdict: fail, err: ErrNoSubnet},

		"held: as written":              {held: mineHeld, rows: []row{record("10.5.9.0-24", 9, "192.168.7.1", "me")}, verdict: keep, key: "10.5.9.0-24"},
		"held: view is older":           {held: mineHeld, rows: []row{record("10.5.8.0-24", 3, "192.168.7.7", "x")}, verdict: wait},
		"held: lost":                    {held: mineHeld, rows: []row{record("10.5.8.0-24", 20, "192.168.7.7", "x")}, verdict: write, key: "10.5.9.0-24"},
		"held: lost and taken":          {held: mineHeld, rows: []row{record("10.5.9.0-24", 20, "192.168.7.7", "x")}, verdict: fail, err: ErrTaken},
		"held: lost and overlapped":     {held: mineHeld, rows: []row{record("10.5.9.128-25", 20, "192.168.7.7", "x")}, verdict: fail, err: ErrTaken},
		"held: overlapped later":        {held: mineHeld, rows: []row{record("10.5.9.0-24", 9, "192.168.7.1", "me"), record("10.5.8.0-23", 20, "192.168.7.7", "x")}, verdict: keep, key: "10.5.9.0-24"},
		"held: garbage in it":           {held: mineHeld, rows: []row{{"10.5.9.0-24", 20, "hello"}}, verdict: write, key: "10.5.9.0-24"},
		"held: garbage over it":         {held: mineHeld, rows: []row{{"10.5.9.0-25", 20, "hello"}}, verdict: write, key: "10.5.9.0-24"},
		"held: new epoch, empty":        {held: mineHeld, epoch: 7, verdict: write, key: "10.5.9.0-24"},
		"held: new epoch, my old self":  {held: mineHeld, epoch: 7, rows: []row{record("10.5.9.0-24", 3, "192.168.7.1", "before-reboot")}, verdict: write, key: "10.5.9.0-24"},
		"held: new epoch, old address":  {held: mineHeld, epoch: 7, rows: []row{record("10.5.9.0-24", 3, "192.168.7.7", "me")}, verdict: write, key: "10.5.9.0-24"},
		"held: new epoch, clone there":  {held: mineHeld, epoch: 7, rows: []row{record("10.5.9.0-24", 3, "192.168.7.7", "me")}, hosts: []Host{live("me", "192.168.7.7")}, patient: true, verdict: fail, err: ErrTaken},
		"held: new epoch, taken":        {held: mineHeld, epoch: 7, rows: []row{record("10.5.9.0-24", 3, "192.168.7.7", "x")}, verdict: fail, err: ErrTaken},
		"held: changed back":            {held: elsewhere, past: "10.5.77.0/24 10.5.78.0/24", rows: []row{record("10.6.9.0-24", 9, "192.168.7.1", "me")}, verdict: write, key: "10.5.77.0-24", drop: "10.6.9.0-24"},
		"held: changed back, taken":     {held: elsewhere, past: "10.5.77.0/24 10.5.78.0/24", rows: []row{record("10.5.77.0-24", 7, "192.168.7.7", "x"), record("10.6.9.0-24", 9, "192.168.7.1", "me")}, verdict: write, key: "10.5.78.0-24", drop: "10.6.9.0-24"},
		"held: changed back, overlaps":  {held: elsewhere, past: "10.5.77.0/24", rows: []row{record("10.5.76.0-22", 7, "192.168.7.7", "x"), record("10.6.9.0-24", 9, "192.168.7.1", "me")}, verdict: write, drop: "10.6.9.0-24"},
		"held: fits, past is no matter": {held: mineHeld, past: "10.5.77.0/24", rows: []row{record("10.5.9.0-24", 9, "192.168.7.1", "me")}, verdict: keep, key: "10.5.9.0-24"},
		"held: new epoch, mine twice":   {held: mineHeld, epoch: 7, rows: []row{record("10.5.8.0-24", 3, "192.168.7.1", "me")}, verdict: write, key: "10.5.9.0-24", drop: "10.5.8.0-24"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			now := time.Now()
			w := configured(t, conf16)
			w.take(subnetsPrefix, listing(1, tt.rows...))
			w.take(hostsPrefix, hostSnapshot(t, tt.hosts...))
			v := w.view()
			v.Fresh = now.Add(-time.Hour)
			if tt.fresh != 0 {
				v.Fresh = now.Add(-tt.fresh)
			}
			c := claimant{prefix: testPrefix, node: "node-me", waits: &waits{}, held: tt.held, epoch: max(1, tt.epoch), past: prefixes(tt.past)}
			s := Self{Host: Host{Name: "node-me", Identity: "me", Instance: "now", PublicIPs: addrs("192.168.7.1")}, Type: "vxlan", Previous: prefixes(tt.previous)}
			d := c.decide(v, s, now)
			if tt.patient {
				if d.verdict != wait || d.until != now.Add(patience) {
					t.Fatalf("did not wait: %+v", d)
				}
				d = c.decide(v, s, d.until)
			}
			if d.verdict != tt.verdict {
				t.Fatalf("verdict %d, want %d: %+v", d.verdict, tt.verdict, d)
			}
			if got := strings.TrimPrefix(d.lease.Key, SubnetsPrefix(testPrefix)); tt.key != "" && got != tt.key {
				t.Errorf("key %s, want %s", got, tt.key)
			}
			if got := strings.ReplaceAll(strings.Join(d.drop, " "), SubnetsPrefix(testPrefix), ""); got != tt.drop {
				t.Errorf("drops %q, want %q", got, tt.drop)
			}
			if d.verdict == write && !v.Config.Fits(d.lease.Subnets) {
				t.Errorf("takes %v", d.lease.Subnets)
			}
			if _, ok := errors.AsType[*InUseError](d.err); ok != tt.inUse {
				t.Errorf("error %v", d.err)
			}
			if tt.err != nil && !errors.Is(d.err, tt.err) {
				t.Errorf("error %v, want %v", d.err, tt.err)
			}
		})
	}
}
