package extension_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/flanneld/flanneld/backend"
	"github.com/flanneld/flanneld/backend/backendtest"
	"github.com/flanneld/flanneld/backend/extension"
	"github.com/flanneld/flanneld/kernel/netns"
	"github.com/flanneld/flanneld/subnet"
)

// apart gives each host a record of its own: hosts of the contract are network
// namespaces of one file system.
type apart struct{ dir, state string }

func (a apart) driver() extension.Driver {
	ns, err := netns.Current()
	if err != nil {
		panic(err)
	}
	defer ns.Close()
	id, err := ns.ID()
	if err != nil {
		panic(err)
	}
	return extension.Driver{Dir: a.dir, State: filepath.Join(a.state, fmt.Sprint(id)), SyncTime: time.Minute}
}

func (a apart) Check(n subnet.Config) error { return a.driver().Check(n) }

func (a apart) Cleanup(ctx context.Context) error { return a.driver().Cleanup(ctx) }

func (a apart) Open(ctx context.Context, n subnet.Config, u backend.Underlay, identity string) (backend.Device, error) {
	return a.driver().Open(ctx, n, u, identity)
}

// hook writes a shell script into dir.
func hook(t *testing.T, dir, name, script string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\nset -eu\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
}

// TestContract makes host-gw of two shell scripts.
func TestContract(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	const each = `
if [ -n "${SUBNET-}" ]; then ip -4 route %[1]s "$SUBNET" via "$PUBLIC_IP" dev "$IFACE" proto static; fi
if [ -n "${IPV6SUBNET-}" ]; then ip -6 route %[1]s "$IPV6SUBNET" via "$PUBLIC_IPV6" dev "$IFACE" proto static; fi
`
	hook(t, dir, "add", fmt.Sprintf(each, "replace"))
	hook(t, dir, "remove", fmt.Sprintf(each, "del"))
	a := apart{dir, t.TempDir()}
	backendtest.Run(t, backendtest.Suite{
		Driver:  func() backend.Driver { return a },
		Type:    "extension",
		Options: json.RawMessage(`{"Type":"extension","SubnetAddCommand":"add","SubnetRemoveCommand":"` + dir + `/remove"}`),
		Wrong: map[string]string{
			"Backend.SubnetAdd":           `{"SubnetAdd":"add"}`,
			"Backend.SubnetAddCommand":    `{"SubnetAddCommand":"ip route add $SUBNET via $PUBLIC_IP"}`,
			"Backend.SubnetRemoveCommand": `{"SubnetRemoveCommand":"/bin/sh"}`,
			"Backend.PreStartupCommand":   `{"PreStartupCommand":"` + dir + `/../../bin/sh"}`,
			"Backend.PostStartupCommand":  `{"PostStartupCommand":["add"]}`,
			"Backend.ShutdownCommand":     `{"ShutdownCommand":".."}`,
			"Backend.MTU":                 `{"MTU":500}`,
		},
		Near: true, MostWrites: 1, Many: 150,
	})
}
