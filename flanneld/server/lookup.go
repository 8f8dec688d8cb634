package server

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/flanneld/api"
	"github.com/flanneld/flanneld/subnet"
)

// lookup answers as a container's resolver would ask: through the search list.
func (n *namesAPI) lookup(r *http.Request) (any, error) {
	typed, qtype := r.URL.Query().Get("name"), r.URL.Query().Get("type")
	names := n.candidates(strings.ToLower(typed))
	if a, err := netip.ParseAddr(typed); err == nil {
		if a.Zone() != "" {
			return nil, api.Invalid("name", typed, "leave out the zone after %: there is no name for it")
		}
		names = []string{reverse(a)}
		if qtype == "" {
			qtype = "PTR"
		}
	}
	if typed == "" {
		return nil, api.Invalid("name", typed, "give a name, such as web or frontend.default.svc."+n.domain)
	}
	if qtype == "" {
		qtype = "A"
	}
	t, err := api.ParseType(qtype)
	if err != nil {
		return nil, api.Invalid("type", qtype, "use A, AAAA, SRV, PTR, TXT, … or a number")
	}
	var best api.Lookup
	var tried []string
	for _, name := range names {
		if !canAsk(name) {
			if len(names) == 1 {
				return nil, api.Invalid("name", typed, "is no DNS name: labels of 1 to 63 characters between dots, at most 253 in all")
			}
			continue
		}
		l, err := n.ask(r.Context(), name, t)
		if err != nil {
			return nil, err
		}
		if best.Name == "" || worth(l) > worth(best) {
			best = l
			best.Tried = tried
		}
		if len(l.Answers) > 0 {
			break
		}
		tried = append(tried, l.Name)
	}
	if best.Name == "" {
		return nil, api.Invalid("name", typed, "is no DNS name: labels of 1 to 63 characters between dots, at most 253 in all")
	}
	if len(best.Answers) == 0 { // none was better: all were tried
		best.Tried = without(tried, best.Name)
	}
	return best, nil
}

// ask makes a server failure, which a container would be told, of an error.
func (n *namesAPI) ask(ctx context.Context, name string, qtype uint16) (api.Lookup, error) {
	l, err := n.names.Lookup(ctx, name, qtype)
	if _, ok := errors.AsType[*api.Error](err); ok || err == nil {
		return l, err
	}
	return api.Lookup{Name: name + ".", Type: api.TypeName(qtype), Rcode: api.RcodeName(2), View: endpoint.DefaultNetwork,
		Answers: []api.Record{}, Notes: []string{err.Error()}}, nil
}

// worth orders answers by how much they explain.
func worth(l api.Lookup) int {
	switch {
	case len(l.Answers) > 0:
		return 4
	case len(l.LeftOut) > 0:
		return 3
	case l.Rcode == "NOERROR":
		return 2
	case l.Rcode != "NXDOMAIN":
		return 1
	}
	return 0
}

// candidates are the full names that a container's resolver asks for, in its
// order (resolv.conf(5), ndots:1), without the dot at the end.
func (n *namesAPI) candidates(name string) []string {
	if absolute, ok := strings.CutSuffix(name, "."); ok {
		return []string{absolute}
	}
	var out []string
	for _, s := range subnet.PodSearch(n.domain, endpoint.DefaultNetwork, "") {
		out = append(out, name+"."+s)
	}
	if strings.Contains(name, ".") {
		return append([]string{name}, out...)
	}
	return append(out, name)
}

// canAsk: any printable characters, as labels of legal length.
func canAsk(name string) bool {
	for _, c := range []byte(name) {
		if c <= ' ' || c > '~' || c == '\\' {
			return false
		}
	}
	for _, l := range strings.Split(name, ".") {
		if len(l) > 63 || l == "" && name != "" {
			return false
		}
	}
	return len(name) <= 253
}

// reverse is the name under which an address's names are found: RFC 1035,
// section 3.5, and RFC 3596, section 2.5.
func reverse(a netip.Addr) string {
	const hex = "0123456789abcdef"
	var b strings.Builder
	a = a.Unmap()
	bytes := a.AsSlice()
	for i := len(bytes) - 1; i >= 0; i-- {
		if a.Is4() {
			b.WriteString(strconv.Itoa(int(bytes[i])) + ".")
			continue
		}
		b.Write([]byte{hex[bytes[i]&15], '.', hex[bytes[i]>>4], '.'})
	}
	if a.Is4() {
		return b.String() + "in-addr.arpa"
	}
	return b.String() + "ip6.arpa"
}

func without(names []string, name string) []string {
	var out []string
	for _, n := range names {
		if n != name {
			out = append(out, n)
		}
	}
	return out
}
