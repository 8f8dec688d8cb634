package main

// entry is a line of the suite.
type entry struct {
	pkg     string // within the module; with /... also what is below
	tests   string // for -test.run; "": all
	skip    string // for -test.skip
	without string // modules that shall be missing, with commas
	why     string
}

// suite is what "make test" runs in VMs: what is not run, or not to the end,
// under kernels that lack something. What any kernel with namespaces can run
// needs no emulated one.
func suite() []entry {
	return []entry{
		{pkg: "backend/gre", why: "GRE"},
		{pkg: "backend/ipip", why: "IPIP, SIT and IPv6 in IPv6"},
		{pkg: "backend/wireguard", why: "WireGuard in the kernel"},
		{pkg: "backend/vxlan", tests: "Contract", why: "the driver that most use, under the kernel that most have"},
		{pkg: "kernel/link", skip: "Monitor|Unplugged", why: "device kinds that other kernels lack; netlink of an older kernel; what watches the clock fails where all is slow"},
		{pkg: "kernel/nft", why: "what an older nf_tables refuses"},
		{pkg: "kernel/iptables", tests: "Contract/^legacy$/^(nothing|pods_are|removal|a_second)|Legacy", without: "nf_tables",
			why: "iptables in modules; without those that wait for packets that must not come: test/e2e sends some"},
		{pkg: "test/e2e", tests: "Nftables", without: "nf_tables", why: "whole hosts without nftables"},
	}
}
