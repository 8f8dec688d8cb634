package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/flanneld/flanneld/lab"
)

func labExec(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	fs, name := labFlags("exec", "[flags] HOST[/CONTAINER] [-- COMMAND]", `Run a command on a host, or in one of its containers, and end with its exit code. Without a
command: a shell. The host named switch is what the others are plugged into.`,
		"flanneld lab exec host2 -- flanneld status",
		"flanneld lab exec host2/web -- ip address",
		"flanneld lab exec switch -- tcpdump -ni eth0 udp port 8472")
	operands, argv, code, done := parseOperands(fs, args, 1, stdout, stderr)
	if done {
		return code
	}
	hostName, containerName, inContainer := strings.Cut(operands[0], "/")
	h, err := labHost(*name, hostName)
	if err != nil {
		return labExit(stderr, err)
	}
	argv = orShell(argv)
	if !inContainer {
		return foreground(h.Command(ctx, argv[0], argv[1:]...), stdout, stderr)
	}
	c, err := h.Container(containerName)
	if err != nil {
		return labExit(stderr, err)
	}
	return foreground(c.Command(ctx, argv[0], argv[1:]...), stdout, stderr)
}

func orShell(argv []string) []string {
	if len(argv) == 0 {
		return []string{"sh"}
	}
	return argv
}

func labHost(name, host string) (*lab.Host, error) {
	l, err := openLab(name)
	if err != nil {
		return nil, err
	}
	return l.Host(host)
}

// foreground runs a command with this program's terminal and returns its exit
// code. The terminal sends Ctrl-C to both; a command that does not end by
// itself then is asked to.
func foreground(cmd *lab.Cmd, stdout, stderr io.Writer) int {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, stdout, stderr
	cmd.Cancel = func() error {
		time.AfterFunc(300*time.Millisecond, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
		return nil
	}
	cmd.WaitDelay = 3 * time.Second
	err := cmd.Run()
	if cmd.ProcessState == nil {
		return labExit(stderr, err)
	}
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return cmd.ProcessState.ExitCode()
}

func labRun(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	fs, name := labFlags("run", "[flags] HOST CONTAINER [-- COMMAND]", `Make a container on a host, plugged in by the CNI plugins, and run a command in it. The container goes
when the command ends; flanneld lab run ends with its exit code. Without a command: a shell.
With -d the container stays until flanneld lab stop, and so does the command, if there is one.
The others reach it by its name, and services choose it by its labels.`,
		"flanneld lab run host1 client -- ping -c 3 web",
		"flanneld lab run -d --label app=sample,tier=front host2 web -- busybox httpd -f -h /usr/share/doc")
	detach := fs.Bool("d", false, "run in the background; print the container's addresses")
	conflist := fs.String("conflist", "", "CNI configuration list `FILE` (default: the pod network)")
	plug := lab.Plug{}
	fs.Func("label", "`LABEL=VALUE[,LABEL=VALUE…]` of the container, for services to choose it by; repeatable", func(text string) error {
		return addLabels(&plug.Labels, text)
	})
	fs.StringVar(&plug.Namespace, "namespace", "", "Kubernetes `NAMESPACE` that the plugins are told (default: none)")
	operands, argv, code, done := parseOperands(fs, args, 2, stdout, stderr)
	if done {
		return code
	}
	if *conflist != "" {
		b, err := os.ReadFile(*conflist)
		if err != nil {
			return labExit(stderr, err)
		}
		plug.Conflist = string(b)
	}
	h, err := labHost(*name, operands[0])
	if err != nil {
		return labExit(stderr, err)
	}
	c, err := h.AttachAs(ctx, operands[1], plug)
	if err != nil {
		return labExit(stderr, err)
	}
	if *detach {
		fmt.Fprintln(stdout, strings.Join(addrs(c), " "))
		if len(argv) == 0 {
			return exitOK
		}
		cmd := c.Command(context.WithoutCancel(ctx), argv[0], argv[1:]...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		return labExit(stderr, cmd.Start())
	}
	argv = orShell(argv)
	code = foreground(c.Command(ctx, argv[0], argv[1:]...), stdout, stderr)
	if err := c.Detach(context.WithoutCancel(ctx)); err != nil {
		return labExit(stderr, err)
	}
	return code
}

func labStop(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	fs, name := labFlags("stop", "[flags] HOST CONTAINER", "Kill what runs in a container, unplug it by CNI DEL and remove it.", "flanneld lab stop host1 web")
	operands, rest, code, done := parseOperands(fs, args, 2, stdout, stderr)
	if done {
		return code
	}
	if len(rest) > 0 {
		return usageErr(stderr, fs, fmt.Errorf("unexpected argument %q", rest[0]))
	}
	h, err := labHost(*name, operands[0])
	if err != nil {
		return labExit(stderr, err)
	}
	c, err := h.Container(operands[1])
	if err != nil {
		return labExit(stderr, err)
	}
	return labExit(stderr, c.Detach(ctx))
}

func labDaemon(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	fs, name := labFlags("daemon", "[flags] start|stop|kill|log HOST [-- FLAGS]", `Start a host's daemon, with the flags it had before unless others are given; stop it (SIGTERM); kill it as
a crash would (SIGKILL); or print its log.`,
		"flanneld lab daemon kill host2",
		"flanneld lab daemon start host2",
		"flanneld lab daemon start host3 -- --etcd-endpoints http://192.168.77.11:2379 --log-level debug")
	operands, flags, code, done := parseOperands(fs, args, 2, stdout, stderr)
	if done {
		return code
	}
	actions := []string{"start", "stop", "kill", "log"}
	if !slices.Contains(actions, operands[0]) {
		return usageErr(stderr, fs, fmt.Errorf("there is no %q, only %s", operands[0], strings.Join(actions, ", ")))
	}
	h, err := labHost(*name, operands[1])
	if err != nil {
		return labExit(stderr, err)
	}
	if operands[0] == "log" {
		b, err := os.ReadFile(h.LogFile())
		_, _ = stdout.Write(b)
		return labExit(stderr, err)
	}
	d, err := h.LastDaemon()
	if operands[0] == "start" {
		if err == nil && len(flags) == 0 {
			flags = d.Args
		}
		if len(flags) == 0 {
			return labExit(stderr, fmt.Errorf("%s never had a daemon: give its flags after --", h.Name))
		}
		_, err = h.StartDaemon(ctx, flags...)
		return labExit(stderr, err)
	}
	if err != nil {
		return labExit(stderr, err)
	}
	if operands[0] == "kill" {
		return labExit(stderr, d.Kill(ctx))
	}
	return labExit(stderr, d.Stop(ctx))
}

func labUnplug(_ context.Context, args []string, stdout, stderr io.Writer) int {
	return labCable("unplug", "Cut a host off the others, as pulling its cable at the switch does.", (*lab.Host).Unplug, args, stdout, stderr)
}

func labPlug(_ context.Context, args []string, stdout, stderr io.Writer) int {
	return labCable("plug", "Undo flanneld lab unplug.", (*lab.Host).Plug, args, stdout, stderr)
}

func labCable(name, text string, do func(*lab.Host) error, args []string, stdout, stderr io.Writer) int {
	fs, labName := labFlags(name, "[flags] HOST", text, "flanneld lab "+name+" host2")
	operands, rest, code, done := parseOperands(fs, args, 1, stdout, stderr)
	if done {
		return code
	}
	if len(rest) > 0 {
		return usageErr(stderr, fs, fmt.Errorf("unexpected argument %q", rest[0]))
	}
	h, err := labHost(*labName, operands[0])
	if err == nil {
		err = do(h)
	}
	return labExit(stderr, err)
}
