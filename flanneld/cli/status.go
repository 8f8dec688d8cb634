package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/flanneld/server"
)

// status is "flanneld status".
func status(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	fs := newFlags("status", "[-o json]", `Show whether this host's part of the network is healthy, and why not.
The first line is the verdict: ok, degraded (traffic flows, something needs attention) or down.
Ends with 0 for ok, 1 for degraded, 2 for down.`,
		"flanneld status", "flanneld status -o json")
	format := outputFlag(fs)
	if code, done := parse(fs, args, stdout, stderr); done {
		return code
	}
	s, err := api.NewClient(api.Socket).Status(ctx)
	if err != nil {
		fmt.Fprintln(stderr, err)
		return exitDown
	}
	if *format == "json" {
		printJSON(stdout, s)
	} else {
		printStatus(stdout, s, time.Now())
	}
	switch s.Verdict {
	case api.OK:
		return exitOK
	case api.Degraded:
		return exitFailure
	default:
		return exitDown
	}
}

// Exit codes of status beside exitOK and exitFailure.
const exitDown = 2

func printJSON(w io.Writer, v any) {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(v) // nobody is left to tell
}

// printStatus is the text that people read; the golden file shows it.
func printStatus(w io.Writer, s api.Status, now time.Time) {
	first := min(1, len(s.Reasons))
	fmt.Fprintln(w, server.Line(api.Status{Verdict: s.Verdict, Reasons: s.Reasons[:first]}))
	for _, r := range s.Reasons[first:] {
		fmt.Fprintf(w, "  also: %s\n", r)
	}
	fmt.Fprintln(w)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, format string, a ...any) { fmt.Fprintf(tw, "%s\t%s\n", name, fmt.Sprintf(format, a...)) }
	row("host", "%s, flanneld %s, up %s", s.Node, s.Version, age(now, s.Started))
	etcd := "connected since " + age(now, s.Etcd.Since)
	if !s.Etcd.Connected {
		etcd = "out of reach since " + age(now, s.Etcd.Since)
	}
	row("etcd", "%s, %s", strings.Join(s.Etcd.Endpoints, " "), etcd)
	if e := s.Etcd.Embedded; e != nil {
		row("", "embedded, listens on %s, %d of %d MiB", e.Listen, e.Size>>20, e.Quota>>20)
	}
	if n := s.Network; n != nil {
		row("network", "%s %s", n.Name, join(n.Networks))
		row("lease", "%s, held since %s", join(n.Subnets), age(now, n.Held))
		row("underlay", "%s on %s", join(n.PublicIPs), n.Underlay)
		device := "" // of alloc, and of what an extension makes
		if n.Device != "" {
			device = ", device " + n.Device
		}
		row("tunnel", "%s%s, MTU %d", n.Driver, device, n.MTU)
		masq := "no masquerade"
		if n.Masquerade {
			masq = "masquerade"
		}
		row("rules", "%s, %s", n.Filter, masq)
		row("synced", "%s ago", age(now, n.Synced))
	}
	if s.DNS != nil {
		for i, line := range dnsLines(s.DNS) {
			row([]string{"names", "upstream", ""}[min(i, 2)], "%s", line)
		}
	}
	_ = tw.Flush() // a terminal that went away needs no error
	if len(s.Peers) > 0 {
		fmt.Fprintf(w, "\n%d peers\n", len(s.Peers))
		fmt.Fprintln(tw, "HOST\tSUBNET\tADDRESS\tTUNNEL\tKNOWN\tSYNCED\tRTT\tMTU\tSTATE")
		for _, p := range s.Peers {
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", cmp.Or(p.Node, "-"), join(p.Subnets), join(p.PublicIPs), tunnel(p),
				age(now, p.Known), age(now, p.Synced), rtts(p), mtu(p), peerState(p))
		}
		_ = tw.Flush()
	}
	for i, n := range s.Notices {
		if i == 0 {
			fmt.Fprintln(w, "\nnotes: what was set on this host, and what was left out")
		}
		fmt.Fprintf(w, "  %s\n", n)
	}
}

// dnsLines say how names are answered: ours in the first line, then the
// upstreams, one each.
func dnsLines(d *api.DNS) []string {
	at := "answered nowhere"
	if len(d.Addresses) > 0 {
		at = "at " + join(d.Addresses)
	}
	line := fmt.Sprintf("%s %s: %s, %s, %s", d.Domain, at, count(d.Endpoints, "container"), count(d.Services, "service"), count(d.Names, "name")+" added")
	if d.LeftOut > 0 {
		line += fmt.Sprintf(", %d left out", d.LeftOut)
	}
	lines := []string{line}
	for _, u := range d.Upstreams {
		state := "ok"
		if !u.Healthy {
			state = "does not answer"
		}
		lines = append(lines, u.Addr.String()+" "+state)
	}
	if len(d.Upstreams) == 0 {
		lines = append(lines, "none: names of others are not found")
	}
	return lines
}

// count is "1 container", "2 containers".
func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// tunnel is how packets get to a peer.
func tunnel(p api.Peer) string {
	if p.Plain {
		return p.Driver + "/plain"
	}
	return p.Driver
}

// rtts are the round-trip times through the tunnel, IPv4 first.
func rtts(p api.Peer) string {
	var out []string
	for _, w := range p.Probes {
		if w.RTT > 0 {
			out = append(out, fmt.Sprintf("%.2fms", w.RTT.Seconds()*1000))
		}
	}
	return cmp.Or(strings.Join(out, " "), "-")
}

// mtu is the largest packet that passes in all families.
func mtu(p api.Peer) string {
	least := 0
	for _, w := range p.Probes {
		if w.MTU > 0 && (least == 0 || w.MTU < least) {
			least = w.MTU
		}
	}
	if least == 0 {
		return "-"
	}
	return strconv.Itoa(least)
}

func peerState(p api.Peer) string {
	if p.Error != "" {
		return "not served: " + p.Error
	}
	for _, w := range p.Probes {
		if w.Message != "" {
			return strings.TrimPrefix(w.Message, p.Node+": ")
		}
	}
	switch {
	case p.Live == nil:
		return "no liveness (flannel)"
	case *p.Live:
		return "live"
	default:
		return "silent"
	}
}

func join[T netip.Addr | netip.Prefix](xs []T) string {
	var b strings.Builder
	for i, x := range xs {
		if i > 0 {
			b.WriteString(" ")
		}
		fmt.Fprint(&b, x)
	}
	return b.String()
}

// age is a duration as people read it: 3s, 12m, 5h, 9d.
func age(now, t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	d := max(0, now.Sub(t))
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}
