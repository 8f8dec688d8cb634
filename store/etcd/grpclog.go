package etcd

import (
	"io"
	"os"
	"sync"

	"google.golang.org/grpc/grpclog"
)

// QuietGRPC keeps gRPC's own logger from writing to standard error: what it
// says about connections comes as an error of a call, explained, as well. The
// logger is the process's, and is to be replaced before anything of gRPC runs.
// gRPC's own variable for those who look for a mistake in it still works.
func QuietGRPC() { quietGRPC() }

var quietGRPC = sync.OnceFunc(func() {
	if os.Getenv("GRPC_GO_LOG_SEVERITY_LEVEL") == "" {
		grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard))
	}
})
