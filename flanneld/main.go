// Command flanneld is the daemon of one host and the command line to it.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/flanneld/flanneld/flanneld/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	os.Exit(cli.Run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}
