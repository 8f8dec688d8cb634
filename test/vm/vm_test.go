package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/flanneld/flanneld/test/vm/plan"
)

func TestModulesComeAfterWhatTheyNeed(t *testing.T) {
	tree := t.TempDir()
	write(t, filepath.Join(tree, "modules.dep"), `kernel/fs/9p/9p.ko: kernel/net/9p/9pnet.ko kernel/fs/netfs/netfs.ko
kernel/net/9p/9pnet.ko:
kernel/fs/netfs/netfs.ko.xz:
kernel/fs/netfs/netfs.ko:
kernel/drivers/virtio/virtio-pci.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
`)
	got, err := modules(tree, []string{"virtio_pci", "9p", "9pnet"})
	want := []string{"virtio/virtio_ring", "virtio/virtio", "virtio/virtio-pci", "netfs/netfs", "9p/9pnet", "9p/9p"}
	if err != nil || len(got) != len(want) {
		t.Fatal(got, err)
	}
	for i := range want {
		if !strings.HasSuffix(got[i], want[i]+".ko") {
			t.Errorf("%d: %s, want %s", i, got[i], want[i])
		}
	}
	if _, err := modules(tree, []string{"gre"}); err == nil || !strings.Contains(err.Error(), "no module gre") {
		t.Error(err)
	}
}

func TestArchiveIsWhatCpioReads(t *testing.T) {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("needs busybox: make test installs it")
	}
	a := &cpio{}
	a.add("init", 0o100755, []byte("#!x"))
	a.add("modules", 0o040755, nil)
	a.add("modules/9p", 0o100644, bytes.Repeat([]byte("m"), 4097))
	var b bytes.Buffer
	a.writeTo(&b)
	cmd := exec.Command(busybox, "cpio", "-i", "-d")
	cmd.Dir, cmd.Stdin = t.TempDir(), &b
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	module, err := os.ReadFile(filepath.Join(cmd.Dir, "modules", "9p"))
	if err != nil || len(module) != 4097 {
		t.Error(len(module), err)
	}
	if info, err := os.Stat(filepath.Join(cmd.Dir, "init")); err != nil || info.Mode() != 0o755 || info.Size() != 3 {
		t.Error(info, err)
	}
}

func TestSuiteNamesPackagesThatAreThere(t *testing.T) {
	m := &machine{options: options{pkgs: []string{"../../..."}}}
	all, err := m.list(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range suite() {
		if !slices.ContainsFunc(all, func(p goPackage) bool { return e.has(p.ImportPath) }) || e.why == "" {
			t.Errorf("%+v", e)
		}
	}
}

func TestCommandLineIsForUsUntilTheDashes(t *testing.T) {
	o, err := parse([]string{"-without", "nf_tables", "./a", "./b", "--", "-test.run", "X"}, io.Discard)
	if err != nil || o.without != "nf_tables" || !slices.Equal(o.pkgs, []string{"./a", "./b"}) || !slices.Equal(o.args, []string{"-test.run", "X"}) {
		t.Errorf("%+v, %v", o, err)
	}
	if o, err := parse([]string{"-suite", "--", "-test.short"}, io.Discard); err != nil || !slices.Equal(o.pkgs, []string{"./..."}) {
		t.Errorf("%+v, %v", o, err)
	}
	if _, err := parse(nil, io.Discard); err == nil {
		t.Error("nothing to run, and no error")
	}
}

// pretend puts a program in qemu's place: a shell script that answers with
// the lines and then does something else.
func pretend(t *testing.T, then string, answers ...plan.Answer) {
	t.Helper()
	dir := t.TempDir()
	script := "#!/bin/sh\necho 'SeaBIOS'\n"
	for _, a := range answers {
		text, err := json.Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		script += "echo '" + string(text) + "' >&3\n"
	}
	write(t, filepath.Join(dir, "qemu-system-x86_64"), script+then+"\n")
	if err := os.Chmod(filepath.Join(dir, "qemu-system-x86_64"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// tell runs a VM of two packages and returns what it reports as "go test
// -json", in which the packages' last events are.
func tell(ctx context.Context, t *testing.T) (said string, ends map[string]string, ok bool, err error) {
	t.Helper()
	var out bytes.Buffer
	m := &machine{stdout: &out, stderr: t.Output(), options: options{json: true}}
	r := newReport(m, booting{steps: []step{{pkg: "a"}, {pkg: "b"}}})
	ok, err = r.finish(boot(ctx, kernel{}, "", time.Minute, io.Discard, r.take))
	ends = map[string]string{}
	for line := range bytes.Lines(out.Bytes()) {
		var e struct{ Action, Package, Test string }
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if e.Test == "" && e.Action != "output" && e.Action != "start" {
			ends[e.Package] += e.Action
		}
	}
	return out.String(), ends, ok, err
}

func TestResultsLookLikeThoseOfGoTestUnderAnotherName(t *testing.T) {
	pretend(t, "", plan.Answer{Kernel: "6.1.0"},
		plan.Answer{Output: []byte("\x16=== RUN   TestA\n\x16--- PASS: TestA (0.25s)\n")},
		plan.Answer{Output: []byte("\x16PASS\n")}, plan.Answer{Ended: true},
		plan.Answer{Step: 1, Output: []byte("\x16=== RUN   TestB\n    b_test.go:1: no\n\x16--- FAIL: TestB (0.00s)\n\x16FAIL\n")},
		plan.Answer{Step: 1, Ended: true, Code: 1}, plan.Answer{Done: true})
	said, ends, ok, err := tell(t.Context(), t)
	if ok || err != nil || ends["a (Linux 6.1.0)"] != "pass" || ends["b (Linux 6.1.0)"] != "fail" || len(ends) != 2 {
		t.Errorf("%v, %v, %v", ok, err, ends)
	}
	for _, want := range []string{
		`"Action":"pass","Package":"a (Linux 6.1.0)","Test":"TestA","Elapsed":0.25}`,
		`"Action":"output","Package":"b (Linux 6.1.0)","Test":"TestB","Output":"    b_test.go:1: no\n"}`,
	} {
		if !strings.Contains(said, want) {
			t.Errorf("not said: %s\n%s", want, said)
		}
	}
}

func TestAllIsWellOnlyIfTheVMSaysSo(t *testing.T) {
	ended := []plan.Answer{{Kernel: "6.1.0"}, {Ended: true}, {Step: 1, Ended: true}}
	t.Run("done", func(t *testing.T) {
		pretend(t, "", append(ended, plan.Answer{Done: true})...)
		if _, _, ok, err := tell(t.Context(), t); !ok || err != nil {
			t.Error(ok, err)
		}
	})
	t.Run("not done", func(t *testing.T) {
		pretend(t, "", ended...)
		if _, _, ok, err := tell(t.Context(), t); ok || err == nil {
			t.Error(ok, err)
		}
	})
	t.Run("trouble", func(t *testing.T) {
		pretend(t, "", append(ended, plan.Answer{Trouble: "no module"}, plan.Answer{Done: true})...)
		if _, _, ok, err := tell(t.Context(), t); ok || err != nil {
			t.Error(ok, err)
		}
	})
}

func TestVMThatHangsOrDiesIsAFailureWithTheConsole(t *testing.T) {
	for name, then := range map[string]string{"hangs": "echo Oops; exec sleep 100", "dies": "echo Oops; exit 1", "powers off": "echo Oops"} {
		t.Run(name, func(t *testing.T) {
			pretend(t, then, plan.Answer{Kernel: "6.1.0"}, plan.Answer{Output: []byte("=== RUN   TestA\n")})
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			began := time.Now()
			said, ends, ok, err := tell(ctx, t)
			if ok || err != nil || ends["a (Linux 6.1.0)"] != "fail" || ends["b (Linux 6.1.0)"] != "fail" {
				t.Errorf("%v, %v, %v", ok, err, ends)
			}
			if strings.Count(said, "Oops") != 1 || !strings.Contains(said, "not run: the VM ended before") {
				t.Error(said)
			}
			if time.Since(began) > 10*time.Second {
				t.Error("it was waited for", time.Since(began))
			}
		})
	}
}

func TestVMThatDoesNotComeUpIsGivenUpSoon(t *testing.T) {
	pretend(t, "exec sleep 100")
	began := time.Now()
	err := boot(t.Context(), kernel{}, "", 100*time.Millisecond, io.Discard, func(plan.Answer) {})
	if !errors.Is(err, errSilent) || time.Since(began) > 10*time.Second {
		t.Error(err, time.Since(began))
	}
}

func TestWorkspaceOfAKilledRunIsRemoved(t *testing.T) {
	cache := t.TempDir()
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	stale := filepath.Join(cache, "run-"+strconv.Itoa(gone.Process.Pid))
	live := filepath.Join(cache, "run-1")
	for _, dir := range []string{stale, live} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	own, err := workspace(cache)
	if err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(cache)
	if err != nil || len(left) != 2 {
		t.Error(left, err)
	}
	if _, err := os.Stat(own); err != nil {
		t.Error(err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
