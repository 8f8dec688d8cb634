package outlive_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flanneld/flanneld/backend/outlive"
)

func TestMain(m *testing.M) {
	if code, ok := outlive.Main(os.Args[1:], map[string]outlive.Keeper{
		"note": note, "angry": angry, "silent": silent, "short": short,
	}); ok {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// note writes its process id and environment to a file, and stays.
func note(ctx context.Context, device string, args []string, ready func()) error {
	text := fmt.Sprintf("%d\n%s\n%s", os.Getpid(), device, strings.Join(os.Environ(), "\n"))
	if err := os.WriteFile(args[0], []byte(text), 0o666); err != nil {
		return err
	}
	ready()
	<-ctx.Done()
	return nil
}

func angry(context.Context, string, []string, func()) error { return errors.New("no such luck") }
func short(context.Context, string, []string, func()) error { return nil }

func silent(ctx context.Context, _ string, _ []string, _ func()) error {
	<-ctx.Done()
	return nil
}

func TestAKeeperStaysAndForgetsWhatIsTheDaemons(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/nowhere")
	t.Setenv("FLANNELD_ETCD_PASSWORD", "secret")
	t.Setenv("KEPT", "yes")
	file := filepath.Join(t.TempDir(), "note")
	if err := outlive.Start(t.Context(), "note", "dev7", file); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(raw), "\n")
	pid, err := strconv.Atoi(lines[0])
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = syscall.Kill(pid, syscall.SIGTERM)
		for syscall.Kill(pid, 0) == nil && t.Context().Err() == nil {
			time.Sleep(time.Millisecond)
		}
	}()
	if lines[1] != "dev7" || strings.Contains(string(raw), "NOTIFY") || strings.Contains(string(raw), "secret") || !strings.Contains(string(raw), "KEPT=yes") {
		t.Errorf("the keeper was told %q", raw)
	}
	st, err := os.Stat(file)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("a keeper's file has mode %v, %v; want 0600", st.Mode(), err)
	}
	if sid, err := getsid(pid); err != nil || sid != pid {
		t.Errorf("session %d of process %d, %v; want its own", sid, pid, err)
	}
	// A signal for the daemon's terminal does not end it.
	if err := syscall.Kill(pid, syscall.SIGHUP); err != nil {
		t.Error(err)
	}
	if err := syscall.Kill(pid, syscall.SIGINT); err != nil {
		t.Error(err)
	}
	time.Sleep(20 * time.Millisecond)
	if err := syscall.Kill(pid, 0); err != nil {
		t.Error("the keeper is gone")
	}
}

func getsid(pid int) (int, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
	return strconv.Atoi(fields[3])
}

func TestAKeepersErrorIsItsStarters(t *testing.T) {
	for kind, want := range map[string]string{
		"angry": "the keeper of dev7: no such luck",
		"short": "the keeper of dev7: it ended at once",
		"other": `the keeper of dev7: there is no keeper of kind "other"`,
	} {
		if err := outlive.Start(t.Context(), kind, "dev7"); err == nil || err.Error() != want {
			t.Errorf("%s: %v; want %s", kind, err, want)
		}
	}
}

func TestAKeeperThatIsNotReadyInTimeIsKilled(t *testing.T) {
	ctx, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	if err := outlive.Start(ctx, "silent", "dev7"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

func TestOtherArgumentsAreNoKeepers(t *testing.T) {
	for _, args := range [][]string{nil, {"status"}, {"outlive"}, {"outlive", "udp"}, {"--outlive", "udp", "x"}} {
		if _, ok := outlive.Main(args, nil); ok {
			t.Errorf("%q taken for a keeper", args)
		}
	}
}
