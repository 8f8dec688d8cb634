#!/bin/sh
# packages.sh demo|test: installs the Debian packages that are missing, saying
# which and why. The one list of what this project needs beside Go, git and
# make. Safe to repeat; does nothing, not even ask sudo, when all is there.
set -eu
set=${1:?usage: packages.sh demo|test}
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# what must be there | package | set | why
list() {
	cat <<-'LIST'
		gcc|gcc|test|the race detector is linked by it
		/usr/include/stdlib.h|libc6-dev|test|headers for the race detector
		etcd|etcd-server|test|hosts must work with the etcd that Debian has
		etcdctl|etcd-client|test|documentation tells admins to use it
		ip|iproute2|test|an independent view of links, routes and neighbours
		ping|iputils-ping|test|traffic between containers
		nft|nftables|test|an independent view of our rules
		iptables|iptables|test|hosts without nftables; Docker's rules
		ipset|ipset|test|hosts without nftables
		firewalld|firewalld|test|hosts whose packet filter somebody else owns
		dbus-daemon|dbus-daemon|test|firewalld is spoken to through it
		conntrack|conntrack|test|an independent view of connections
		ovs-vswitchd|openvswitch-switch|test|a GRE peer that is no Linux tunnel
		tcpdump|tcpdump|test|what is on the wire
		dig|dnsutils|test|names
		curl|curl|test|health checks and metrics, as documented
		musl-gcc|musl-tools|test|the resolver of containers that have musl
		dnsperf|dnsperf|test|asks name servers as fast as they answer, for make bench
		static:busybox|busybox-static|test|container images are made from it, no registry is needed
		podman|podman|test|an engine that calls the CNI plugins
		runc|runc|test|runs podman's containers
		dockerd|docker.io|test|Docker on a leased subnet
		containerd|containerd|test|runs Docker's containers
		ps|procps|test|finds what tests left behind
		unshare|util-linux|test|hosts made of namespaces
		qemu-system-x86_64|qemu-system-x86|test|a VM with Debian's kernel: GRE, IPIP, WireGuard, whatever this one lacks
		depmod|kmod|test|that kernel's modules
		xz|xz-utils|test|Debian compresses them since version 13
	LIST
}

# The demo needs nothing: flanneld speaks to the kernel itself and brings its
# own etcd.
missing=
while IFS='|' read -r check package sets why; do
	case " $sets " in *" $set "*) ;; *) continue ;; esac
	case $check in
	/*) [ -e "$check" ] && continue ;;
	static:*) program=$(command -v "${check#static:}") && ! ldd "$program" >/dev/null 2>&1 && continue ;;
	*) command -v "$check" >/dev/null 2>&1 && continue ;;
	esac
	[ -n "$missing" ] || echo "Missing on this machine, needed for make $set:"
	printf '  %-16s %s\n' "$package" "$why"
	missing="$missing $package"
done <<LIST
$(list)
LIST

sudo=
if [ "$(id -u)" != 0 ]; then
	if ! command -v sudo >/dev/null 2>&1; then
		echo "make $set needs root, and there is no sudo: run it as root." >&2
		exit 1
	fi
	sudo=sudo
fi
[ -n "$missing" ] || exit 0
if ! command -v apt-get >/dev/null 2>&1; then
	echo "This is not Debian or Ubuntu: please install their equivalents, then repeat." >&2
	exit 1
fi

# Packages of servers start them, and at every boot again. Tests start their
# own, so forbid it while installing, the way Debian has for it (policy-rc.d; an
# existing policy wins), and switch off those that are new.
echo "Installing them with apt-get. Servers among them are not started, neither now nor at boot."
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
	trap '$sudo rm -f $policy' EXIT
	trap 'exit 130' INT TERM
	printf '#!/bin/sh\nexit 101\n' | $sudo tee $policy >/dev/null
	$sudo chmod 755 $policy
fi
$sudo apt-get update -q </dev/null
# shellcheck disable=SC2086 # words are packages
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing </dev/null
command -v systemctl >/dev/null 2>&1 || exit 0
for package in $missing; do
	case $package in
	etcd-server) $sudo systemctl -q disable etcd.service ;;
	docker.io) $sudo systemctl -q disable docker.service docker.socket ;;
	containerd | firewalld | openvswitch-switch) $sudo systemctl -q disable $package.service ;;
	esac || echo "note: could not switch off the service of $package" >&2
done
