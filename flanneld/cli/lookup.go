package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/flanneld/flanneld/flanneld/api"
)

func dnsLookup(ctx context.Context, c *api.Client, args []string, stdout, stderr io.Writer) int {
	fs := newFlags("dns lookup", "NAME|ADDRESS [TYPE] [-v]", `Say what a container of the pod network is told about a name, through its search list; a dot at the end leaves that
out. TYPE is A, AAAA, SRV, PTR, TXT and so on; without it the addresses of a name, or the names of an address.
With -v also why: which view answers, from which container, host or service each record comes, what was left out.
Ends with 1 if there is no answer.`,
		"flanneld dns lookup web",
		"flanneld dns lookup _http._tcp.frontend.default.svc.cluster.local. SRV",
		"flanneld dns lookup 10.1.19.3",
		"flanneld dns lookup frontend -v")
	format := outputFlag(fs)
	verbose := fs.Bool("v", false, "explain the answer")
	operands, code, done := parseArgs(fs, args, 1, 2, stdout, stderr)
	if done {
		return code
	}
	types := []string{""}
	if len(operands) == 2 {
		types[0] = operands[1]
		if _, err := api.ParseType(types[0]); err != nil {
			return usageErr(stderr, fs, err)
		}
	}
	first, err := c.Lookup(ctx, operands[0], types[0])
	if err != nil {
		return refused(stderr, err)
	}
	found := []api.Lookup{first}
	if types[0] == "" && first.Type == "A" {
		six, err := c.Lookup(ctx, operands[0], "AAAA")
		if err != nil {
			return refused(stderr, err)
		}
		switch {
		case len(six.Answers) > 0 && len(first.Answers) == 0:
			found = []api.Lookup{six}
		case len(six.Answers) > 0:
			found = append(found, six)
		}
	}
	if *format == "json" {
		printJSON(stdout, found)
	} else {
		for i, l := range found {
			if i > 0 && *verbose {
				fmt.Fprintln(stdout)
			}
			printLookup(stdout, l, *verbose)
		}
	}
	if len(found[0].Answers) == 0 {
		fmt.Fprintln(stderr, nothing(found[0]))
		return exitFailure
	}
	return exitOK
}

// nothing says why there is no answer.
func nothing(l api.Lookup) string {
	tried := ""
	if len(l.Tried) > 0 {
		tried = ", nor " + strings.Join(l.Tried, ", ")
	}
	switch l.Rcode {
	case "NXDOMAIN":
		return fmt.Sprintf("there is no %s%s", l.Name, tried)
	case "NOERROR":
		return fmt.Sprintf("%s has no %s records", l.Name, l.Type)
	}
	why := fmt.Sprintf("%s %s: %s", l.Name, l.Type, l.Rcode)
	if l.Upstream != "" {
		why += " from upstream " + l.Upstream
	}
	return strings.Join(append([]string{why}, l.Notes...), ": ")
}

// printLookup is the text that people read: data alone, one line each, as dig
// +short has it, then, if wanted, what explains it.
func printLookup(w io.Writer, l api.Lookup, verbose bool) {
	for _, r := range l.Answers {
		fmt.Fprintln(w, r.Data)
	}
	if !verbose {
		return
	}
	if len(l.Answers) > 0 {
		fmt.Fprintln(w)
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, format string, a ...any) { fmt.Fprintf(tw, "%s\t%s\n", name, fmt.Sprintf(format, a...)) }
	row("question", "%s %s", l.Name, l.Type)
	row("answer", "%s, %s", l.Rcode, count(len(l.Answers), "record"))
	row("view", "%s", cmp.Or(l.View, "-"))
	switch {
	case l.Zone != "":
		row("zone", "%s (of this cluster)", l.Zone)
	case l.Upstream != "":
		row("upstream", "%s", l.Upstream)
	}
	for i, t := range l.Tried {
		row([]string{"tried too", ""}[min(i, 1)], "%s has no answer", t)
	}
	for i, n := range l.Notes {
		row([]string{"note", ""}[min(i, 1)], "%s", n)
	}
	_ = tw.Flush() // a terminal that went away needs no error
	records := func(title string, rs []api.Record) {
		if len(rs) == 0 {
			return
		}
		fmt.Fprintf(w, "\n%s\n", title)
		for _, r := range rs {
			fmt.Fprintf(tw, "  %s\t%d\t%s\t%s\t%s\n", r.Name, r.TTL, r.Type, r.Data, cmp.Or(r.Source, "-"))
		}
		_ = tw.Flush()
	}
	records("records", l.Answers)
	records("additional", l.Additional)
	if len(l.LeftOut) > 0 {
		fmt.Fprintln(w, "\nleft out")
		for _, o := range l.LeftOut {
			fmt.Fprintf(tw, "  %s\t%s\t%s\n", o.Data, cmp.Or(o.Source, "-"), o.Why)
		}
		_ = tw.Flush()
	}
}
