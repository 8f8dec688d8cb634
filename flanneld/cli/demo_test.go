package cli

import (
	"bytes"
	"net"
	"strings"
	"testing"
)

func TestSecondDemoDoesNotTakeTheFirstOnesLab(t *testing.T) {
	first, err := net.Listen("unix", "@flanneld-lab-demo-cli-test")
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	var out, errs bytes.Buffer
	if code := labDemo(t.Context(), []string{"--once", "--name", "cli-test"}, &out, &errs); code != exitFailure || !strings.Contains(errs.String(), "runs already") {
		t.Errorf("exit code %d, %q, %q", code, out.String(), errs.String())
	}
}
