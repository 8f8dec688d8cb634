package wireguard

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// writeChange writes a change in the configuration protocol
// (wireguard.com/xplatform), without the blank line at its end.
func writeChange(w *bufio.Writer, c Change) {
	if c.Private != nil {
		fmt.Fprintf(w, "private_key=%s\n", hex.EncodeToString(c.Private[:]))
	}
	if c.Mark != nil {
		fmt.Fprintf(w, "fwmark=%d\n", *c.Mark)
	}
	if c.Port != nil {
		fmt.Fprintf(w, "listen_port=%d\n", *c.Port)
	}
	for i := range c.Set {
		p := &c.Set[i]
		fmt.Fprintf(w, "public_key=%s\npreshared_key=%s\n", hex.EncodeToString(p.Key[:]), hex.EncodeToString(p.Preshared[:]))
		if p.Endpoint.IsValid() {
			fmt.Fprintf(w, "endpoint=%s\n", p.Endpoint)
		}
		fmt.Fprintf(w, "persistent_keepalive_interval=%d\nreplace_allowed_ips=true\n", p.Keepalive/time.Second)
		for _, n := range p.Allowed {
			fmt.Fprintf(w, "allowed_ip=%s\n", n)
		}
	}
	for _, k := range c.Remove {
		fmt.Fprintf(w, "public_key=%s\nupdate_only=true\nremove=true\n", hex.EncodeToString(k[:]))
	}
}

// parseState reads an answer up to its status. Its errors do not tell keys.
func parseState(r io.Reader) (State, error) {
	var s State
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		name, value, ok := strings.Cut(lines.Text(), "=")
		if !ok {
			return State{}, errors.New("its answer is not in the configuration protocol")
		}
		if name == "errno" {
			return s, status(value)
		}
		var err error
		if name == "public_key" {
			s.Peers = append(s.Peers, Status{})
		}
		if n := len(s.Peers); n == 0 {
			err = s.set(name, value)
		} else {
			err = s.Peers[n-1].set(name, value)
		}
		if err != nil {
			return State{}, fmt.Errorf("its answer has a wrong %q", name)
		}
	}
	if err := lines.Err(); err != nil {
		return State{}, err
	}
	return State{}, io.ErrUnexpectedEOF
}

// status is the error behind an errno, which wireguard-go writes negative.
func status(value string) error {
	n, err := strconv.ParseInt(value, 10, 32)
	switch {
	case err != nil:
		return errors.New("its answer has a wrong errno")
	case n == 0:
		return nil
	}
	return syscall.Errno(max(n, -n))
}

func (s *State) set(name, value string) (err error) {
	var n uint64
	switch name {
	case "private_key":
		err = parseHex(value, (*[keyLen]byte)(&s.Private))
	case "listen_port":
		n, err = strconv.ParseUint(value, 10, 16)
		s.Port = uint16(n)
	case "fwmark":
		n, err = strconv.ParseUint(value, 10, 32)
		s.Mark = uint32(n)
	}
	return err // other names are of other versions
}

func (p *Status) set(name, value string) (err error) {
	var n uint64
	switch name {
	case "public_key":
		err = parseHex(value, (*[keyLen]byte)(&p.Key))
	case "preshared_key":
		err = parseHex(value, (*[keyLen]byte)(&p.Preshared))
	case "endpoint":
		p.Endpoint, err = netip.ParseAddrPort(value)
		p.Endpoint = netip.AddrPortFrom(p.Endpoint.Addr().Unmap(), p.Endpoint.Port())
	case "persistent_keepalive_interval":
		n, err = strconv.ParseUint(value, 10, 16)
		p.Keepalive = time.Duration(n) * time.Second
	case "last_handshake_time_sec":
		if n, err = strconv.ParseUint(value, 10, 62); n != 0 {
			p.Handshake = time.Unix(int64(n), 0)
		}
	case "allowed_ip":
		var a netip.Prefix
		a, err = netip.ParsePrefix(value)
		p.Allowed = append(p.Allowed, a)
	}
	return err
}

func parseHex(value string, out *[keyLen]byte) error {
	raw, err := hex.DecodeString(value)
	if err != nil || len(raw) != keyLen {
		return errors.New("not a key")
	}
	copy(out[:], raw)
	return nil
}
