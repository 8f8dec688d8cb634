package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/flanneld/api"
)

func serviceDescribe(ctx context.Context, c *api.Client, args []string, stdout, stderr io.Writer) int {
	fs := newFlags("service describe", "NAME [-o json]", "Show a service and everything behind it, with the reason for what gets no connections.",
		"flanneld service describe frontend", "flanneld service describe frontend -o json")
	network := fs.String("network", endpoint.DefaultNetwork, "`NETWORK` of the service")
	format := outputFlag(fs)
	operands, code, done := parseArgs(fs, args, 1, 1, stdout, stderr)
	if done {
		return code
	}
	d, err := c.Service(ctx, endpoint.DefaultTenant, *network, operands[0])
	if err != nil {
		return refused(stderr, err)
	}
	if *format == "json" {
		printJSON(stdout, d)
		return exitOK
	}
	printService(stdout, d)
	return exitOK
}

// printService is what people read; the golden files show it.
func printService(w io.Writer, d api.ServiceDetail) {
	fmt.Fprintln(w, d.FQDN)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, line := range []struct{ what, value string }{
		{"address", address(d.Service)},
		{"ports", strings.Join(ports(d.Service), ", ")},
		{"node ports", strings.Join(nodePorts(d.Service), ", ")},
		{"selector", api.Labels(d.Selector)},
		{"listed", join(d.Endpoints)},
		{"affinity", d.AffinityText()},
		{"local", d.Local},
		{"balance", d.Balance},
		{"health", d.Health.String()},
		{"endpoints", endpoints(d)},
	} {
		if line.value != "" {
			fmt.Fprintf(tw, "  %s\t%s\n", line.what, line.value)
		}
	}
	_ = tw.Flush() // a terminal that went away needs no error
	if len(d.Behind) > 0 {
		fmt.Fprintln(w)
		fmt.Fprintln(tw, "  ADDRESS\tHOST\tCONTAINER\tCONNECTIONS")
		for _, b := range d.Behind {
			at, state := "-", "yes"
			if b.Address.IsValid() {
				at = b.Address.String()
			}
			if !b.Ready {
				state = "none"
			}
			if b.Why != "" {
				state += ", " + b.Why
			}
			fmt.Fprintf(tw, "  %s\t%s\t%s\t%s\n", at, cmp.Or(b.Host, "-"), cmp.Or(b.Name, "-"), state)
		}
		_ = tw.Flush() // as above
	}
	for _, p := range d.Problems {
		fmt.Fprintf(w, "\nproblem: %s\n", p)
	}
}

// endpoints is how many there are, or why there are none; "" of an alias.
func endpoints(d api.ServiceDetail) string {
	switch {
	case d.External != "":
		return ""
	case len(d.Behind) > 0:
		return behind(d.Service)
	case len(d.Selector) == 0:
		return "none: the service selects nothing; give it a --selector, or an --endpoint"
	}
	return "none: no container carries " + api.Labels(d.Selector)
}
