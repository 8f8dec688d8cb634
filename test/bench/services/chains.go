package main

import (
	"context"
	"fmt"
	"os/exec"
	"strings"

	"github.com/flanneld/flanneld/kernel/rules"
)

// chains is the shape that kube-proxy's nftables mode began with: a chain for
// each service, which chooses one of the chains of its endpoints. nft loads it.
type chains struct{ last map[*rules.Frontend]bool }

// Sync writes the frontends that it does not know yet.
func (c *chains) Sync(ctx context.Context, s rules.Services) error {
	var text strings.Builder
	if c.last == nil {
		c.last = map[*rules.Frontend]bool{}
		text.WriteString(`add table inet peer
add map inet peer services { type ipv4_addr . inet_proto . inet_service : verdict; }
add chain inet peer pre { type nat hook prerouting priority -100; }
add chain inet peer out { type nat hook output priority -100; }
add rule inet peer pre ip daddr . meta l4proto . th dport vmap @services
add rule inet peer out ip daddr . meta l4proto . th dport vmap @services
`)
	}
	for _, f := range s.Frontends {
		if c.last[f] {
			continue
		}
		c.last[f] = true
		name := "service-" + f.Addr.String()
		fmt.Fprintf(&text, "add chain inet peer %s\nflush chain inet peer %s\n", name, name)
		var verdicts []string
		for i, e := range f.Slots {
			one := fmt.Sprintf("endpoint-%s-%d", f.Addr, i)
			fmt.Fprintf(&text, "add chain inet peer %s\nflush chain inet peer %s\nadd rule inet peer %s meta l4proto tcp dnat ip to %s\n", one, one, one, e)
			verdicts = append(verdicts, fmt.Sprintf("%d : goto %s", i, one))
		}
		fmt.Fprintf(&text, "add rule inet peer %s numgen random mod %d vmap { %s }\n", name, len(f.Slots), strings.Join(verdicts, ", "))
		fmt.Fprintf(&text, "add element inet peer services { %s . tcp . %d : goto %s }\n", f.Addr, f.Port, name)
	}
	cmd := exec.CommandContext(ctx, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(text.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, out)
	}
	return nil
}
