// The CNI plugin flanneld-bridge plugs containers into a bridge.
package main

import (
	"os"

	"github.com/flanneld/flanneld/cni/plugin"
)

func main() {
	os.Exit(plugin.Bridge(plugin.IO{Getenv: os.Getenv, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}))
}
