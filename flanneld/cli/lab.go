package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/flanneld/flanneld/lab"
)

const labHelp = `usage: flanneld lab COMMAND

Hosts made of namespaces on this machine, to try things out. The machine's own network is not touched.
A lab stays until it is taken down; several with different --name do not disturb each other.

  up       make hosts, and a daemon on each
  down     kill and remove all of it
  list     list the labs
  show     list hosts, daemons and containers
  exec     run a command on a host, or in a container
  run      run a command in a new container, plugged in by the CNI plugins
  stop     unplug and remove a container
  daemon   start, stop, kill or read the log of a host's daemon
  unplug   pull a host's cable
  plug     put it back
  demo     three hosts and their containers ping each other, until Ctrl-C

Each takes --help. To begin with:

  flanneld lab up --hosts 3
  flanneld lab run -d host1 web
  flanneld lab run host2 client -- ping -c 3 ADDRESS
  flanneld lab down
`

// Lab is the subcommand "lab". It returns the exit code.
func Lab(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	return group(ctx, "lab", labHelp, map[string]command{
		"up": labUp, "down": labDown, "list": labList, "show": labShow, "exec": labExec, "run": labRun,
		"stop": labStop, "daemon": labDaemon, "unplug": labUnplug, "plug": labPlug, "demo": labDemo,
	}, args, stdout, stderr)
}

// labFlags adds to newFlags what every lab command has.
func labFlags(name, synopsis, text string, examples ...string) (*flag.FlagSet, *string) {
	fs := newFlags("lab "+name, synopsis, text, examples...)
	return fs, fs.String("name", "lab", "`NAME` of the lab")
}

// parseOperands reads flags and n operands in any order, and the command that
// follows them, with or without "--" in between.
func parseOperands(fs *flag.FlagSet, args []string, n int, stdout, stderr io.Writer) (operands, command []string, code int, done bool) {
	operands, command, err := scan(fs, args, n)
	if i := slices.Index(args, "--"); err == nil && i >= 0 && len(command) > len(args)-i-1 {
		err = fmt.Errorf("unexpected argument %q before --", command[0])
	}
	code, done = checkArgs(fs, err, len(operands), n, stdout, stderr)
	return operands, command, code, done
}

// labExit reports err and returns the exit code.
func labExit(stderr io.Writer, err error) int {
	if err == nil {
		return exitOK
	}
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintf(stderr, "flanneld lab: %s\n", strings.TrimSuffix(line, "\n"))
	}
	return exitFailure
}

// openLab finds a lab and says what to do if there is none.
func openLab(name string) (*lab.Lab, error) {
	l, err := lab.Open(name)
	if errors.Is(err, lab.ErrNoLab) {
		return nil, fmt.Errorf("there is no lab %s: flanneld lab up --name %s makes one", name, name)
	}
	return l, err
}

func labUp(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	fs, name := labFlags("up", "[flags]", `Make hosts host1, host2, … with addresses 192.168.77.11, 192.168.77.12, … and start flanneld on each:
on host1 with the embedded etcd for all of them. They stay until flanneld lab down.`,
		"flanneld lab up --hosts 3",
		"flanneld lab up --name plain --hosts 2 --no-daemons")
	o := lab.Options{}
	fs.IntVar(&o.Hosts, "hosts", 3, "`NUMBER` of hosts")
	fs.IntVar(&o.MTU, "mtu", 1500, "`MTU` of the network between the hosts")
	fs.BoolVar(&o.Replace, "force", false, "take an existing lab of that name down first")
	fs.StringVar(&o.Programs, "programs", "", "`FOLDER` of flanneld, flanneld-bridge and flanneld-ipam (default: that of this program)")
	network := fs.String("network", demoNetwork, "pod network `CIDRS`: IPv4, IPv6, or both with a comma")
	noDaemons := fs.Bool("no-daemons", false, "make the hosts only")
	if code, done := parse(fs, args, stdout, stderr); done {
		return code
	}
	o.Name = *name
	start := time.Now()
	l, err := lab.Up(ctx, o)
	if err == nil && !*noDaemons {
		startCtx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("waited a minute"))
		defer cancel()
		if err = l.StartCluster(startCtx, *network); err != nil {
			err = errors.Join(err, l.Down(context.WithoutCancel(ctx)))
		}
	}
	if err != nil {
		return labExit(stderr, err)
	}
	fmt.Fprintf(stdout, "lab %s is up, %.1f s\n\n", l.Name, time.Since(start).Seconds())
	if err := showHosts(stdout, l); err != nil {
		return labExit(stderr, err)
	}
	printNext(stdout, l.Name, !*noDaemons)
	return exitOK
}

// printNext says what one can do with a new lab.
func printNext(w io.Writer, name string, daemons bool) {
	flags := nameFlag(name)
	fmt.Fprintf(w, "\nNext:\n  flanneld lab exec%s host2 -- ip route\n", flags)
	if daemons {
		fmt.Fprintf(w, "  flanneld lab run%[1]s -d host1 web\n  flanneld lab run%[1]s host2 client -- ping -c 3 ADDRESS-OF-web\n", flags)
	} else {
		fmt.Fprintf(w, "  flanneld lab daemon start%s host1 -- --embed-etcd --network %s\n", flags, demoNetwork)
	}
	fmt.Fprintf(w, "  flanneld lab down%s\n", flags)
}

// nameFlag is what to add to a command so that it finds the lab.
func nameFlag(name string) string {
	if name == "lab" {
		return ""
	}
	return " --name " + name
}

// showHosts prints a table of hosts, their daemons and containers.
func showHosts(w io.Writer, l *lab.Lab) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "HOST\tUNDERLAY\tSUBNET\tDAEMON\tCONTAINERS")
	for _, h := range l.Hosts() {
		daemon := "-"
		if d, err := h.Daemon(); err == nil {
			daemon = fmt.Sprintf("process %d", d.PID)
		}
		containers, err := h.Containers()
		if err != nil {
			return err
		}
		var names []string
		for _, c := range containers {
			names = append(names, strings.Join(append([]string{c.Name}, addrs(c)...), " "))
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", h.Name, h.Addr(), orDash(subnets(h)), daemon, orDash(names))
	}
	return tw.Flush()
}

func orDash(s []string) string {
	if len(s) == 0 {
		return "-"
	}
	return strings.Join(s, ", ")
}

func addrs(c *lab.Container) []string {
	var out []string
	for _, a := range c.Addrs {
		out = append(out, a.Addr().String())
	}
	return out
}

// subnets reads what the host's daemon leased from its subnet.env.
func subnets(h *lab.Host) []string {
	b, err := h.ReadFile("/run/flannel/subnet.env")
	if err != nil {
		return nil
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		if key == "FLANNEL_SUBNET" || key == "FLANNEL_IPV6_SUBNET" {
			out = append(out, value)
		}
	}
	return out
}

func labDown(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	fs, name := labFlags("down", "[--name NAME | --all]", `Kill every process of a lab and remove all of it. Nothing to remove is no error.`,
		"flanneld lab down", "flanneld lab down --all")
	all := fs.Bool("all", false, "take down every lab")
	if code, done := parse(fs, args, stdout, stderr); done {
		return code
	}
	names := []string{*name}
	if *all {
		var err error
		if names, err = lab.List(); err != nil {
			return labExit(stderr, err)
		}
	}
	var errs []error
	for _, n := range names {
		errs = append(errs, lab.Remove(ctx, n))
	}
	return labExit(stderr, errors.Join(errs...))
}

func labList(_ context.Context, args []string, stdout, stderr io.Writer) int {
	fs := newFlags("lab list", "", "List the labs of this machine, remains of broken ones included.", "flanneld lab list")
	if code, done := parse(fs, args, stdout, stderr); done {
		return code
	}
	names, err := lab.List()
	for _, n := range names {
		what := "remains: flanneld lab down --name " + n
		if l, err := lab.Open(n); err == nil {
			what = fmt.Sprintf("%d hosts, since %s", len(l.HostNames), l.Created.Local().Format(time.DateTime))
		}
		fmt.Fprintf(stdout, "%s\t%s\n", n, what)
	}
	return labExit(stderr, err)
}

func labShow(_ context.Context, args []string, stdout, stderr io.Writer) int {
	fs, name := labFlags("show", "[--name NAME]", "List the hosts of a lab, their daemons and containers.", "flanneld lab show")
	if code, done := parse(fs, args, stdout, stderr); done {
		return code
	}
	l, err := openLab(*name)
	if err == nil {
		err = showHosts(stdout, l)
	}
	return labExit(stderr, err)
}
