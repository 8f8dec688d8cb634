package embedded

import (
	"os"
	"testing"

	"github.com/flanneld/flanneld/store/storetest"
)

func TestMain(m *testing.M) { os.Exit(storetest.RunParallel(m)) }
