// The CNI plugin flanneld-ipam gives other CNI plugins addresses.
package main

import (
	"os"

	"github.com/flanneld/flanneld/cni/plugin"
)

func main() {
	os.Exit(plugin.IPAM(plugin.IO{Getenv: os.Getenv, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}))
}
