package iptables

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/flanneld/flanneld/kernel/iptables/table"
	"github.com/flanneld/flanneld/kernel/nft"
)

// Forward keeps the traffic of the pod network forwarded where somebody
// else's rules would drop it: an accept in our own table does not overrule
// their drop. It is used beside either Filter.
//
// In the FORWARD chain of iptables, legacy or nft, of each family, it keeps
// one jump to FLANNELD-FWD, which accepts what comes from or goes to the pod
// network – but only while that chain would drop it: by policy (Docker, ufw),
// by a rule that drops everything (the stock rules of RHEL), or in a chain of
// Docker, ufw or firewalld. The jump stands before the first such rule and
// else at the end, so that rules that an administrator or a network policy
// put there (DOCKER-USER, KUBE-…, cali-…) keep their say.
//
// Where firewalld runs with its nftables backend, the pod network is made a
// source of firewalld's trusted zone, at run time, not permanently.
//
// It belongs to the network namespace it was opened in and is not safe for
// concurrent use.
type Forward struct {
	b          *backends
	seen       map[*backend]uint64
	generation uint32
	firewalld  firewalld
	last       []netip.Prefix
	foreign    []nft.Chain
}

// fwdChain is our chain in the table filter.
const fwdChain = prefix + "FWD"

// OpenForward returns the keeper of the calling thread's network namespace.
// state is the path of a file that remembers what was added to firewalld; ""
// remembers it in this process only. No program is run.
func OpenForward(state string) (*Forward, error) {
	b, err := openBackends()
	if err != nil {
		return nil, err
	}
	return &Forward{b: b, seen: map[*backend]uint64{}, firewalld: firewalld{state: state, runs: &b.runs}}, nil
}

// Close lets go of the kernel; the rules stay.
func (f *Forward) Close() error { return f.b.Close() }

// Runs is the number of programs run so far.
func (f *Forward) Runs() int64 { return f.b.runs.Load() }

// Sync makes forwarding work for these networks: whole state, idempotent.
// While nobody changes a FORWARD chain it runs no program. What cannot be
// helped from here is told by Problems.
func (f *Forward) Sync(ctx context.Context, networks []netip.Prefix) error {
	same := slices.Equal(networks, f.last)
	if !same {
		clear(f.seen)
		f.firewalld.seen = 0
		f.last = slices.Clone(networks)
	}
	var gen uint32
	var errs error
	if f.b.watch != nil {
		var err error
		if gen, err = f.b.watch.Generation(); err != nil {
			return err
		}
	}
	for _, x := range f.b.all {
		if x.nft && same && gen == f.generation {
			continue
		}
		errs = errors.Join(errs, f.sync(ctx, x, networks))
	}
	if f.b.watch == nil || same && gen == f.generation && !f.firewalld.due() {
		return errs
	}
	errs = errors.Join(errs, f.firewalld.sync(ctx, f.b.watch, networks))
	chains, err := f.b.watch.Chains()
	f.foreign = slices.DeleteFunc(chains, func(c nft.Chain) bool {
		return !c.Drops || c.Table == firewalldTable || f.arranged(c)
	})
	if errs = errors.Join(errs, err); errs == nil {
		f.generation = gen // before our own writes: the next Sync looks once more
	}
	return errs
}

// arranged tells whether a chain is iptables' FORWARD and we have the program
// to arrange ourselves with it.
func (f *Forward) arranged(c nft.Chain) bool {
	return c.Table == "filter" && c.Name == "FORWARD" && slices.ContainsFunc(f.b.all, func(x *backend) bool {
		return x.nft && x.family() == c.Family && x.cmd != nil
	})
}

// Problems says, in stable text, who drops forwarded packets and could not be
// told not to: nftables chains of somebody we do not know, by their policy,
// and a firewalld that left its rules behind.
func (f *Forward) Problems() []string {
	var out []string
	if f.firewalld.problem != "" {
		out = append(out, f.firewalld.problem)
	}
	for _, c := range f.foreign {
		p := fmt.Sprintf("nftables chain %s drops what it does not accept: add rules there that accept the pod network", c)
		for _, n := range f.last {
			fam := "ip6"
			if n.Addr().Is4() {
				fam = "ip"
			}
			p += fmt.Sprintf(" (%s saddr %s accept; %s daddr %s accept)", fam, n, fam, n)
		}
		out = append(out, p)
	}
	return out
}

// Remove takes away everything that Sync ever added.
func (f *Forward) Remove(ctx context.Context) error {
	clear(f.seen)
	f.last, f.generation = nil, 0
	return errors.Join(f.b.cleanup(ctx, [3]string{"filter"}), f.firewalld.remove(ctx))
}

// sync does one backend and family.
func (f *Forward) sync(ctx context.Context, x *backend, networks []netip.Prefix) error {
	for range rounds {
		id, err := f.digest(x)
		if err != nil {
			return err
		}
		if id == 0 || id == f.seen[x] { // no such chain, or as we left it
			return nil
		}
		cmd, err := f.b.command(ctx, x)
		if errors.Is(err, errNotInstalled) { // somebody uses the same names: see Problems
			f.seen[x] = id
			return nil
		}
		if err != nil {
			return err
		}
		have, err := cmd.save(ctx, "filter")
		if err != nil {
			return err
		}
		todo := script("filter", forwardChains(networks, x.v4, have), have)
		if todo == "" {
			f.seen[x] = id
			return nil
		}
		if err := cmd.restore(ctx, todo); err != nil {
			return fmt.Errorf("keep the pod network forwarded: %w", err)
		}
	}
	return nil // others are busy with the chain: look again at the next Sync
}

func (f *Forward) digest(x *backend) (uint64, error) {
	if !x.nft {
		return x.legacy.digest("filter")
	}
	chain, err := f.b.watch.Digest(x.family(), "filter", "FORWARD")
	if err != nil || chain == 0 {
		return 0, err
	}
	ours, err := f.b.watch.Digest(x.family(), "filter", fwdChain)
	return max(chain^ours, 1), err
}

// forwardChains says what of ours the table filter must hold.
func forwardChains(networks []netip.Prefix, v4 bool, have table.Saved) []chain {
	c := chain{table: "filter", name: fwdChain, parent: "FORWARD", place: beforeDroppers}
	for _, n := range networks {
		if n.Addr().Is4() == v4 {
			c.rules = append(c.rules, rule{"-s " + n.String(), "ACCEPT"}, rule{"-d " + n.String(), "ACCEPT"})
		}
	}
	others := slices.DeleteFunc(slices.Clone(have.Rules["FORWARD"]), isOurJump)
	drops := have.Policy["FORWARD"] == "DROP" || beforeDroppers(others) < len(others)
	if len(c.rules) == 0 || !drops {
		return nil
	}
	return []chain{c}
}

// beforeDroppers returns where in the FORWARD chain the first rule stands that
// would drop pod traffic without meaning it.
func beforeDroppers(others []string) int {
	for i, text := range others {
		if dropsAll(text) || dropper(table.Target(text)) {
			return i
		}
	}
	return len(others)
}

// dropper tells whether a chain belongs to a program that drops what it did
// not arrange itself.
func dropper(chain string) bool {
	if chain == "DOCKER-USER" {
		return false
	}
	for _, p := range []string{"DOCKER", "ufw-", "ufw6-", "FORWARD_"} {
		if strings.HasPrefix(chain, p) {
			return true
		}
	}
	return false
}

// dropsAll tells whether a rule drops or rejects every packet.
func dropsAll(text string) bool {
	match, verdict, ok := strings.Cut(text, "-j ")
	verdict, _, _ = strings.Cut(verdict, " ")
	if !ok || verdict != "DROP" && verdict != "REJECT" {
		return false
	}
	match = strings.TrimSpace(match)
	return match == "" || strings.HasPrefix(match, `-m comment --comment `) && !strings.Contains(match[len(`-m comment --comment `):], " -")
}
