package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/service/manifest"
)

const serviceHelp = `usage: flanneld service COMMAND

A service is a name and an address for containers that are chosen by their labels, on any host: frontend.default.svc.cluster.local,
for containers frontend.default.svc or, with the search list that they have, frontend.

  create     make a service
  list       list the services, and how many containers each has
  describe   show one, with every container behind it, and why some get no connections
  update     change a part of one
  delete     remove one

Each takes --help; flanneld apply makes services from a file. To begin with:

  flanneld service create frontend --port http=80:8888 --selector app=sample
  flanneld service describe frontend
`

// serviceCmd is "flanneld service".
func serviceCmd(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	return serviceWith(ctx, api.NewClient(api.Socket), args, stdout, stderr)
}

func serviceWith(ctx context.Context, c *api.Client, args []string, stdout, stderr io.Writer) int {
	return group(ctx, "service", serviceHelp, map[string]command{
		"create": with(c, serviceCreate), "list": with(c, serviceList), "describe": with(c, serviceDescribe),
		"update": with(c, serviceUpdate), "delete": with(c, serviceDelete),
	}, args, stdout, stderr)
}

// asking is a command that asks the daemon.
type asking func(ctx context.Context, c *api.Client, args []string, stdout, stderr io.Writer) int

func with(c *api.Client, f asking) command {
	return func(ctx context.Context, args []string, stdout, stderr io.Writer) int {
		return f(ctx, c, args, stdout, stderr)
	}
}

// refused reports what the daemon did not do and returns the exit code.
func refused(stderr io.Writer, err error) int {
	e, ok := errors.AsType[*api.Error](err)
	if !ok { // it says itself who did not answer
		fmt.Fprintln(stderr, err)
		return exitFailure
	}
	if name := manifest.NameOf(e.Field); name != "" {
		e.Message += " (--" + name + ")"
	}
	fmt.Fprintln(stderr, "flanneld:", e.Message)
	if e.Status == http.StatusBadRequest {
		return exitUsage
	}
	return exitFailure
}

func serviceList(ctx context.Context, c *api.Client, args []string, stdout, stderr io.Writer) int {
	fs := newFlags("service list", "[-o json]", "List the services, and how many containers and addresses each stands for now.",
		"flanneld service list", "flanneld service list -o json")
	return list(ctx, fs, args, stdout, stderr, c.Services, printServices, func(all []api.Service) any { return api.ServiceList{Services: all} })
}

// printServices is the table that people read; the golden file shows it.
func printServices(w io.Writer, all []api.Service) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "NAME\tNETWORK\tADDRESS\tPORTS\tNODE PORTS\tSELECTOR\tLISTED\tENDPOINTS")
	for _, s := range all {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", s.Name, s.Network, cmp.Or(address(s), "-"), orDash(few(ports(s))), orDash(few(nodePorts(s))),
			cmp.Or(api.Labels(s.Selector), "-"), cmp.Or(strings.Join(few(strings.Fields(join(s.Endpoints))), " "), "-"), behind(s))
	}
	_ = tw.Flush() // a terminal that went away needs no error
}

// few is a list that fits into a column: the first three, and how many more
// there are.
func few(list []string) []string {
	if len(list) <= 3 {
		return list
	}
	return append(slices.Clone(list[:2]), fmt.Sprintf("%s and %d more", list[2], len(list)-3))
}

// address is what a service's name stands for.
func address(s api.Service) string {
	switch {
	case s.Headless:
		return "headless"
	case s.External != "":
		return "alias of " + s.External
	}
	return join(s.VirtualIPs)
}

func ports(s api.Service) (out []string) {
	for _, p := range s.Ports {
		out = append(out, p.String())
	}
	return out
}

func nodePorts(s api.Service) (out []string) {
	for _, p := range s.Ports {
		if p.NodePort != 0 || p.NodePortAuto {
			out = append(out, p.NodePortText())
		}
	}
	return out
}

// behind is how many endpoints a service has.
func behind(s api.Service) string {
	switch {
	case s.State == nil || s.External != "":
		return "-"
	case s.State.LeftOut > 0:
		return fmt.Sprintf("%d, %d left out", s.State.Endpoints, s.State.LeftOut)
	}
	return strconv.Itoa(s.State.Endpoints)
}

func serviceDelete(ctx context.Context, c *api.Client, args []string, stdout, stderr io.Writer) int {
	fs := newFlags("service delete", "NAME", "Remove a service. Its containers stay.", "flanneld service delete frontend")
	network := fs.String("network", endpoint.DefaultNetwork, "`NETWORK` of the service")
	operands, code, done := parseArgs(fs, args, 1, 1, stdout, stderr)
	if done {
		return code
	}
	ch, err := c.DeleteService(ctx, endpoint.DefaultTenant, *network, operands[0])
	if err != nil {
		return refused(stderr, err)
	}
	if ch.Note != "" {
		fmt.Fprintln(stderr, "note:", ch.Note)
	}
	return exitOK
}
