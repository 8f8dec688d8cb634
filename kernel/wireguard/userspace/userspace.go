// Package userspace is WireGuard for kernels that have none: one process a
// device.
package userspace

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// Kind is what the keeper is called.
const Kind = "wireguard"

// Args are what Keep is to be started with: the path of the socket that
// configures the device, the UDP port, the MTU.
func Args(socket string, port uint16, mtu int) []string {
	return []string{socket, strconv.Itoa(int(port)), strconv.Itoa(mtu)}
}

// Keep makes a TUN device and runs WireGuard on it, without peers and key as
// yet, until the device is deleted or ctx ends. The device and its UDP port
// are open when it calls ready, and its socket answers. An earlier process's
// socket is replaced. It is meant to have a process of its own.
func Keep(ctx context.Context, name string, args []string, ready func()) error {
	if len(args) != 3 {
		return fmt.Errorf("%d arguments instead of socket, port, MTU", len(args))
	}
	port, err := strconv.ParseUint(args[1], 10, 16)
	if err != nil {
		return err
	}
	mtu, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	t, err := makeTUN(name, mtu)
	if err != nil {
		return fmt.Errorf("make TUN device %s: %w", name, err)
	}
	log := &device.Logger{Verbosef: device.DiscardLogf, Errorf: device.DiscardLogf}
	d := device.NewDevice(t, conn.NewDefaultBind(), log)
	defer d.Close()
	if err := d.IpcSet(fmt.Sprintf("listen_port=%d\n", port)); err != nil {
		return err
	}
	if err := d.Up(); err != nil { // opens the port
		if errors.Is(err, syscall.EADDRINUSE) {
			return fmt.Errorf("UDP port %d is in use: end who has it (ss -lunp), or set another ListenPort (IPv6: ListenPortV6) in the configuration's Backend", port)
		}
		return fmt.Errorf("open UDP port %d: %w", port, err)
	}
	l, err := listen(args[0])
	if err != nil {
		return err
	}
	defer l.Close()
	go func() { // ends with l
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go d.IpcHandle(c)
		}
	}()
	ready()
	select {
	case <-d.Wait():
	case <-ctx.Done():
	}
	return nil
}

// makeTUN makes the device and switches it on before WireGuard looks: what
// looks every second whether it is on would begin with off.
func makeTUN(name string, mtu int) (tun.Device, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENODEV) {
			err = fmt.Errorf("%w: the kernel has no TUN devices (CONFIG_TUN, module tun)", err)
		}
		return nil, err
	}
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}
	if err == nil {
		err = switchOn(name)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	// From here on the file is non-blocking and polled.
	f := os.NewFile(uintptr(fd), "/dev/net/tun")
	t, err := tun.CreateTUNFromFile(f, mtu)
	if err != nil {
		f.Close()
	}
	return t, err
}

// switchOn sets an interface up.
func switchOn(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, ifr); err != nil {
		return fmt.Errorf("switch it on: %w", err)
	}
	ifr.SetUint16(ifr.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("switch it on: %w", err)
	}
	return nil
}

// listen makes the socket in its place in one step. It is never removed: the
// name may be a later process's by then.
func listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	made := fmt.Sprintf("%s.%d", path, os.Getpid())
	_ = os.Remove(made)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: made, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(made, 0o600), os.Rename(made, path)); err != nil {
		l.Close()
		return nil, errors.Join(err, os.Remove(made))
	}
	return l, nil
}
