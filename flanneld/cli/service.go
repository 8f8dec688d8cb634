package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/flanneld/api"
)

const serviceHelp = `usage: flanneld service COMMAND

A service is a name for containers that are chosen by their labels, on any host: frontend.default.svc.cluster.local,
for containers frontend.default.svc or, with the search list that they have, frontend.

  create   make a service
  list     list the services, and how many containers each has
  delete   remove one

Each takes --help. To begin with:

  flanneld service create frontend --port http=8888 --selector app=sample
  flanneld dns lookup frontend -v
`

// serviceCmd is "flanneld service".
func serviceCmd(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	return serviceWith(ctx, api.NewClient(api.Socket), args, stdout, stderr)
}

func serviceWith(ctx context.Context, c *api.Client, args []string, stdout, stderr io.Writer) int {
	return group(ctx, "service", serviceHelp, map[string]command{
		"create": with(c, serviceCreate), "list": with(c, serviceList), "delete": with(c, serviceDelete),
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
	fmt.Fprintln(stderr, "flanneld:", e.Message)
	if e.Status == http.StatusBadRequest {
		return exitUsage
	}
	return exitFailure
}

func serviceCreate(ctx context.Context, c *api.Client, args []string, stdout, stderr io.Writer) int {
	fs := newFlags("service create", "NAME [flags]", `Make a service. Its name stands for the containers of the network that carry all labels of --selector, and for the
addresses of --endpoint, which may be outside. To make what is there already, exactly as it is, is no error.`,
		"flanneld service create frontend --port http=8888 --selector app=sample",
		"flanneld service create dns --port udp=53/udp --port tcp=53 --selector app=resolver,tier=infra",
		"flanneld service create db --headless --port 5432 --endpoint 192.0.2.7 --endpoint 192.0.2.8")
	s := api.Service{Tenant: endpoint.DefaultTenant}
	fs.Func("port", "`[NAME=]PORT[:TARGET][/tcp|udp|sctp]`: TARGET is the containers' port if it is another; repeatable, named if there are several",
		func(text string) error {
			p, err := parsePort(text)
			s.Ports = append(s.Ports, p)
			return err
		})
	fs.Func("selector", "`LABEL=VALUE[,LABEL=VALUE…]` that a container must all carry; repeatable", func(text string) error {
		return addLabels(&s.Selector, text)
	})
	fs.Func("endpoint", "`ADDRESS` that belongs to the service, beside the selected containers; repeatable", func(text string) error {
		for part := range strings.SplitSeq(text, ",") {
			a, err := netip.ParseAddr(strings.TrimSpace(part))
			if err != nil {
				return errors.New("give an IP address, such as 192.0.2.7")
			}
			s.Endpoints = append(s.Endpoints, a)
		}
		return nil
	})
	fs.BoolVar(&s.Headless, "headless", false, "the name stands for the endpoints themselves and never for a virtual IP")
	fs.StringVar(&s.Network, "network", endpoint.DefaultNetwork, "`NETWORK` of the service")
	replace := fs.Bool("replace", false, "alter the service if there is another one of that name")
	operands, code, done := parseArgs(fs, args, 1, 1, stdout, stderr)
	if done {
		return code
	}
	s.Name = operands[0]
	if len(s.Selector)+len(s.Endpoints) == 0 {
		return usageErr(stderr, fs, errors.New("nothing would belong to the service: give --selector LABEL=VALUE or --endpoint ADDRESS"))
	}
	ch, err := c.CreateService(ctx, s, *replace)
	switch {
	case err != nil:
		return refused(stderr, err)
	case !ch.Changed:
		fmt.Fprintf(stdout, "%s exists already, unchanged\n", ch.FQDN)
	default:
		fmt.Fprintln(stdout, ch.FQDN)
	}
	return exitOK
}

// parsePort reads [name=]port[:target][/protocol].
func parsePort(text string) (api.Port, error) {
	p := api.Port{Protocol: "tcp"}
	rest, protocol, ok := strings.Cut(strings.ToLower(strings.TrimSpace(text)), "/")
	if ok {
		p.Protocol = protocol
	}
	name, number, named := strings.Cut(rest, "=")
	if !named {
		name, number = "", rest
	}
	p.Name = name
	number, target, hasTarget := strings.Cut(number, ":")
	var err error
	if p.Port, err = portNumber(number); err == nil && hasTarget {
		p.Target, err = portNumber(target)
	}
	switch {
	case err != nil:
		return p, err
	case named && name == "":
		return p, errors.New("the name before = is empty")
	case p.Protocol != "tcp" && p.Protocol != "udp" && p.Protocol != "sctp":
		return p, fmt.Errorf("protocol %q: use tcp, udp or sctp", p.Protocol)
	}
	return p, nil
}

func portNumber(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("port %q: give a number from 1 to 65535, as in http=8888 or 80:8080/tcp", s)
	}
	return uint16(n), nil
}

// addLabels reads k=v,k=v into a map.
func addLabels(m *map[string]string, text string) error {
	if *m == nil {
		*m = map[string]string{}
	}
	for part := range strings.SplitSeq(text, ",") {
		k, v, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok || k == "" {
			return fmt.Errorf("%q: give LABEL=VALUE, such as app=sample", part)
		}
		if was, ok := (*m)[k]; ok && was != v {
			return fmt.Errorf("label %s is given twice, as %q and as %q", k, was, v)
		}
		(*m)[k] = v
	}
	return nil
}

func serviceList(ctx context.Context, c *api.Client, args []string, stdout, stderr io.Writer) int {
	fs := newFlags("service list", "[-o json]", "List the services, and how many containers and addresses each stands for now.",
		"flanneld service list", "flanneld service list -o json")
	return list(ctx, fs, args, stdout, stderr, c.Services, printServices, func(all []api.Service) any { return api.ServiceList{Services: all} })
}

// printServices is the table that people read; the golden file shows it.
func printServices(w io.Writer, all []api.Service) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "NAME\tNETWORK\tADDRESS\tPORTS\tSELECTOR\tLISTED\tENDPOINTS")
	for _, s := range all {
		var ports []string
		for _, p := range s.Ports {
			ports = append(ports, p.String())
		}
		address := join(s.VirtualIPs)
		if s.Headless {
			address = "headless"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", s.Name, s.Network, cmp.Or(address, "-"), orDash(ports),
			cmp.Or(api.Labels(s.Selector), "-"), cmp.Or(join(s.Endpoints), "-"), behind(s.State))
	}
	_ = tw.Flush() // a terminal that went away needs no error
}

// behind is how many endpoints a service has.
func behind(s *api.ServiceState) string {
	switch {
	case s == nil:
		return "-"
	case s.LeftOut > 0:
		return fmt.Sprintf("%d, %d left out", s.Endpoints, s.LeftOut)
	}
	return strconv.Itoa(s.Endpoints)
}

func serviceDelete(ctx context.Context, c *api.Client, args []string, stdout, stderr io.Writer) int {
	fs := newFlags("service delete", "NAME", "Remove a service. Its containers stay.", "flanneld service delete frontend")
	network := fs.String("network", endpoint.DefaultNetwork, "`NETWORK` of the service")
	operands, code, done := parseArgs(fs, args, 1, 1, stdout, stderr)
	if done {
		return code
	}
	if err := c.DeleteService(ctx, endpoint.DefaultTenant, *network, operands[0]); err != nil {
		return refused(stderr, err)
	}
	return exitOK
}
