package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/flanneld/flanneld/cni/install"
	"github.com/flanneld/flanneld/flanneld/config"
)

// CNI is the subcommand "cni". It returns the exit code.
func CNI(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	action := ""
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		action, args = args[0], args[1:]
	}
	var o install.Options
	fs := newFlags("cni", "install|remove [flags]", `install copies flanneld-bridge and flanneld-ipam to where container engines
look for CNI plugins and, when the network is ready, writes the conflist that
makes engines use them. remove takes both away.`,
		"flanneld cni install                         # containerd, CRI-O, podman 4",
		"flanneld cni install --name pods --wait 5m")
	fs.StringVar(&o.From, "from", "", "`FOLDER` to copy the plugins from (default: that of this program)")
	fs.StringVar(&o.BinDir, "bin-dir", "/opt/cni/bin", "`FOLDER` where engines look for plugins")
	fs.StringVar(&o.ConfDir, "conf-dir", "/etc/cni/net.d", "`FOLDER` where engines look for network configurations")
	fs.StringVar(&o.Name, "name", "flannel", "`NAME` of the network; the conflist is 10-NAME.conflist")
	fs.StringVar(&o.SubnetFile, "subnet-file", config.StateDir+"/subnet.env", "`FILE` that tells that the network is ready")
	fs.BoolVar(&o.Force, "force", false, "overwrite a conflist that is there")
	wait := fs.Duration("wait", time.Minute, "how long to wait for the network to be ready")
	if code, done := parse(fs, args, stdout, stderr); done {
		return code
	}
	switch action {
	case "install":
		return cniInstall(ctx, o, *wait, stdout, stderr)
	case "remove":
		return cniExit(stderr, install.Remove(o))
	case "":
		return usageErr(stderr, fs, errors.New("say what to do: install or remove"))
	default:
		return usageErr(stderr, fs, fmt.Errorf("there is no %q, only install and remove", action))
	}
}

func cniInstall(ctx context.Context, o install.Options, wait time.Duration, stdout, stderr io.Writer) int {
	ctx, cancel := context.WithTimeoutCause(ctx, wait, fmt.Errorf("waited %s, see --wait", wait))
	defer cancel()
	o.Waiting = func(file string) { fmt.Fprintf(stderr, "waiting for %s, which flanneld writes\n", file) }
	res, err := install.Run(ctx, o)
	for _, path := range res.Binaries {
		fmt.Fprintln(stdout, "installed", path)
	}
	if err != nil {
		return cniExit(stderr, err)
	}
	if res.Kept {
		fmt.Fprintln(stdout, "kept", res.Conflist, "as it was (--force writes it anew)")
	} else {
		fmt.Fprintln(stdout, "wrote", res.Conflist)
	}
	for _, path := range res.First {
		fmt.Fprintf(stderr, "note: %s sorts before it: engines that take the first configuration will not use this network\n", path)
	}
	return exitOK
}

// cniExit reports err, if any, and returns the exit code.
func cniExit(stderr io.Writer, err error) int {
	if err == nil {
		return exitOK
	}
	fmt.Fprintln(stderr, "flanneld cni:", err)
	return exitFailure
}
