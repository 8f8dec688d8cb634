package embedded

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

// Bytes of disk without which etcd does not come far: it would end the process.
const (
	segmentBytes   = 8 << 20                // of the log of changes, taken at once
	leastFree      = 4 << 20                // for data that is there
	leastFreeFirst = 2*segmentBytes + 4<<20 // for a new directory: two segments as well
)

// check finds what would end the process inside StartEtcd, where it can only
// be told as a stack trace. The directory is locked.
func check(dir string) error {
	if err := checkSpace(dir); err != nil {
		return err
	}
	return checkDatabase(dir)
}

func checkSpace(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("start the embedded etcd: space under %s: %w", dir, err)
	}
	need := uint64(leastFree)
	if !hasLog(dir) {
		need = leastFreeFirst
	}
	// All that is free: the daemon may use what is kept for root.
	if free := st.Bfree * uint64(st.Bsize); free < need {
		return fmt.Errorf("start the embedded etcd: the disk under %s has %d bytes left, fewer than %d: make room on it", dir, free, need)
	}
	return nil
}

// hasLog reports whether there is a log of changes; it is made after the
// database.
func hasLog(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "member", "wal"))
	return !errors.Is(err, fs.ErrNotExist)
}

// checkDatabase reads the database in dir as far as its structure goes. The
// library itself panics over damage, on a goroutine of its own.
func checkDatabase(dir string) error {
	path := filepath.Join(dir, "member", "snap", "db")
	i, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && i.Size() == 0 { // an empty one is begun anew
		return nil
	}
	used := false
	if err == nil {
		used, err = walk(path)
	}
	_, outside := errors.AsType[*fs.PathError](err)
	switch {
	case err == nil && used && !hasLog(dir): // etcd would wait for ever
		return fmt.Errorf("the database in %s is there, but not its log, member/wal: put it back, or %s", dir, startAnew(dir))
	case err == nil:
		return nil
	case outside:
		return fmt.Errorf("open the database of the embedded etcd: %w", err)
	case errors.Is(err, berrors.ErrTimeout):
		return fmt.Errorf("another etcd uses the database in %s: end it, or give this one another directory with --embed-etcd=DIR", dir)
	}
	return fmt.Errorf("the database in %s is damaged: %w: %s", dir, err, startAnew(dir))
}

// startAnew is the cure for data that etcd cannot read.
func startAnew(dir string) string {
	return fmt.Sprintf("move %s away and start again: hosts register again what they held; the network's configuration is to be written again, unless --network does", dir)
}

// walk visits every page of the database at path that is in use. Damage is
// an error, also where it makes the library panic or touch what is not mapped.
// used: entries of the log were applied to it.
func walk(path string) (used bool, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
		}
	}()
	db, err := bolt.Open(path, 0, &bolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	err = db.View(func(tx *bolt.Tx) error {
		if i, err := os.Stat(path); err == nil && tx.Size() > i.Size() {
			return fmt.Errorf("%d of %d bytes are left", i.Size(), tx.Size())
		}
		if meta := tx.Bucket([]byte("meta")); meta != nil {
			used = len(bytes.Trim(meta.Get([]byte("consistent_index")), "\x00")) > 0
		}
		return tx.ForEach(func(_ []byte, b *bolt.Bucket) error { return inOrder(b) })
	})
	return used, err
}

// inOrder visits every key of a bucket.
func inOrder(b *bolt.Bucket) error {
	var last []byte
	return b.ForEach(func(k, _ []byte) error {
		if last != nil && bytes.Compare(last, k) >= 0 {
			return errors.New("keys are out of order")
		}
		last = k
		return nil
	})
}
