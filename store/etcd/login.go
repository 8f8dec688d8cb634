package etcd

import (
	"context"
	"errors"
	"strings"
	"sync"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/credentials"
)

// login is one connection's proof of who its user is. The library's own asks
// for a new token with each stream, which costs the server 60 ms of password
// hashing, and never gets one from a server of version 3.4 while it holds an
// expired one.
type login struct {
	user, password string // empty: nobody

	asking sync.Mutex // held while a token is asked for
	mu     sync.Mutex // guards all below
	token  string
	done   bool // the server was asked; it may want no token
}

var _ credentials.PerRPCCredentials = (*login)(nil)

// GetRequestMetadata gives every request the token, but that for a token.
func (l *login) GetRequestMetadata(_ context.Context, uri ...string) (map[string]string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.token == "" || len(uri) > 0 && strings.HasSuffix(uri[0], "etcdserverpb.Auth") {
		return nil, nil
	}
	return map[string]string{rpctypes.TokenFieldNameGRPC: l.token}, nil
}

// RequireTransportSecurity says no: etcd's users are used without TLS too.
func (l *login) RequireTransportSecurity() bool { return false }

// with calls f with a token, where there is a user, and a second time with a
// new one if the server did not take it.
func (l *login) with(ctx context.Context, k *conn, f func(context.Context, *conn) error) error {
	if l.user == "" {
		return f(ctx, k)
	}
	old, done := l.present()
	if !done {
		if err := l.renew(ctx, k, old); err != nil {
			return err
		}
		old, _ = l.present()
	}
	err := f(ctx, k)
	if err == nil || !refused(err) {
		return err
	}
	if err := l.renew(ctx, k, old); err != nil {
		return err
	}
	return f(ctx, k)
}

func (l *login) present() (token string, done bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.token, l.done
}

// renew asks for a token, unless somebody else did since old was had.
func (l *login) renew(ctx context.Context, k *conn, old string) error {
	l.asking.Lock()
	defer l.asking.Unlock()
	if token, done := l.present(); done && token != old {
		return nil
	}
	r, err := k.cli.Authenticate(ctx, l.user, l.password)
	token := ""
	switch {
	case err == nil:
		token = r.Token
	case !errors.Is(err, rpctypes.ErrAuthNotEnabled):
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.token, l.done = token, true
	return nil
}

// refused reports whether a server did nothing because of the token.
func refused(err error) bool {
	text := desc(err)
	for _, e := range []error{rpctypes.ErrInvalidAuthToken, rpctypes.ErrAuthOldRevision, rpctypes.ErrUserEmpty} {
		if text == e.Error() {
			return true
		}
	}
	return false
}
