package main

// entry is a line of the suite.
type entry struct {
	lane    int    // VMs of two lanes run at the same time: a core for each
	pkg     string // within the module; with /... also what is below
	tests   string // for -test.run; "": all
	skip    string // for -test.skip
	without string // modules that shall be missing, with commas
	why     string
}

// suite is what "make test" runs in VMs: what is not run, or not to the end,
// under kernels that lack something. What any kernel with namespaces can run
// needs no emulated one. An emulated machine starts a program in 50 to 100 ms,
// so of the contract of the drivers only that of both families is run.
func suite() []entry {
	const driver = "^Test[^C]|^TestC[^o]|^TestContract.*/^Dual$"
	return []entry{
		{lane: 0, pkg: "backend/gre", tests: driver + "|^TestContractWithKey.*/^IPv4$", why: "GRE"},
		{lane: 0, pkg: "kernel/link", skip: "Monitor|Unplugged",
			why: "kinds of devices that other kernels lack; what watches the clock fails where all is slow"},
		{lane: 0, pkg: "backend/ipip", tests: driver, why: "IPIP, SIT and IPv6 in IPv6"},
		{lane: 0, pkg: "test/e2e", tests: "ServicesOnOneHost", why: "bridged packets pass the rules only with br_netfilter, which is a module in there"},
		{lane: 1, pkg: "backend/wireguard", tests: driver, why: "WireGuard in the kernel"},
		{lane: 0, pkg: "backend/vxlan", tests: "^TestContract$/^Dual$", why: "the driver that most use, under the kernel that most have"},
		{lane: 1, pkg: "kernel/nft", skip: "Contract/each|Contract/forged|Contract/tunnel_packets", why: "what an older nf_tables refuses"},
		{lane: 1, pkg: "kernel/iptables", tests: "Contract/^legacy$/^(nothing|pods_are|removal|a_second)|Legacy", without: "nf_tables",
			why: "iptables in modules, without tests that wait for packets that must not come: test/e2e sends some"},
		{lane: 1, pkg: "test/e2e", tests: "Nftables", without: "nf_tables", why: "whole hosts without nftables"},
	}
}
