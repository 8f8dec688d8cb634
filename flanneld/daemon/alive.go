package daemon

import (
	"fmt"
	"sync"
	"time"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/subnet"
)

// endpoints are those of all hosts, by key: of this host what it knows itself,
// and of the others what etcd says, without those of a host's former life.
func (n *names) endpoints(now time.Time) (list []*endpoint.Endpoint, next time.Time) {
	others := n.all.Values
	if now.Before(n.grace) {
		others, next = merge(n.kept, others), n.grace
	} else {
		n.kept = nil
	}
	n.roster.become(others, n.isFormer)
	return merge(n.roster.current(), n.local), next
}

// isFormer tells whether an endpoint of etcd is not to be counted: it is of
// this host, which knows better, of an earlier life of its host, or of a time
// when its host had another name.
func (n *names) isFormer(e *endpoint.Endpoint) bool {
	if e.Identity == n.ground.self.Identity {
		return true
	}
	h, named := n.ground.hosts[e.Host]
	return h.Identity != e.Identity && (named || e.Host == n.ground.self.Name || n.ground.lives[e.Identity])
}

// forget has endpoints removed whose hosts hold no lease any more, while it is
// certain that they do not.
func (n *names) forget(now time.Time) {
	var stale []*endpoint.Endpoint
	held := sync.OnceValue(func() map[string]bool {
		identities := make(map[string]bool, len(n.ground.leases))
		for _, l := range n.ground.leases {
			identities[l.Identity] = true
		}
		return identities
	})
	if !n.ground.fresh.IsZero() && now.After(n.grace) && n.storeErr == nil {
		self := n.ground.self
		stale = endpoint.Stale(n.all.Values, func(host, identity string) bool {
			if identity == self.Identity { // under a former name of this host nobody else removes them
				return host == self.Name
			}
			return held()[identity]
		})
	}
	if len(stale)+n.forgetting > 0 {
		n.forgetting = len(stale)
		n.stale.put(stale)
	}
}

// judgeHosts says which hosts with endpoints count as dead, and when that
// changes by itself. While nothing is certain the former judgement stays.
func (n *names) judgeHosts(lives map[life]int, now time.Time) (dead map[string]string, next time.Time) {
	dead = map[string]string{}
	sure := n.ground.fresh.Add(subnet.HostTTL)
	for l := range lives {
		switch {
		case l.host == n.ground.self.Name, n.ground.lives[l.identity]:
		case n.ground.fresh.IsZero() || now.Before(sure):
			if why, ok := n.dead[l.host]; ok {
				dead[l.host] = why
			} else if !n.ground.fresh.IsZero() {
				next = sure
			}
		default:
			dead[l.host] = fmt.Sprintf("%s is not alive: it has no record under hosts/", l.host)
		}
	}
	return dead, next
}
