package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"
)

// Client talks to a daemon.
type Client struct{ http http.Client }

// NewClient returns a client of the daemon behind a socket.
func NewClient(socket string) *Client {
	return &Client{http.Client{
		Timeout: patience,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "unix", socket)
			},
		},
	}}
}

// patience is longer than the daemon's own with etcd (see server.patience),
// so that the better explanation arrives.
const patience = 8 * time.Second

// ErrNotRunning: nobody listens on the socket.
var ErrNotRunning = errors.New("flanneld is not running on this host: start it with systemctl start flanneld, or by hand (flanneld --help)")

// Status asks for the daemon's status.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	return s, c.do(ctx, http.MethodGet, "/v1/status", nil, &s)
}

// Names lists the names that were added by hand, by tenant, network and name.
func (c *Client) Names(ctx context.Context) ([]Name, error) {
	var l NameList
	err := c.do(ctx, http.MethodGet, "/v1/names", nil, &l)
	return l.Names, err
}

// AddName adds addresses to a name, which it makes if need be.
func (c *Client) AddName(ctx context.Context, n Name) (Change, error) {
	var ch Change
	return ch, c.do(ctx, http.MethodPut, "/v1/names/"+keyPath(n.Tenant, n.Network, n.Name), n, &ch)
}

// RemoveName takes addresses from a name, and the name with the last of them;
// with none given all of it. What is not there is an *Error with
// StatusNotFound.
func (c *Client) RemoveName(ctx context.Context, n Name) (Change, error) {
	q := url.Values{}
	for _, a := range n.Addresses {
		q.Add("address", a.String())
	}
	path := "/v1/names/" + keyPath(n.Tenant, n.Network, n.Name)
	if len(q) > 0 {
		path += "?" + q.Encode()
	}
	var ch Change
	return ch, c.do(ctx, http.MethodDelete, path, nil, &ch)
}

// Lookup asks what a container of the pod network is told about a name. An
// address stands for its reverse name; type is a mnemonic or a number, "" for
// A, or PTR of an address.
func (c *Client) Lookup(ctx context.Context, name, qtype string) (Lookup, error) {
	var l Lookup
	return l, c.do(ctx, http.MethodGet, "/v1/lookup?"+url.Values{"name": {name}, "type": {qtype}}.Encode(), nil, &l)
}

func keyPath(parts ...string) string {
	for i, p := range parts {
		parts[i] = url.PathEscape(p)
	}
	return strings.Join(parts, "/")
}

// do sends a request; send and into may be nil. What the daemon refuses is an
// *Error.
func (c *Client) do(ctx context.Context, method, path string, send, into any) error {
	var body io.Reader
	if send != nil {
		b, err := json.Marshal(send)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://flanneld"+path, body)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	switch {
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("open %s: only root may ask flanneld: use sudo", Socket)
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return ErrNotRunning
	case err != nil:
		return fmt.Errorf("ask flanneld for %s: %w", path, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return refusal(resp, path)
	}
	if into == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		return fmt.Errorf("read flanneld's answer to %s: %w", path, err)
	}
	return nil
}

// refusal reads why the daemon did not do what was asked.
func refusal(resp *http.Response, path string) error {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // the status says enough without it
	e := &Error{}
	if err := json.Unmarshal(text, e); err == nil && e.Message != "" {
		e.Status = resp.StatusCode
		return e
	}
	if resp.StatusCode == http.StatusNotFound {
		return fmt.Errorf("the running flanneld does not know %s: it is older than this program; restart it", path)
	}
	return fmt.Errorf("flanneld answered %s to %s: %s", resp.Status, path, strings.TrimSpace(string(text)))
}
