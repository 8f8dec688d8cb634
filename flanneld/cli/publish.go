package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/flanneld/api"
)

const publishHelp = `usage: flanneld publish HOST:PORT CONTAINER:PORT[/udp]
       flanneld publish list [-o json]
       flanneld publish remove HOST:PORT[/udp]

Make a port of one host lead to a container, wherever that runs: from outside, from the host itself, also as 127.0.0.1,
and from other containers. CONTAINER is its name, or the first 12 characters of its id or more; if several have the
name, connections are spread over them. HOST is the name of a host, as flanneld status shows it. It stays until it is
removed, also without the container.

Examples:
  flanneld publish host1:8080 web:80
  flanneld publish host1:5353 dns:53/udp
  flanneld publish list
  flanneld publish remove host1:8080

A port of every host, from 30000 to 32767, is a service's: see flanneld service create --node-port.
`

// publishCmd is "flanneld publish".
func publishCmd(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	return publishWith(ctx, api.NewClient(api.Socket), args, stdout, stderr)
}

func publishWith(ctx context.Context, c *api.Client, args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 || slices.Contains([]string{"list", "remove", "help", "-h", "-help", "--help"}, args[0]) {
		return group(ctx, "publish", publishHelp, map[string]command{
			"list": with(c, publishList), "remove": with(c, publishRemove),
		}, args, stdout, stderr)
	}
	return publish(ctx, c, args, stdout, stderr)
}

func publish(ctx context.Context, c *api.Client, args []string, stdout, stderr io.Writer) int {
	fs := newFlags("publish", "HOST:PORT CONTAINER:PORT[/tcp|udp|sctp]", "Make a port of one host lead to a container.",
		"flanneld publish host1:8080 web:80",
		"flanneld publish host1:5353 dns:53/udp")
	network := fs.String("network", endpoint.DefaultNetwork, "`NETWORK` of the container")
	operands, code, done := parseArgs(fs, args, 2, 2, stdout, stderr)
	if done {
		return code
	}
	p, err := publication(operands[0], operands[1])
	if err != nil {
		return usageErr(stderr, fs, err)
	}
	p.Network = *network
	made, err := c.Publish(ctx, p)
	if err != nil {
		return refused(stderr, err)
	}
	unchanged := ""
	if !made.Changed {
		unchanged = ", unchanged"
	}
	fmt.Fprintf(stdout, "%s leads to %s%s\n", p.At(), p.To(), unchanged)
	for _, n := range made.Notes {
		fmt.Fprintln(stderr, "note:", n)
	}
	return exitOK
}

// publication reads HOST:PORT[/PROTOCOL] CONTAINER:PORT[/PROTOCOL]; the protocol
// need be said once.
func publication(from, to string) (api.Publication, error) {
	p, err := publishedPort(from)
	if err != nil {
		return p, err
	}
	target, port, protocol, err := nameAndPort(to, "CONTAINER:PORT, such as web:80")
	if err != nil {
		return p, err
	}
	if p.Protocol != "" && protocol != "" && p.Protocol != protocol {
		return p, fmt.Errorf("%s leads to %s: give one protocol", from, to)
	}
	p.Target, p.TargetPort, p.Protocol = target, port, cmp.Or(p.Protocol, protocol, "tcp")
	return p, nil
}

// publishedPort reads HOST:PORT[/PROTOCOL].
func publishedPort(text string) (api.Publication, error) {
	p := api.Publication{Tenant: endpoint.DefaultTenant}
	var err error
	p.Host, p.Port, p.Protocol, err = nameAndPort(text, "HOST:PORT, such as host1:8080")
	return p, err
}

// nameAndPort reads NAME:PORT[/PROTOCOL]; protocol is "" if it is not said.
func nameAndPort(text, usage string) (name string, port uint16, protocol string, err error) {
	rest, protocol, hasProtocol := strings.Cut(text, "/")
	protocol = strings.ToLower(protocol)
	if hasProtocol && protocol != "tcp" && protocol != "udp" && protocol != "sctp" {
		return "", 0, "", fmt.Errorf("%q: the protocol is tcp, udp or sctp", text)
	}
	at := strings.LastIndexByte(rest, ':')
	if at <= 0 {
		return "", 0, "", fmt.Errorf("%q: give %s", text, usage)
	}
	name, number := rest[:at], rest[at+1:]
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil || n == 0 {
		return "", 0, "", fmt.Errorf("%q: the port is a number from 1 to 65535: give %s", text, usage)
	}
	if _, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil || strings.Contains(name, ":") {
		return "", 0, "", fmt.Errorf("%q: give the name instead of an address, as %s", text, usage)
	}
	return name, uint16(n), protocol, nil
}

func publishRemove(ctx context.Context, c *api.Client, args []string, stdout, stderr io.Writer) int {
	fs := newFlags("publish remove", "HOST:PORT[/tcp|udp|sctp]", "Take a published port back. Connections through it that stand stay.",
		"flanneld publish remove host1:8080",
		"flanneld publish remove host1:5353/udp")
	operands, code, done := parseArgs(fs, args, 1, 1, stdout, stderr)
	if done {
		return code
	}
	p, err := publishedPort(operands[0])
	if err != nil {
		return usageErr(stderr, fs, err)
	}
	if err := c.Unpublish(ctx, p); err != nil {
		return refused(stderr, err)
	}
	return exitOK
}

func publishList(ctx context.Context, c *api.Client, args []string, stdout, stderr io.Writer) int {
	fs := newFlags("publish list", "[-o json]", "List the published ports of all hosts, and how many containers each leads to now.",
		"flanneld publish list", "flanneld publish list -o json")
	return list(ctx, fs, args, stdout, stderr, c.Publications, printPublications, func(all []api.Publication) any { return api.PublicationList{Publications: all} })
}

// printPublications is the table that people read; the golden file shows it.
func printPublications(w io.Writer, all []api.Publication) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "PORT\tLEADS TO\tNETWORK\tCONTAINERS")
	for _, p := range all {
		containers := "-"
		if s := p.State; s != nil && s.LeftOut > 0 {
			containers = fmt.Sprintf("%d, %d left out", s.Containers-s.LeftOut, s.LeftOut)
		} else if s != nil {
			containers = strconv.Itoa(s.Containers)
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", p.At(), p.To(), p.Network, containers)
	}
	_ = tw.Flush() // a terminal that went away needs no error
}
