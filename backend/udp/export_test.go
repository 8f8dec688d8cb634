package udp

import (
	"context"

	"github.com/flanneld/flanneld/backend/udp/loop"
	"github.com/flanneld/flanneld/kernel/netns"
)

// KeeperOf tells who keeps a device of a namespace, and what it counted.
func KeeperOf(ctx context.Context, dir, device string, ns *netns.NS) (pid int, c loop.Counters, err error) {
	path, err := socket(dir, device, ns)
	if err != nil {
		return 0, c, err
	}
	talk, err := connect(ctx, device, path)
	if err != nil {
		return 0, c, err
	}
	defer talk.close()
	return talk.PID, talk.Counters, nil
}
