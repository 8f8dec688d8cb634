package cli

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"text/tabwriter"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/flanneld/api"
)

const dnsHelp = `usage: flanneld dns COMMAND

Names, as the containers of this host are told them. Containers and services have theirs without doing.

  lookup   what a name stands for, and with -v why
  add      add a name for something else, or addresses to it
  remove   take it away
  list     list the names that were added

Each takes --help. To begin with:

  flanneld dns lookup web
  flanneld dns add db 192.0.2.7
`

// dnsCmd is "flanneld dns".
func dnsCmd(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	return dnsWith(ctx, api.NewClient(api.Socket), args, stdout, stderr)
}

func dnsWith(ctx context.Context, c *api.Client, args []string, stdout, stderr io.Writer) int {
	return group(ctx, "dns", dnsHelp, map[string]command{
		"lookup": with(c, dnsLookup), "add": with(c, dnsAdd), "remove": with(c, dnsRemove), "list": with(c, dnsList),
	}, args, stdout, stderr)
}

func dnsAdd(ctx context.Context, c *api.Client, args []string, stdout, stderr io.Writer) int {
	fs := newFlags("dns add", "NAME ADDRESS…", `Add a name in a network, or addresses to one that is there: db becomes db.default.cluster.local, for containers db.
It stays until flanneld dns remove.`,
		"flanneld dns add db 192.0.2.7 192.0.2.8 2001:db8::7",
		"flanneld dns add www.shop 192.0.2.9")
	network := fs.String("network", endpoint.DefaultNetwork, "`NETWORK` of the name")
	operands, code, done := parseArgs(fs, args, 2, -1, stdout, stderr)
	if done {
		return code
	}
	n, err := addedName(operands, *network)
	if err != nil {
		return usageErr(stderr, fs, err)
	}
	ch, err := c.AddName(ctx, n)
	return nameChanged(stdout, stderr, ch, err)
}

func dnsRemove(ctx context.Context, c *api.Client, args []string, stdout, stderr io.Writer) int {
	fs := newFlags("dns remove", "NAME [ADDRESS…]", "Take addresses from a name that was added; without addresses all of it.",
		"flanneld dns remove db 192.0.2.8",
		"flanneld dns remove db")
	network := fs.String("network", endpoint.DefaultNetwork, "`NETWORK` of the name")
	operands, code, done := parseArgs(fs, args, 1, -1, stdout, stderr)
	if done {
		return code
	}
	n, err := addedName(operands, *network)
	if err != nil {
		return usageErr(stderr, fs, err)
	}
	ch, err := c.RemoveName(ctx, n)
	return nameChanged(stdout, stderr, ch, err)
}

// addedName reads NAME ADDRESS….
func addedName(operands []string, network string) (api.Name, error) {
	n := api.Name{Tenant: endpoint.DefaultTenant, Network: network, Name: operands[0]}
	if a, err := netip.ParseAddr(operands[0]); err == nil {
		return n, fmt.Errorf("%v is an address: the name comes first, then its addresses", a)
	}
	for _, text := range operands[1:] {
		for part := range strings.SplitSeq(text, ",") {
			a, err := netip.ParseAddr(part)
			if err != nil {
				return n, fmt.Errorf("%q: give an IP address, such as 192.0.2.7 or 2001:db8::7", part)
			}
			n.Addresses = append(n.Addresses, a)
		}
	}
	return n, nil
}

// nameChanged says what a name stands for now.
func nameChanged(stdout, stderr io.Writer, ch api.Change, err error) int {
	switch {
	case err != nil:
		return refused(stderr, err)
	case !ch.Changed:
		fmt.Fprintf(stdout, "%s %s, unchanged\n", ch.FQDN, join(ch.Addresses))
	case len(ch.Addresses) == 0:
		fmt.Fprintln(stdout, ch.FQDN, "is gone")
	default:
		fmt.Fprintln(stdout, ch.FQDN, join(ch.Addresses))
	}
	if ch.Note != "" {
		fmt.Fprintln(stderr, ch.Note)
	}
	return exitOK
}

func dnsList(ctx context.Context, c *api.Client, args []string, stdout, stderr io.Writer) int {
	fs := newFlags("dns list", "[-o json]", "List the names that were added by hand. Containers and services have theirs besides.",
		"flanneld dns list", "flanneld dns list -o json")
	return list(ctx, fs, args, stdout, stderr, c.Names, printNames, func(all []api.Name) any { return api.NameList{Names: all} })
}

// printNames is the table that people read; the golden file shows it.
func printNames(w io.Writer, all []api.Name) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "NAME\tNETWORK\tADDRESSES\tIN FULL")
	for _, n := range all {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", n.Name, n.Network, join(n.Addresses), n.FQDN)
	}
	_ = tw.Flush() // a terminal that went away needs no error
}
