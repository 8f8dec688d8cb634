package host

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// managerFile keeps a network manager from touching our devices.
type managerFile struct {
	path, content string
	// needs are paths one of which exists where the manager does.
	needs []string
	// reload tells a running manager; runs is the path that exists while it
	// runs.
	reload []string
	runs   string
}

// managerFiles are all below /run: they vanish with the next boot, as our
// devices do.
func managerFiles(o Options) []managerFile {
	links := slices.DeleteFunc(slices.Concat(o.Tunnels, o.Bridges, o.Patterns), func(l string) bool { return l == "" })
	slices.Sort(links)
	links = slices.Compact(links)
	networkd := []string{"usr/lib/systemd/systemd-networkd", "lib/systemd/systemd-networkd", "run/systemd/netif"}
	udev := []string{"run/udev", "usr/lib/systemd/systemd-udevd", "lib/systemd/systemd-udevd"}
	nm := []string{"run/NetworkManager", "usr/sbin/NetworkManager"}
	const head = "# Written by flanneld: these devices are its own.\n"
	names := strings.Join(links, " ")
	reload := []string{"networkctl", "reload"}
	return []managerFile{
		{"run/systemd/network/10-flanneld.network",
			head + "[Match]\nName=" + names + "\n\n[Link]\nUnmanaged=yes\nActivationPolicy=manual\n",
			networkd, reload, "run/systemd/netif"},
		// Without it a restart of networkd deletes routes that it did not make,
		// also those through the underlay's link, which is its own.
		{"run/systemd/networkd.conf.d/10-flanneld.conf",
			head + "[Network]\nManageForeignRoutes=no\nManageForeignRoutingPolicyRules=no\n",
			networkd, reload, "run/systemd/netif"},
		// Without it udev gives a new tunnel another MAC than the lease tells.
		{"run/systemd/network/10-flanneld.link",
			head + "[Match]\nOriginalName=" + names + "\n\n[Link]\nMACAddressPolicy=none\n",
			udev, nil, ""},
		{"run/NetworkManager/conf.d/10-flanneld.conf",
			head + "[keyfile]\nunmanaged-devices+=interface-name:" + strings.Join(links, ";interface-name:") + "\n",
			nm, []string{"nmcli", "general", "reload", "conf"}, "run/NetworkManager"},
	}
}

// files writes what network managers need to know, where there are any, and
// tells those that run.
func (s *setup) files(ctx context.Context, tell bool) {
	if strings.Join(slices.Concat(s.o.Tunnels, s.o.Bridges, s.o.Patterns), "") == "" {
		return
	}
	for _, f := range managerFiles(s.o) {
		if !slices.ContainsFunc(f.needs, s.exists) {
			continue
		}
		changed, err := write(s.path(f.path), f.content)
		if err != nil {
			s.fail(fmt.Errorf("keep network managers off our devices: %w", err))
			continue
		}
		if !changed {
			continue
		}
		s.changes = append(s.changes, change{Name: "wrote /" + f.path, File: true})
		if tell && len(f.reload) > 0 && s.exists(f.runs) {
			s.run(ctx, f.reload...)
		}
	}
}

func (s *setup) exists(path string) bool {
	_, err := os.Stat(s.path(path))
	return err == nil
}

// run runs a program if it is installed; a host without it needs no telling.
func (s *setup) run(ctx context.Context, args ...string) {
	path, err := exec.LookPath(args[0])
	if err != nil {
		return
	}
	if out, err := exec.CommandContext(ctx, path, args[1:]...).CombinedOutput(); err != nil {
		s.fail(fmt.Errorf("run %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out))))
	}
}

// FiltersBridges tells whether the kernel can hand bridged packets to the packet
// filter (br_netfilter). Where it cannot, what one container sends another of
// the same bridge through a service's address is answered past the filter, and
// lost. root is as in Options.
func FiltersBridges(root string) bool {
	s := setup{o: Options{Root: root}}
	return s.exists("sys/module/br_netfilter") || s.exists("proc/sys/net/bridge")
}

// modules loads br_netfilter, for the bridges, where it is missing: the one
// module that the kernel does not load by itself. A kernel that has it built
// in shows it in one of two places.
func (s *setup) modules(ctx context.Context) {
	const m = "br_netfilter"
	if len(s.o.Bridges) == 0 || FiltersBridges(s.o.Root) {
		return
	}
	if _, err := exec.LookPath("modprobe"); err != nil || !s.exists("lib/modules") {
		return // nothing to load from
	}
	before := len(s.errs)
	if s.run(ctx, "modprobe", m); len(s.errs) == before {
		s.changes = append(s.changes, change{Name: "loaded kernel module " + m})
	}
}
