package lab

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/libcni"
	types "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/link"
	"github.com/flanneld/flanneld/kernel/netns"
)

// Conflist is the CNI configuration of containers that ask for no other: the
// pod network through our own plugins.
const Conflist = `{
  "cniVersion": "1.0.0",
  "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
  "name": "flannel",
  "plugins": [
    {
      "type": "flanneld-bridge",
      "isDefaultGateway": true,
      "hairpinMode": true,
      "ipam": {"type": "flanneld-ipam"},
      "capabilities": {"aliases": true}
    }
  ]
}
`

// Container is a named network namespace of a host, plugged in by CNI. It
// has the host's files, and it lasts until Detach: no process keeps it alive.
type Container struct {
	Name string
	// Addrs are its addresses on eth0, with the subnet's length. Empty if
	// the plugins have not finished.
	Addrs []netip.Prefix
	// Conflist is the CNI configuration it was plugged in with.
	Conflist json.RawMessage
	// Namespace is Kubernetes', as the plugins were told; "" if they were told
	// none.
	Namespace string `json:",omitempty"`

	host *Host
}

// Plug says how a container is plugged in. The zero value is the pod network,
// without labels.
type Plug struct {
	Conflist string // CNI configuration list; "": Conflist
	// Namespace and Labels are what the plugins are told, as a container engine
	// does.
	Namespace string
	Labels    map[string]string
}

// Attach is AttachAs with a CNI configuration list alone; "" is Conflist.
func (h *Host) Attach(ctx context.Context, name, conflist string) (*Container, error) {
	return h.AttachAs(ctx, name, Plug{Conflist: conflist})
}

// AttachAs makes a container and plugs it in. Its name is also what the plugins
// are told as the pod's. If they name DNS servers, what runs in it asks those.
// On error nothing is left of it.
func (h *Host) AttachAs(ctx context.Context, name string, p Plug) (*Container, error) {
	if err := checkName("container", name); err != nil {
		return nil, err
	}
	conflist, err := labelled(cmp.Or(p.Conflist, Conflist), p.Labels)
	if err != nil {
		return nil, fmt.Errorf("CNI configuration of container %s: %w", name, err)
	}
	c := &Container{Name: name, Conflist: conflist, Namespace: p.Namespace, host: h}
	list, err := libcni.NetworkConfFromBytes(c.Conflist)
	if err != nil {
		return nil, fmt.Errorf("CNI configuration of container %s: %w", name, err)
	}
	if err := c.create(); err != nil {
		return nil, err
	}
	err = h.Do(func() error {
		result, err := c.cni().AddNetworkList(ctx, list, c.runtime())
		if err != nil {
			return err
		}
		r, err := types.GetResult(result)
		if err != nil {
			return err
		}
		for _, ip := range r.IPs {
			addr, _ := netip.AddrFromSlice(ip.Address.IP)
			bits, _ := ip.Address.Mask.Size()
			c.Addrs = append(c.Addrs, netip.PrefixFrom(addr.Unmap(), bits))
		}
		return c.writeResolvConf(r.DNS)
	})
	if err == nil {
		err = c.save()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("plug container %s into %s: %w", name, h.Name, err), c.Detach(context.WithoutCancel(ctx)))
	}
	return c, nil
}

// Container finds a container of this host.
func (h *Host) Container(name string) (*Container, error) {
	if err := checkName("container", name); err != nil {
		return nil, err
	}
	c := &Container{host: h}
	b, err := os.ReadFile((&Container{Name: name, host: h}).file())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s of lab %s has no container %q", h.Name, h.lab.Name, name)
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, c); err != nil {
		return nil, fmt.Errorf("container %s: %w", name, err)
	}
	return c, nil
}

// Containers lists the host's containers by name.
func (h *Host) Containers() ([]*Container, error) {
	files, err := filepath.Glob((&Container{Name: "*", host: h}).file())
	if err != nil {
		return nil, err
	}
	var out []*Container
	for _, f := range files {
		c, err := h.Container(strings.TrimSuffix(filepath.Base(f), ".json"))
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

// Command is like exec.CommandContext for a program that runs inside the
// container.
func (c *Container) Command(ctx context.Context, name string, args ...string) *Cmd {
	s := c.space()
	s.private = c.Name
	return newCmd(ctx, c.host.lab, s, name, args)
}

// Do runs f on a thread in the container's network namespace.
func (c *Container) Do(f func() error) error { return c.space().do(f) }

// Detach kills what runs in the container, unplugs it by CNI and removes it.
// The container goes even if a plugin fails.
func (c *Container) Detach(ctx context.Context) error {
	var errs []error
	id, ok := nsID{}, false
	errs = append(errs, c.host.Do(func() error {
		id, ok = namespaceAt(c.netns())
		return nil
	}))
	if ok {
		errs = append(errs, kill(ctx, map[nsID]bool{id: true}))
	}
	list, err := libcni.NetworkConfFromBytes(c.Conflist)
	if err != nil {
		return err
	}
	errs = append(errs,
		c.host.Do(func() error {
			return errors.Join(c.cni().DelNetworkList(ctx, list, c.runtime()), netns.Remove(c.netns()), os.RemoveAll(filepath.Dir(resolvConf(c.Name))))
		}),
		os.Remove(c.file()))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("unplug container %s of %s: %w", c.Name, c.host.Name, err)
	}
	return nil
}

// create makes the record and the namespace, in this order, so that whatever
// exists can be found.
func (c *Container) create() error {
	if err := os.MkdirAll(filepath.Dir(c.file()), 0o700); err != nil {
		return err
	}
	if _, err := os.Stat(c.file()); err == nil {
		return fmt.Errorf("%s has a container %s already (flanneld lab stop %s %s removes it)", c.host.Name, c.Name, c.host.Name, c.Name)
	}
	if err := c.save(); err != nil {
		return err
	}
	err := c.host.Do(func() error {
		f, err := os.OpenFile(c.netns(), os.O_CREATE|os.O_EXCL, 0o444)
		if err != nil {
			return err
		}
		f.Close()
		// On this very thread: it alone sees the host's files.
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if err := unix.Mount("/proc/thread-self/ns/net", c.netns(), "", unix.MS_BIND, ""); err != nil {
			return err
		}
		w, err := link.OpenWiring()
		if err != nil {
			return err
		}
		defer w.Close()
		return w.Loopback()
	})
	if err != nil {
		err = errors.Join(fmt.Errorf("make namespace of container %s: %w", c.Name, err),
			c.host.Do(func() error { return netns.Remove(c.netns()) }), os.Remove(c.file()))
	}
	return err
}

func (c *Container) save() error {
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return os.WriteFile(c.file(), b, 0o600)
}

func (c *Container) cni() *libcni.CNIConfig {
	return libcni.NewCNIConfig([]string{c.host.lab.Programs, "/opt/cni/bin"}, nil)
}

func (c *Container) runtime() *libcni.RuntimeConf {
	args := [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAME", c.Name}}
	if c.Namespace != "" {
		args = append(args, [2]string{"K8S_POD_NAMESPACE", c.Namespace})
	}
	return &libcni.RuntimeConf{ContainerID: c.Name, NetNS: c.netns(), IfName: "eth0", Args: args}
}

func (c *Container) space() space { return space{dir: c.host.dir(), netns: c.netns()} }

func (c *Container) netns() string { return filepath.Join(netns.Dir, c.Name) }

func (c *Container) file() string {
	return filepath.Join(c.host.dir(), "containers", c.Name+".json")
}
