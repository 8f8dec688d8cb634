package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/flanneld/flanneld/store"
	"github.com/flanneld/flanneld/store/etcd"
)

// helper is what the benchmark runs of itself inside the lab.
func helper(ctx context.Context, args []string, stderr io.Writer) int {
	fs := flag.NewFlagSet(args[0], flag.ContinueOnError)
	fs.SetOutput(stderr)
	from := fs.Int("from", 1, "number of the first lease")
	count := fs.Int("count", 1, "leases")
	listen := fs.String("listen", "", "address of the proxy")
	to := fs.String("to", "", "address behind the proxy")
	wait := fs.Duration("delay", 0, "delay each way")
	if err := fs.Parse(args[1:]); err != nil {
		return 2
	}
	var err error
	switch args[0] {
	case "fill":
		err = fill(ctx, *from, *count)
	case "put":
		err = putAsked(ctx, os.Stdin)
	default:
		err = proxy(ctx, *listen, *to, *wait)
	}
	if err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	return 0
}

// leaseSubnet is the subnet of the n-th lease that fill makes.
func leaseSubnet(n int) netip.Prefix {
	a := [4]byte{10, byte(n >> 8), byte(n), 0}
	return netip.PrefixFrom(netip.AddrFrom4(a), 24)
}

// lease is the n-th lease that fill makes.
func lease(n int) store.Put {
	s := leaseSubnet(n)
	return store.Put{
		Key: fmt.Sprintf("/coreos.com/network/subnets/%v-24", s.Addr()),
		Value: fmt.Appendf(nil, `{"PublicIP":"172.%d.%d.%d","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"4a:00:00:%02x:%02x:%02x"}}`,
			16+n>>16, n>>8&255, n&255, n>>16, n>>8&255, n&255),
	}
}

// fill puts leases of hosts that do not exist.
func fill(ctx context.Context, from, count int) error {
	st, err := etcd.New(etcd.Options{Endpoints: []string{endpoint}})
	if err != nil {
		return err
	}
	defer st.Close()
	for n := from; n < from+count; {
		var t store.Txn
		for ; n < from+count && len(t.Put) < 100; n++ {
			t.Put = append(t.Put, lease(n))
		}
		if _, err := st.Commit(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

// putAsked puts the lease of each number that it reads and answers with the
// time just before, in nanoseconds since 1970. It stays, so that neither the
// start of a process nor a connection is measured.
func putAsked(ctx context.Context, asked io.Reader) error {
	st, err := etcd.New(etcd.Options{Endpoints: []string{endpoint}})
	if err != nil {
		return err
	}
	defer st.Close()
	if _, err := st.Get(ctx, "/"); err != nil {
		return err
	}
	for {
		var n int
		if _, err := fmt.Fscanln(asked, &n); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		at := time.Now()
		if _, err := st.Commit(ctx, store.Txn{Put: []store.Put{lease(n)}}); err != nil {
			return err
		}
		fmt.Fprintln(os.Stdout, at.UnixNano())
	}
}

// proxy forwards TCP connections and holds every byte back for delay.
func proxy(ctx context.Context, listen, to string, delay time.Duration) error {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		in, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		out, err := net.Dial("tcp", to)
		if err != nil {
			_ = in.Close()
			continue
		}
		go pump(out, in, delay)
		go pump(in, out, delay)
	}
}

// pump copies from src to dst, each piece delay later than it came. It ends
// when either side does, and closes both.
func pump(dst, src net.Conn, delay time.Duration) {
	type piece struct {
		due  time.Time
		data []byte
	}
	pieces := make(chan piece, 1024)
	go func() {
		defer close(pieces)
		for {
			buf := make([]byte, 64<<10)
			n, err := src.Read(buf)
			if n > 0 {
				pieces <- piece{time.Now().Add(delay), buf[:n]}
			}
			if err != nil {
				return
			}
		}
	}()
	defer dst.Close()
	defer src.Close()
	for p := range pieces {
		<-time.After(time.Until(p.due))
		if _, err := dst.Write(p.data); err != nil {
			return
		}
	}
}
