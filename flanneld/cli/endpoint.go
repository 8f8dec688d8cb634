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

const endpointHelp = `usage: flanneld endpoint COMMAND

The containers of all hosts, and the labels that services choose them by.

  list     list the containers of all hosts
  label    set or remove labels of a container of this host

Each takes --help. To begin with:

  flanneld endpoint list
  flanneld endpoint label web app=sample flanneld.io/weight=3
`

// endpointCmd is "flanneld endpoint".
func endpointCmd(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	return endpointWith(ctx, api.NewClient(api.Socket), args, stdout, stderr)
}

func endpointWith(ctx context.Context, c *api.Client, args []string, stdout, stderr io.Writer) int {
	return group(ctx, "endpoint", endpointHelp, map[string]command{
		"list": with(c, endpointList), "label": with(c, endpointLabel),
	}, args, stdout, stderr)
}

func endpointList(ctx context.Context, c *api.Client, args []string, stdout, stderr io.Writer) int {
	fs := newFlags("endpoint list", "[--host HOST] [-o json]", "List the containers of all hosts: how they are called, where they are, and whether they are answers.",
		"flanneld endpoint list", "flanneld endpoint list --host host1 -o json")
	host := fs.String("host", "", "only those of this `HOST`")
	ask := func(ctx context.Context) ([]api.Endpoint, error) {
		all, err := c.Endpoints(ctx)
		some := []api.Endpoint{}
		for _, e := range all {
			if *host == "" || e.Host == *host {
				some = append(some, e)
			}
		}
		return some, err
	}
	return list(ctx, fs, args, stdout, stderr, ask, printEndpoints, func(all []api.Endpoint) any { return api.EndpointList{Endpoints: all} })
}

// printEndpoints is the table that people read; the golden file shows it.
func printEndpoints(w io.Writer, all []api.Endpoint) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "NAMES\tCONTAINER\tHOST\tADDRESSES\tLABELS\tSTATE")
	for _, e := range all {
		names := strings.Join(e.Names, " ")
		if e.Namespace != "" {
			names = strings.TrimSpace(names + " (" + e.Namespace + ")")
		}
		fmt.Fprintf(tw, "%s\t%.12s\t%s\t%s\t%s\t%s\n", cmp.Or(names, "-"), e.Container, e.Host, cmp.Or(join(e.Addresses), "-"),
			cmp.Or(api.Labels(e.Labels), "-"), cmp.Or(e.NotReady, "ready"))
	}
	_ = tw.Flush() // a terminal that went away needs no error
}

func endpointLabel(ctx context.Context, c *api.Client, args []string, stdout, stderr io.Writer) int {
	fs := newFlags("endpoint label", "NAME|CONTAINER-ID KEY=VALUE… KEY-…", `Set labels of a container of this host, or remove those with a dash behind. Services that select by them take it in, or
leave it out, at once. The labels stay as long as the container is attached. Some mean something:

  flanneld.io/weight      1 to 100: so many times as many connections of each service go there
  flanneld.io/port-NAME   the number of the port that services call NAME`,
		"flanneld endpoint label web app=sample tier=front",
		"flanneld endpoint label 4f1c0e2d9b7a flanneld.io/weight=3 tier-")
	operands, code, done := parseArgs(fs, args, 2, -1, stdout, stderr)
	if done {
		return code
	}
	to, err := relabel(operands[1:])
	if err != nil {
		return usageErr(stderr, fs, err)
	}
	now, err := c.Label(ctx, operands[0], to)
	if err != nil {
		return refused(stderr, err)
	}
	unchanged := ""
	if !now.Changed {
		unchanged = ", unchanged"
	}
	fmt.Fprintf(stdout, "%.12s %s%s\n", now.Container, cmp.Or(api.Labels(now.Labels), "has no labels"), unchanged)
	return exitOK
}

// relabel reads KEY=VALUE and KEY-.
func relabel(operands []string) (api.Relabel, error) {
	var to api.Relabel
	for _, text := range operands {
		if key, ok := strings.CutSuffix(text, "-"); ok && key != "" && !strings.Contains(key, "=") {
			to.Remove = append(to.Remove, key)
			continue
		}
		key, value, ok := strings.Cut(text, "=")
		if !ok || key == "" {
			return to, fmt.Errorf("%q: give KEY=VALUE to set a label, or KEY- to remove it", text)
		}
		if was, ok := to.Set[key]; ok && was != value {
			return to, fmt.Errorf("label %s is given twice, as %q and as %q", key, was, value)
		}
		if to.Set == nil {
			to.Set = map[string]string{}
		}
		to.Set[key] = value
	}
	return to, nil
}
