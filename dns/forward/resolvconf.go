package forward

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	settle   = 100 * time.Millisecond // after a change of resolv.conf, so that it is read when it is whole
	lookLate = 30 * time.Second       // it is read anyway, should no change be told
	maxServe = 8                      // servers of a resolv.conf that are used; glibc uses 3
	maxLinks = 16                     // symbolic links that are followed
)

// nameservers returns the servers that a resolv.conf lists, in order, each
// once. What is no address is left out.
func nameservers(text string, port uint16) []netip.AddrPort {
	var list []netip.AddrPort
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 || words[0] != "nameserver" {
			continue
		}
		addr, err := netip.ParseAddr(words[1])
		if err != nil || addr.IsMulticast() {
			continue
		}
		if addr.IsUnspecified() { // glibc: this host
			addr = loopback(addr)
		}
		server := netip.AddrPortFrom(addr.Unmap(), port)
		if !slices.Contains(list, server) && len(list) < maxServe {
			list = append(list, server)
		}
	}
	return list
}

func loopback(unspecified netip.Addr) netip.Addr {
	if unspecified.Is4() {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.IPv6Loopback()
}

// reread makes the servers in resolv.conf the upstreams. If there is none, the
// former stay, and the problem is told.
func (f *Forwarder) reread() {
	var former []netip.AddrPort
	var formerProblem string
	if u := f.ups.Load(); u != nil {
		formerProblem = u.problem
		for _, up := range u.list {
			former = append(former, up.addr)
		}
	}
	text, err := os.ReadFile(f.opts.ResolvConf)
	list := nameservers(string(text), f.opts.port)
	problem := ""
	if err != nil {
		problem = err.Error()
	} else if len(list) == 0 {
		problem = f.opts.ResolvConf + " names no server"
	}
	if problem != "" {
		list = former
	}
	if f.ups.Load() != nil && problem == formerProblem && slices.Equal(list, former) {
		return
	}
	f.use(list, problem)
	switch {
	case problem == "":
		f.log.Info("upstreams for outside names", "upstreams", list, "former", former)
	case problem != formerProblem:
		f.log.Warn("resolv.conf is not used", "reason", problem, "upstreams", list)
	}
}

// Reload looks at resolv.conf now. It does not wait for that.
func (f *Forwarder) Reload() {
	select {
	case f.reload <- struct{}{}:
	default:
	}
}

// follow keeps the upstreams what resolv.conf says, until ctx ends. It watches
// the folder of the file and those of each symbolic link on the way to it: the
// file itself is often replaced. A slow look makes up for what is not told.
func (f *Forwarder) follow(ctx context.Context) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		f.log.Warn("changes of resolv.conf are seen late", "error", fmt.Errorf("inotify: %w; raise fs.inotify.max_user_instances", err))
		w = &fsnotify.Watcher{} // whose channels never tell anything
	} else {
		defer w.Close()
	}
	var names []string
	look := time.NewTimer(0)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.reload:
			look.Reset(0)
		case ev := <-w.Events:
			if slices.Contains(names, filepath.Clean(ev.Name)) {
				look.Reset(settle)
			}
		case err := <-w.Errors: // events were lost, at worst
			f.log.Debug("inotify", "error", err)
			look.Reset(settle)
		case <-look.C:
			if err == nil {
				names = watch(w, links(f.opts.ResolvConf))
			}
			f.reread()
			f.judge()
			look.Reset(lookLate)
		}
	}
}

// watch makes w watch the folders of paths and no other, and returns paths.
func watch(w *fsnotify.Watcher, paths []string) []string {
	var dirs []string
	for _, p := range paths {
		dirs = append(dirs, filepath.Dir(p))
	}
	for _, have := range w.WatchList() {
		if !slices.Contains(dirs, have) {
			_ = w.Remove(have) // it is gone, at worst
		}
	}
	for _, dir := range dirs {
		_ = w.Add(dir) // not there yet: the slow look finds it
	}
	return paths
}

// links returns path and what it leads to, link by link.
func links(path string) []string {
	paths := []string{filepath.Clean(path)}
	for range maxLinks {
		to, err := os.Readlink(path)
		if err != nil {
			break
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(path), to)
		}
		path = filepath.Clean(to)
		paths = append(paths, path)
	}
	return paths
}
