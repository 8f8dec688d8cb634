package etcd

import (
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flanneld/flanneld/store"
)

// errSilent: no answer came in time.
var errSilent = errors.New("no answer")

// errReplaced: another life of the store's data began.
var errReplaced = errors.New("the data was replaced in the middle of a list")

// leaseNotFound is part of etcd's text for a lease that does not exist.
const leaseNotFound = "requested lease not found"

// unsentError marks a request that certainly did not reach a server.
type unsentError struct{ error }

func (e *unsentError) Unwrap() error { return e.error }

// desc is the text of an error as the library's layers hand it on, without
// their wrapping.
func desc(err error) string {
	if e, ok := errors.AsType[rpctypes.EtcdError](err); ok {
		return e.Error()
	}
	text := err.Error()
	if st, ok := status.FromError(err); ok {
		text = st.Message()
	}
	for _, noise := range []string{"connection error: desc = ", "transport: ", "Error while dialing: ", "authentication handshake failed: "} {
		text = strings.ReplaceAll(text, noise, "")
	}
	return strings.Trim(text, `"`)
}

// isTransport reports whether the connection broke, as opposed to a server
// answering with an error.
func isTransport(err error) bool {
	return status.Code(err) == codes.Unavailable && !strings.HasPrefix(desc(err), "etcdserver:")
}

// wasUnsent reports whether err says that there never was a connection.
func wasUnsent(err error) bool {
	st, ok := status.FromError(err)
	if !ok || st.Code() != codes.Unavailable {
		return false
	}
	for _, part := range []string{"Error while dialing", "authentication handshake failed", "error reading server preface"} {
		if strings.Contains(st.Message(), part) {
			return true
		}
	}
	return false
}

// mute is what is said of a process that is stopped: its kernel accepts.
const mute = "it accepts connections but does not answer"

// isMute reports whether the text is the library's for a connection that was
// made and then given up, because nothing was heard on it.
func isMute(text string) bool {
	return strings.Contains(text, "authentication handshake failed: context deadline exceeded") ||
		strings.Contains(text, "error reading server preface") &&
			(strings.Contains(text, "use of closed network connection") || strings.Contains(text, "i/o timeout"))
}

// explain makes an error of the library one that names the endpoint, what
// was being done and what to check. Definite outcomes become the store's own.
func explain(endpoint, doing string, err error) error {
	if err == nil {
		return nil
	}
	text := desc(err)
	about := fmt.Sprintf("etcd %s: %s", endpoint, doing)
	switch {
	case strings.Contains(text, "database space exceeded"):
		return fmt.Errorf("%s: %w: compact and defragment etcd, then disarm its NOSPACE alarm", about, store.ErrFull)
	case strings.Contains(text, leaseNotFound):
		return fmt.Errorf("%s: %w", about, store.ErrSessionLost)
	case errors.Is(err, store.ErrConflict), errors.Is(err, store.ErrSessionLost), errors.Is(err, errClosed):
		return fmt.Errorf("%s: %w", about, err)
	}
	if isMute(err.Error()) {
		text = mute
	}
	out := &callError{fmt.Sprintf("%s: %s%s", about, text, remedy(text, err.Error())), err}
	if wasUnsent(err) {
		return &unsentError{out}
	}
	return out
}

// callError is the cause with a text for people.
type callError struct {
	text  string
	cause error
}

func (e *callError) Error() string { return e.text }
func (e *callError) Unwrap() error { return e.cause }

// remedies pair a part of an error's text with what to check.
var remedies = [...]struct{ part, remedy string }{
	{mute, "is etcd stopped or overloaded, is a firewall on the way, and is it etcd's client port?"},
	{"connection refused", "is etcd running there, and is --etcd-endpoints right?"},
	{"no route to host", "check the network and --etcd-endpoints"},
	{"network is unreachable", "check the network and --etcd-endpoints"},
	{"no such host", "check the name in --etcd-endpoints"},
	{"i/o timeout", "check --etcd-endpoints and firewalls on the way"},
	{"no answer", "is etcd overloaded or without a leader, or does a firewall drop its packets?"},
	{"unknown authority", "check --etcd-cafile"},
	{"certificate has expired", "renew the certificate and check the clocks"},
	{"certificate is valid for", "the server's certificate does not name this endpoint: check --etcd-endpoints"},
	{"doesn't contain any IP SANs", "the server's certificate does not name this endpoint: use its DNS name in --etcd-endpoints"},
	{"first record does not look like a TLS handshake", "the server speaks plain HTTP: use http:// in --etcd-endpoints"},
	{"remote error: tls", "the server refused the client's certificate: check --etcd-certfile and --etcd-keyfile"},
	{"handshake failed: EOF", noTLS},
	{"handshake failed: read", noTLS},
	{"error reading server preface", "is it etcd's client port, and does it want https:// in --etcd-endpoints?"},
	{"broken pipe", hungUp},
	{"connection reset by peer", hungUp},
	{"authentication failed", "check --etcd-username and --etcd-password"},
	{"user name is empty", "etcd wants a user: set --etcd-username and --etcd-password"},
	{"permission denied", "grant the user of --etcd-username read and write on the keys under --etcd-prefix"},
	{"no leader", "the etcd cluster has lost its majority"},
	{"request is too large", "etcd takes 1.5 MB in one transaction"},
}

const noTLS = "the server hung up on TLS: is it etcd's client port, and does it want http:// in --etcd-endpoints?"

const hungUp = "the server hung up: is it etcd's client port, and does it want another --etcd-certfile?"

// remedy is that for the error of that text, or else for the cause it was
// made of.
func remedy(text, cause string) string {
	for _, r := range remedies {
		if strings.Contains(text, r.part) || strings.Contains(cause, r.part) {
			return ": " + r.remedy
		}
	}
	return ""
}
