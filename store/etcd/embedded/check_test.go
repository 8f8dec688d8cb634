package embedded

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/store"
)

const insideTmpfs, dying = "EMBEDDED_TEST_TMPFS", "EMBEDDED_TEST_DYING"

// onTmpfs runs the test's body on a file system of its own, in a process with
// a mount namespace of its own.
func onTmpfs(t *testing.T, size string, body func(t *testing.T, root string)) {
	t.Helper()
	if root := os.Getenv(insideTmpfs); root != "" {
		if os.Getenv(dying) == "" {
			if err := unix.Mount("tmpfs", root, "tmpfs", 0, "size="+size); err != nil {
				t.Fatal(err)
			}
		}
		body(t, root)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs CAP_SYS_ADMIN, for a small file system of its own")
	}
	c := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=60s")
	c.Env = append(os.Environ(), insideTmpfs+"="+t.TempDir())
	c.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := c.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Error(err)
	}
}

// exhaust fills the file system to the last byte.
func exhaust(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, n := range []int{1 << 20, 4096, 1} {
		for b := make([]byte, n); err == nil; {
			_, err = f.Write(b)
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		err = nil
	}
}

func TestFullDiskEndsTheProcessWithTheCure(t *testing.T) {
	onTmpfs(t, "48m", func(t *testing.T, root string) {
		dir := filepath.Join(root, "data")
		if os.Getenv(dying) != "" {
			writeUntilTheEnd(t, root, dir)
		}
		c := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
		c.Env = append(os.Environ(), dying+"=1")
		out, err := c.CombinedOutput()
		if err == nil {
			t.Error("it did not end")
		}
		said := string(out)
		t.Log(said)
		for _, want := range []string{"embedded etcd ends this process", "the disk under " + dir + " is full", "make room"} {
			if !strings.Contains(said, want) {
				t.Errorf("%q was not said", want)
			}
		}
		if strings.Contains(said, "goroutine ") {
			t.Error("a stack trace was printed")
		}
		_, err = Serve(t.Context(), Options{Dir: dir, Listen: anyPort})
		expect(t, err, "the disk under "+dir+" has ", " bytes left", "make room")
		if err := os.Remove(filepath.Join(root, "ballast")); err != nil {
			t.Fatal(err)
		}
		s := serve(t, Options{Dir: dir})
		if kv, err := open(t, s.Client()).Get(t.Context(), "/own"); err != nil || len(kv.Value) == 0 {
			t.Errorf("what was acknowledged is lost: %v", err)
		}
	})
}

// writeUntilTheEnd makes changes on a full disk until that ends the process.
func writeUntilTheEnd(t *testing.T, root, dir string) {
	s := serve(t, Options{Dir: dir, minFree: 1, Log: slog.New(slog.NewTextHandler(os.Stdout, nil))})
	c := open(t, s.Client())
	value := bytes.Repeat([]byte("x"), 100<<10)
	commit(t, c, "/own", string(value))
	exhaust(t, filepath.Join(root, "ballast"))
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); {
		_, _ = c.Commit(t.Context(), store.Txn{Put: []store.Put{{Key: "/own", Value: value}}}) // until it cannot
	}
	os.Exit(0)
}

func TestNoRoomToBeginIsSaid(t *testing.T) {
	onTmpfs(t, "16m", func(t *testing.T, root string) {
		dir := filepath.Join(root, "data")
		_, err := Serve(t.Context(), Options{Dir: dir, Listen: anyPort})
		expect(t, err, "the disk under "+dir+" has ", "fewer than 20971520", "make room")
	})
}

func TestLittleRoomIsEnough(t *testing.T) {
	onTmpfs(t, "20m", func(t *testing.T, root string) {
		dir := filepath.Join(root, "data")
		for range 2 {
			s := serve(t, Options{Dir: dir, minFree: 1})
			commit(t, open(t, s.Client()), "/a", "1")
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// filled returns a directory that a server has left, and how much of its
// database's file is in use.
func filled(t *testing.T) (dir string, size int64) {
	t.Helper()
	dir = t.TempDir()
	s := serve(t, Options{Dir: dir})
	c := open(t, s.Client())
	for i := range 40 {
		var x store.Txn
		for j := range 25 {
			x.Put = append(x.Put, store.Put{Key: fmt.Sprintf("/k/%d/%d", i, j), Value: []byte(strings.Repeat("v", 400))})
		}
		if _, err := c.Commit(t.Context(), x); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	db, err := bolt.Open(filepath.Join(dir, "member", "snap", "db"), 0, &bolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.View(func(tx *bolt.Tx) error { size = tx.Size(); return nil }); err != nil {
		t.Fatal(err)
	}
	return dir, size
}

func TestDamagedDatabaseIsAnErrorWithTheCure(t *testing.T) {
	const garbage = 16 << 10
	intact, size := filled(t)
	at := func(offset int64) func(*os.File) error {
		return func(f *os.File) error {
			b := make([]byte, garbage)
			for i := range b {
				b[i] = byte(i*7 + 13)
			}
			_, err := f.WriteAt(b, offset)
			return err
		}
	}
	cut := func(n int64) func(*os.File) error { return func(f *os.File) error { return f.Truncate(n) } }
	type damage struct {
		do   func(*os.File) error
		sure bool // else it may hit what is not in use
	}
	tests := map[string]damage{
		"its beginning": {at(0), true}, "cut in the middle": {cut(size / 2), true}, "cut short": {cut(100), true}, "all but a page": {cut(4096), true},
		"zeros": {func(f *os.File) error { return errors.Join(f.Truncate(0), f.Truncate(size)) }, true},
	}
	for offset := int64(8192); offset < size; offset += max(1, size/16/4096) * 4096 {
		tests[fmt.Sprint("at ", offset)] = damage{at(offset), false}
	}
	found := 0
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			if err := os.CopyFS(dir, os.DirFS(intact)); err != nil {
				t.Fatal(err)
			}
			f, err := os.OpenFile(filepath.Join(dir, "member", "snap", "db"), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(tt.do(f), f.Close()); err != nil {
				t.Fatal(err)
			}
			s, err := Serve(t.Context(), Options{Dir: dir, Listen: anyPort})
			if err == nil {
				s.Close()
				if tt.sure {
					t.Error("no error")
				}
				return
			}
			found++
			expect(t, err, "the database in "+dir+" is damaged", "move "+dir+" away", "register again")
			if _, again := Serve(t.Context(), Options{Dir: dir, Listen: anyPort}); fmt.Sprint(again) != err.Error() {
				t.Errorf("the second time: %v", again)
			}
		})
	}
	if found < len(tests)/2 {
		t.Errorf("damage was found %d times of %d", found, len(tests))
	}
	if err := check(intact); err != nil {
		t.Error(err)
	}
}

func TestDamagedLogIsAnErrorWithTheCure(t *testing.T) {
	intact, _ := filled(t)
	garbage := bytes.Repeat([]byte("\x0d\x14\x1b\x22\x29\x30\x37"), 2048)
	for name, do := range map[string]func(log string) error{
		"its beginning": func(log string) error { return overwrite(log, garbage, 0) },
		"later":         func(log string) error { return overwrite(log, garbage, 100001) },
		"a few bytes":   func(log string) error { return overwrite(log, []byte("garbage"), 40000) },
		"gone":          func(log string) error { return os.RemoveAll(filepath.Dir(log)) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			if err := os.CopyFS(dir, os.DirFS(intact)); err != nil {
				t.Fatal(err)
			}
			logs, err := filepath.Glob(filepath.Join(dir, "member", "wal", "*.wal"))
			if err != nil || len(logs) != 1 {
				t.Fatal(logs, err)
			}
			if err := do(logs[0]); err != nil {
				t.Fatal(err)
			}
			_, err = Serve(t.Context(), Options{Dir: dir, Listen: anyPort})
			expect(t, err, "log", " in "+dir+" is ", "move "+dir+" away", "register again")
		})
	}
}

func overwrite(path string, with []byte, at int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(with, at)
	return errors.Join(err, f.Close())
}

// A server that was killed while it made its directory has a database, but
// no log.
func TestDirectoryHalfMadeIsFinished(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "member", "snap"), 0o700); err != nil {
		t.Fatal(err)
	}
	db, err := bolt.Open(filepath.Join(dir, "member", "snap", "db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	commit(t, open(t, serve(t, Options{Dir: dir}).Client()), "/a", "1")
}

func TestDatabaseOfAnotherProcessIsNotDamaged(t *testing.T) {
	dir := t.TempDir()
	serve(t, Options{Dir: dir})
	expect(t, checkDatabase(dir), "another etcd uses the database in "+dir)
}

func TestLastWordsNameCauseAndCure(t *testing.T) {
	full := &os.PathError{Op: "write", Path: "/d/member/snap/db", Err: syscall.ENOSPC}
	for name, tt := range map[string]struct {
		say  func(*zap.Logger)
		want []string
	}{
		"full":      {func(l *zap.Logger) { l.Fatal("failed to commit tx", zap.Error(full)) }, []string{"the disk under /d is full", "make room"}},
		"panic":     {func(l *zap.Logger) { l.Panic("failed to save snapshot", zap.Error(full)) }, []string{"the disk under /d is full", "make room"}},
		"broken":    {func(l *zap.Logger) { l.Fatal("x", zap.Error(syscall.EIO)) }, []string{"the disk under /d cannot be written", "check it"}},
		"unknown":   {func(l *zap.Logger) { l.Fatal("x", zap.Error(errors.New("walpb: crc mismatch"))) }, []string{"walpb: crc mismatch", "move /d away"}},
		"no error":  {func(l *zap.Logger) { l.Panic("tocommit(7) is out of range") }, []string{"tocommit(7)", "move /d away"}},
		"formatted": {func(l *zap.Logger) { l.Sugar().Panicf("entry %d", 7) }, []string{"entry 7", "move /d away"}},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			if os.Getenv(dying) == t.Name() {
				o := Options{Dir: "/d", Log: slog.New(slog.NewTextHandler(os.Stdout, nil))}
				tt.say(o.zap())
				os.Exit(0)
			}
			c := exec.Command(os.Args[0], "-test.run=^"+strings.ReplaceAll(t.Name(), "/", "$/^")+"$")
			c.Env = append(os.Environ(), dying+"="+t.Name())
			out, err := c.CombinedOutput()
			if err == nil {
				t.Error("it did not end")
			}
			for _, want := range append(tt.want, "level=ERROR", "dir=/d") {
				if !strings.Contains(string(out), want) {
					t.Errorf("%q is not in: %s", want, out)
				}
			}
		})
	}
}
