package dns

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Holder names the program that has a port at an address, or at every address,
// in this network namespace: "dnsmasq (process 812)". "" if it is not found:
// /proc tells root only.
func Holder(proto string, at netip.AddrPort) string {
	inodes := map[string]bool{}
	for _, family := range []string{"", "6"} {
		table, err := os.ReadFile("/proc/thread-self/net/" + proto + family)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(table)) {
			if inode, ok := holds(line, proto, at); ok {
				inodes["socket:["+inode+"]"] = true
			}
		}
	}
	if len(inodes) == 0 {
		return ""
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return ""
	}
	for _, dir := range processes {
		files, err := os.ReadDir(dir + "/fd")
		if err != nil { // not there any more, not ours to see
			continue
		}
		for _, f := range files {
			if link, err := os.Readlink(dir + "/fd/" + f.Name()); err != nil || !inodes[link] {
				continue
			}
			name, err := os.ReadFile(dir + "/comm")
			if err != nil {
				continue
			}
			return fmt.Sprintf("%s (process %s)", strings.TrimSpace(string(name)), filepath.Base(dir))
		}
	}
	return ""
}

// holds reads a line of /proc/net/udp and the like (proc_net(5)) and reports
// whether its socket keeps others from listening at an address.
func holds(line, proto string, at netip.AddrPort) (inode string, ok bool) {
	const listening = "0A"
	f := strings.Fields(line)
	if len(f) < 10 || proto == "tcp" && f[3] != listening {
		return "", false
	}
	addr, port, _ := strings.Cut(f[1], ":")
	if n, err := strconv.ParseUint(port, 16, 16); err != nil || uint16(n) != at.Port() {
		return "", false
	}
	b, err := hex.DecodeString(addr)
	if err != nil || len(b)%4 != 0 {
		return "", false
	}
	for word := range slices.Chunk(b, 4) { // each written as the machine's number
		binary.NativeEndian.PutUint32(word, binary.BigEndian.Uint32(word))
	}
	local, ok := netip.AddrFromSlice(b)
	return f[9], ok && (local.Unmap() == at.Addr() || local.IsUnspecified())
}
