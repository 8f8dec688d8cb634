package cli

import (
	"github.com/flanneld/flanneld/backend/outlive"
	"github.com/flanneld/flanneld/backend/udp"
	"github.com/flanneld/flanneld/kernel/wireguard/userspace"
)

// keepers is the one place that knows every device that a process of this
// program keeps. They are no subcommand for people: the daemon starts them.
func keepers() map[string]outlive.Keeper {
	return map[string]outlive.Keeper{
		userspace.Kind: userspace.Keep,
		udp.Kind:       udp.Keep,
	}
}
