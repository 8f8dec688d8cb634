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
	"github.com/flanneld/flanneld/kernel/rules"
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
// In the same way, in INPUT, a jump to FLANNELD-DNS accepts what comes from the
// pod network to port 53 of this host's names.
//
// It belongs to the network namespace it was opened in and is not safe for
// concurrent use.
type Forward struct {
	b          *backends
	seen       map[*backend]uint64
	generation uint32
	firewalld  firewalld
	last       []netip.Prefix
	names      []netip.Addr
	foreign    []nft.Chain
}

// Our chains in the table filter.
const fwdChain, dnsChain = prefix + "FWD", prefix + "DNS"

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

// Sync makes forwarding work for these networks, and DNS at these addresses of
// this host for them: whole state, idempotent. While nobody changes a FORWARD
// or INPUT chain it runs no program. What cannot be helped from here is told by
// Problems.
func (f *Forward) Sync(ctx context.Context, networks []netip.Prefix, names []netip.Addr) error {
	same := slices.Equal(networks, f.last) && slices.Equal(names, f.names)
	if !same {
		clear(f.seen)
		f.firewalld.seen = 0
		f.last, f.names = slices.Clone(networks), slices.Clone(names)
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
		errs = errors.Join(errs, f.sync(ctx, x))
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
	f.last, f.names, f.generation = nil, nil, 0
	return errors.Join(f.b.cleanup(ctx, ofOthers, "filter"), f.firewalld.remove(ctx))
}

// sync does one backend and family.
func (f *Forward) sync(ctx context.Context, x *backend) error {
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
		todo := script("filter", ofOthers, filterChains(f.last, f.names, x.v4, have), have)
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
	var found, ours uint64
	for _, name := range []string{"FORWARD", "INPUT", fwdChain, dnsChain} {
		d, err := f.b.watch.Digest(x.family(), "filter", name)
		if err != nil {
			return 0, err
		}
		if name == fwdChain || name == dnsChain {
			ours = ours*31 + d
		} else {
			found = found*31 + d
		}
	}
	if found == 0 {
		return 0, nil
	}
	return max(found^ours, 1), nil
}

// filterChains says what of ours the table filter must hold.
func filterChains(networks []netip.Prefix, names []netip.Addr, v4 bool, have table.Saved) []chain {
	fwd := chain{table: "filter", name: fwdChain, parent: "FORWARD", place: beforeDroppers}
	dns := chain{table: "filter", name: dnsChain, parent: "INPUT", place: beforeDroppers}
	for _, n := range prefixesOf(networks, v4) {
		fwd.add("-s "+n.String(), "ACCEPT")
		fwd.add("-d "+n.String(), "ACCEPT")
		for _, a := range rules.OfFamily(names, v4) {
			for _, protocol := range []string{"udp", "tcp"} {
				dns.add(fmt.Sprintf("-s %s -d %s -p %s -m %s --dport 53", n, a, protocol, protocol), "ACCEPT")
			}
		}
	}
	return slices.DeleteFunc([]chain{fwd, dns}, func(c chain) bool {
		others := slices.DeleteFunc(slices.Clone(have.Rules[c.parent]), func(text string) bool { return isJump(text, anyOfOurs) })
		drops := have.Policy[c.parent] == "DROP" || beforeDroppers(others) < len(others)
		return len(c.rules) == 0 || !drops
	})
}

// beforeDroppers returns where in the FORWARD or INPUT chain the first rule
// stands that would drop pod traffic without meaning it.
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
	for _, p := range []string{"DOCKER", "ufw-", "ufw6-", "FORWARD_", "INPUT_"} {
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
