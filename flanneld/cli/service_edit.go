package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/flanneld/server"
	"github.com/flanneld/flanneld/service"
	"github.com/flanneld/flanneld/service/manifest"
)

// said is what was given for the flags about a service, by their names.
type said map[string][]string

func serviceFlags(fs *flag.FlagSet) said {
	given := said{}
	for _, f := range manifest.Fields() {
		define := fs.Func
		if f.Switch {
			define = fs.BoolFunc
		}
		define(f.Name, f.Usage, func(text string) error {
			given[f.Name] = append(given[f.Name], text)
			return nil
		})
	}
	return given
}

// alter makes s what was said, and leaves alone what was not.
func (given said) alter(s *service.Service) error {
	for _, f := range manifest.Fields() {
		texts, ok := given[f.Name]
		if !ok {
			continue
		}
		if err := f.Set(s, texts); err != nil {
			return fmt.Errorf("--%s %w", f.Name, err)
		}
	}
	if given["ip"] == nil && (s.Headless || s.External != "") {
		s.VirtualIPs = nil
	}
	return nil
}

// mistake adds the flag that err, of a service that was said, is about.
func mistake(err error) error {
	if f, ok := errors.AsType[*service.FieldError](err); ok {
		if name := manifest.NameOf(f.Field); name != "" {
			return fmt.Errorf("%w (--%s)", err, name)
		}
	}
	return err
}

func serviceCreate(ctx context.Context, c *api.Client, args []string, stdout, stderr io.Writer) int {
	fs := newFlags("service create", "NAME --port PORT --selector LABEL=VALUE [flags]", `Make a service. Its name stands for a virtual IP, which leads to the containers of the network that carry all labels of
--selector, and to the addresses of --endpoint, which may be outside. To make what is there already, exactly as it is, is no error.`,
		"flanneld service create frontend --port http=80:8888 --selector app=sample",
		"flanneld service create web --port http=80:web --selector app=sample,tier=front --node-port auto --health http:/healthz",
		"flanneld service create dns --port udp=53/udp --port tcp=53 --selector app=resolver --ip 10.0.0.206 --local prefer-local",
		"flanneld service create game --port 7777/udp --selector app=game --affinity client-ip=1h --node-port 30777",
		"flanneld service create db --headless --port 5432 --endpoint 192.0.2.7 --endpoint 192.0.2.8",
		"flanneld service create mail --external mx.example.com")
	given := serviceFlags(fs)
	network := fs.String("network", endpoint.DefaultNetwork, "`NETWORK` of the service")
	replace := fs.Bool("replace", false, "alter the service if there is another one of that name")
	operands, code, done := parseArgs(fs, args, 1, 1, stdout, stderr)
	if done {
		return code
	}
	s := &service.Service{Tenant: endpoint.DefaultTenant, Network: *network, Name: strings.ToLower(operands[0])}
	if err := given.alter(s); err != nil {
		return usageErr(stderr, fs, err)
	}
	if err := manifest.Complete(s); err != nil {
		return usageErr(stderr, fs, mistake(err))
	}
	put := c.CreateService
	if *replace {
		put = func(ctx context.Context, s api.Service) (api.Change, error) { return c.ReplaceService(ctx, s, false) }
	}
	w := server.Wire(s)
	w.Version = "" // of whatever is there
	ch, err := put(ctx, w)
	switch {
	case err != nil:
		return refused(stderr, err)
	case !ch.Changed:
		fmt.Fprintln(stdout, standsFor(ch), "exists already, unchanged")
	default:
		fmt.Fprintln(stdout, standsFor(ch))
	}
	if ch.Note != "" {
		fmt.Fprintln(stderr, "note:", ch.Note)
	}
	return exitOK
}

// standsFor is a service's name and what leads to it.
func standsFor(ch api.Change) string {
	out := strings.TrimSpace(ch.FQDN + " " + join(ch.Addresses))
	if ch.Service == nil {
		return out
	}
	if list := nodePorts(*ch.Service); len(list) > 0 {
		out += ", node port " + strings.Join(list, ", ")
	}
	return out
}

func serviceUpdate(ctx context.Context, c *api.Client, args []string, stdout, stderr io.Writer) int {
	fs := newFlags("service update", "NAME flags", `Change a service: what is not given stays as it is. A flag's value takes the place of what the service has, lists as a whole;
an empty one clears it. Node ports stay with their ports, and the virtual IP with the service; --ip "" has another one chosen.`,
		"flanneld service update frontend --selector app=sample,tier=front",
		"flanneld service update frontend --node-port http=auto --local prefer-local",
		`flanneld service update frontend --affinity "" --health none`)
	given := serviceFlags(fs)
	network := fs.String("network", endpoint.DefaultNetwork, "`NETWORK` of the service")
	operands, code, done := parseArgs(fs, args, 1, 1, stdout, stderr)
	if done {
		return code
	}
	if len(given) == 0 {
		return usageErr(stderr, fs, errors.New("nothing to change: give what shall be different"))
	}
	have, err := c.StoredService(ctx, endpoint.DefaultTenant, *network, operands[0])
	if err != nil {
		return refused(stderr, err)
	}
	s := server.Domain(have)
	if err := given.alter(s); err != nil {
		return usageErr(stderr, fs, err)
	}
	check := s.ValidateNew
	if len(have.Selector)+len(have.Endpoints) > 0 || have.External != "" { // something could belong to it
		check = func() error { return manifest.Complete(s) }
	}
	if err := check(); err != nil {
		return usageErr(stderr, fs, mistake(err))
	}
	want := server.Wire(s)
	want.VirtualIPsAuto = given["ip"] != nil && len(s.VirtualIPs) == 0 && !s.Headless && s.External == ""
	want.Version = have.Version // nobody else's change is undone
	ch, err := c.ReplaceService(ctx, want, false)
	switch {
	case err != nil:
		return refused(stderr, err)
	case !ch.Changed:
		fmt.Fprintln(stdout, standsFor(ch), "was so before, unchanged")
	default:
		fmt.Fprintf(stdout, "%s changed (%s)\n", standsFor(ch), strings.Join(ch.Fields, ", "))
	}
	if ch.Note != "" {
		fmt.Fprintln(stderr, "note:", ch.Note)
	}
	return exitOK
}
