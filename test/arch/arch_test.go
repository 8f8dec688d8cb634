// Package arch checks that the code keeps to the rooms and rules of the
// design: who may import whom, which library lives where, what a file may
// contain, and that the documentation lists every key that is logged.
package arch

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

const module = "github.com/flanneld/flanneld"

// pkg is one package of this module, as "go list" tells and as parsed.
type pkg struct {
	ImportPath string
	Dir        string
	Doc        string
	GoFiles    []string
	Imports    []string
	Deps       []string
	Error      *struct{ Err string }

	name  string // ImportPath within the module; "." for its root
	files []file // all of them, also those of other build tags and tests
}

type file struct {
	path  string // within the module
	test  bool   // _test.go
	lines int
	ast   *ast.File
}

// support reports whether a package exists only for tests.
func (p *pkg) support() bool { return forTests(p.name) }

// forTests: test/…, and storetest, backendtest and their like.
func forTests(name string) bool { return under(name, "test") || strings.HasSuffix(name, "test") }

var load = sync.OnceValues(func() (*tree, error) {
	root, err := filepath.Abs("../..")
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Dir,Doc,GoFiles,Imports,Deps,Error", "./...")
	cmd.Dir = root
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return nil, errors.Join(err, errors.New(said.String()))
	}
	t := &tree{root: root, fset: token.NewFileSet()}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		p := &pkg{}
		if err := dec.Decode(p); err == io.EOF {
			return t, nil
		} else if err != nil {
			return nil, err
		}
		if err := t.parse(p); err != nil {
			return nil, err
		}
		t.pkgs = append(t.pkgs, p)
	}
})

// tree is the whole module.
type tree struct {
	root string
	fset *token.FileSet
	pkgs []*pkg
}

func (t *tree) parse(p *pkg) error {
	p.name = strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
	if p.name == "" {
		p.name = "."
	}
	paths, err := filepath.Glob(filepath.Join(p.Dir, "*.go"))
	if err != nil {
		return err
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(t.root, path)
		if err != nil {
			return err
		}
		parsed, err := parser.ParseFile(t.fset, rel, text, parser.ParseComments)
		if err != nil {
			return err
		}
		p.files = append(p.files, file{
			path:  rel,
			test:  strings.HasSuffix(path, "_test.go"),
			lines: strings.Count(string(text), "\n"),
			ast:   parsed,
		})
	}
	return nil
}

// whole returns the module, loaded once.
func whole(t *testing.T) *tree {
	t.Helper()
	m, err := load()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// under reports whether a path is one of the rooms or inside one.
func under(path string, rooms ...string) bool {
	return slices.ContainsFunc(rooms, func(room string) bool {
		return path == room || strings.HasPrefix(path, room+"/")
	})
}

// floors are the rooms from top to bottom. A package may import its own floor
// and those below; the longest matching entry counts. What is only for tests
// stands above them all.
var floors = [][]string{
	{"flanneld", "cni/flanneld-bridge", "cni/flanneld-ipam"}, // mains
	{"flanneld/cli"},    // one file a subcommand
	{"lab"},             // hosts made of namespaces
	{"flanneld/daemon"}, // wires the rooms
	// The daemon owns the server's goroutine; the server asks the daemon
	// through an interface of its own, so it stands below.
	{"flanneld/server", "flanneld/config"},
	{"backend", "subnet", "ipam", "endpoint", "service", "dns", "metrics", "cni", "probe"}, // the rooms
	{"store", "kernel"},              // the outside world
	{"kernel/rules", "flanneld/api"}, // plain types, no I/O of their own
}

const (
	onTop   = -1
	unknown = -2
)

// floorOf returns the index in floors, onTop for test support, unknown for a
// room that is not listed.
func floorOf(name string) int {
	if forTests(name) {
		return onTop
	}
	best, length := unknown, 0
	for i, rooms := range floors {
		for _, room := range rooms {
			if under(name, room) && len(room) > length {
				best, length = i, len(room)
			}
		}
	}
	return best
}

func TestImportsPointDown(t *testing.T) {
	for _, p := range whole(t).pkgs {
		if p.Error != nil {
			t.Errorf("%s: %s", p.name, p.Error.Err)
			continue
		}
		from := floorOf(p.name)
		if from == unknown {
			t.Errorf("%s is a room that test/arch does not know: add it to its floor and to docs/map.md", p.name)
			continue
		}
		for _, imp := range p.Imports {
			name, ours := strings.CutPrefix(imp, module+"/")
			if !ours {
				continue
			}
			if to := floorOf(name); to != unknown && to < from {
				t.Errorf("%s imports %s, which is above it", p.name, name)
			}
		}
	}
}

// pure rooms are values and functions that test in milliseconds without root.
var pure = []string{"subnet", "ipam", "endpoint", "service", "dns/zone", "kernel/rules", "flanneld/api"}

func TestDomainRoomsDoNotTouchTheKernel(t *testing.T) {
	for _, p := range whole(t).pkgs {
		if !under(p.name, pure...) {
			continue
		}
		for _, imp := range p.Imports {
			if name, ours := strings.CutPrefix(imp, module+"/"); ours && under(name, "kernel") && !under(name, pure...) {
				t.Errorf("%s imports %s: pass it a value or a function instead", p.name, name)
			}
		}
	}
}

// homes says where each large library may be imported outside of tests.
var homes = map[string][]string{
	"github.com/vishvananda":                {}, // kernel/nlbatch instead
	"github.com/google/nftables":            {"kernel/nft"},
	"github.com/coreos/go-iptables":         {"kernel/iptables"},
	"github.com/coreos/go-systemd":          {"flanneld/daemon"},
	"go.etcd.io":                            {"store/etcd"},
	"go.uber.org/zap":                       {"store/etcd"}, // the embedded server's own logger
	"google.golang.org/grpc":                {"store/etcd"},
	"github.com/containernetworking/cni":    {"cni", "lab"}, // the lab is an engine: it calls plugins
	"github.com/prometheus/client_golang":   {"metrics"},
	"github.com/miekg/dns":                  {"dns"},
	"github.com/mdlayher/netlink":           {"kernel/nft"}, // google/nftables speaks through it
	"github.com/google/nftables/binaryutil": {"kernel/nft"},
	"golang.zx2c4.com/wireguard":            {"kernel/wireguard"},
	"go.yaml.in/yaml":                       {"service/manifest"},
	"golang.org/x/sys/unix":                 nil, // anywhere
}

func TestEachLargeLibraryHasOneHome(t *testing.T) {
	for _, p := range whole(t).pkgs {
		if p.support() {
			continue
		}
		for _, imp := range p.Imports {
			for library, rooms := range homes {
				if under(imp, library) && rooms != nil && !under(p.name, rooms...) {
					t.Errorf("%s imports %s, whose home is %v", p.name, imp, rooms)
				}
			}
		}
	}
}

// slow is what takes its time to start, or is large.
var slow = []string{
	"go.etcd.io", "google.golang.org/grpc", "github.com/prometheus", "github.com/miekg/dns", "net/http", "github.com/google/nftables", "github.com/coreos/go-iptables",
	module + "/store/etcd",
}

// forbidden says what a package must not reach, not even through others.
var forbidden = map[string][]string{
	// Run on every container's start: an engine waits for them.
	"cni/flanneld-bridge": slow,
	"cni/flanneld-ipam":   slow,
	// Other programs may use it.
	"flanneld/api": {"github.com", "go.etcd.io", "google.golang.org", "golang.org"},
}

func TestWhatAPackageMustNotReach(t *testing.T) {
	for _, p := range whole(t).pkgs {
		for _, dep := range p.Deps {
			if under(dep, forbidden[p.name]...) && !under(dep, p.ImportPath) {
				t.Errorf("%s reaches %s", p.name, dep)
			}
		}
	}
}

func TestOnlyTestsImportTestSupport(t *testing.T) {
	for _, p := range whole(t).pkgs {
		if p.support() {
			continue
		}
		for _, imp := range p.Imports {
			if name, ours := strings.CutPrefix(imp, module+"/"); ours && forTests(name) {
				t.Errorf("%s imports %s outside of a test", p.name, name)
			}
		}
	}
}
