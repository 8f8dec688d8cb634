package outlive_test

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/flanneld/flanneld/backend/outlive"
)

func TestOnlyAKeeperIsEnded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = outlive.Kill(t.Context(), "dev7", path)
	if err == nil || !strings.Contains(err.Error(), "dev7") || !strings.Contains(err.Error(), "kill -9 "+strconv.Itoa(os.Getpid())) || !strings.Contains(err.Error(), "another program's") {
		t.Errorf("got %v", err)
	}
}
