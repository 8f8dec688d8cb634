package link

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// filter makes the classic BPF program that lets through, of rtnetlink's
// notifications: all of links; addresses on devices and underlay; routes with
// our protocol number or on devices; neighbours and forwarding entries on
// devices. Routes and neighbours that a socket with one of ports changed are
// not let through. With many devices everything is: a program cannot be longer.
func filter(ports []uint32, devices, underlay []int) []unix.SockFilter {
	if len(devices)+len(underlay) > mostFiltered {
		return pass()
	}
	var p program
	p.load16(4) // nlmsg_type
	p.on(pass(), unix.RTM_NEWLINK, unix.RTM_DELLINK)

	var addr program
	addr.load32(hdr + 4) // ifa_index
	addr.passIf(devices...)
	addr.passIf(underlay...)
	addr.drop()
	p.on(addr, unix.RTM_NEWADDR, unix.RTM_DELADDR)

	var neigh program
	neigh.dropPorts(ports)
	neigh.load32(hdr + 4) // ndm_ifindex
	neigh.passIf(devices...)
	neigh.drop()
	p.on(neigh, unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH)

	var route program
	route.dropPorts(ports)
	route.load8(hdr + 5) // rtm_protocol
	route.passIfByte(Protocol)
	route.loadAttr32(hdr+rtmsgLen, unix.RTA_OIF)
	route.passIf(devices...)
	route.drop()
	p.on(route, unix.RTM_NEWROUTE, unix.RTM_DELROUTE)

	p.drop()
	return p
}

// mostFiltered are the interfaces that a program may compare with: each takes
// six of the 4,096 instructions that the kernel accepts.
const mostFiltered = 500

const (
	hdr      = 16 // struct nlmsghdr
	adNlattr = 0xfffff000 + 12
)

// program is classic BPF under construction. Loads give numbers in network
// byte order, while netlink uses the machine's.
type program []unix.SockFilter

func (p *program) add(code uint16, jt, jf uint8, k uint32) {
	*p = append(*p, unix.SockFilter{Code: code, Jt: jt, Jf: jf, K: k})
}

func (p *program) load8(at uint32)  { p.add(unix.BPF_LD|unix.BPF_B|unix.BPF_ABS, 0, 0, at) }
func (p *program) load16(at uint32) { p.add(unix.BPF_LD|unix.BPF_H|unix.BPF_ABS, 0, 0, at) }
func (p *program) load32(at uint32) { p.add(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, 0, 0, at) }

// loadAttr32 loads the number in an attribute of those that begin at an
// offset; without such an attribute the packet is dropped.
func (p *program) loadAttr32(at uint32, kind uint32) {
	p.add(unix.BPF_LD|unix.BPF_IMM, 0, 0, at)
	p.add(unix.BPF_LDX|unix.BPF_IMM, 0, 0, kind)
	p.add(unix.BPF_LD|unix.BPF_B|unix.BPF_ABS, 0, 0, adNlattr)
	p.add(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, 0, 1, 0)
	p.drop()
	p.add(unix.BPF_MISC|unix.BPF_TAX, 0, 0, 0)
	p.add(unix.BPF_LD|unix.BPF_W|unix.BPF_IND, 0, 0, 4)
}

func (p *program) drop()           { p.ret(0) }
func (p *program) ret(size uint32) { p.add(unix.BPF_RET|unix.BPF_K, 0, 0, size) }

func pass() (p program) {
	p.ret(0xffffffff)
	return p
}

// retIf ends with size if the number loaded is v.
func (p *program) retIf(v, size uint32) {
	p.add(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, 0, 1, v)
	p.ret(size)
}

func (p *program) passIfByte(v uint32) { p.retIf(v, 0xffffffff) }

func (p *program) passIf(indexes ...int) {
	for _, i := range indexes {
		p.retIf(big32(uint32(i)), 0xffffffff)
	}
}

// dropPorts drops what sockets with these port ids did.
func (p *program) dropPorts(ports []uint32) {
	p.load32(12) // nlmsg_pid
	for _, port := range ports {
		p.retIf(big32(port), 0)
	}
}

// on runs body, which must end the program, if the number loaded is one of
// two message types.
func (p *program) on(body program, a, b uint16) {
	p.add(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, 2, 0, uint32(big(a)))
	p.add(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, 1, 0, uint32(big(b)))
	p.add(unix.BPF_JMP|unix.BPF_JA, 0, 0, uint32(len(body)))
	*p = append(*p, body...)
}

// big is a machine-order number as a network-order load sees it.
func big(v uint16) uint16 {
	var raw [2]byte
	native.PutUint16(raw[:], v)
	return binary.BigEndian.Uint16(raw[:])
}

func big32(v uint32) uint32 {
	var raw [4]byte
	native.PutUint32(raw[:], v)
	return binary.BigEndian.Uint32(raw[:])
}
