package nft

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/nlbatch"
	"github.com/flanneld/flanneld/kernel/rules"
)

// generation asks nf_tables for the number of its ruleset, which grows by one
// with every transaction in the network namespace, whoever commits it.
type generation struct {
	conn *nlbatch.Conn
	ask  nlbatch.Batch
}

func openGeneration() (*generation, error) {
	c, err := nlbatch.Dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("%w: %w (CONFIG_NETFILTER_NETLINK)", rules.ErrNotSupported, err)
	}
	g := &generation{conn: c}
	const getGen = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN
	g.ask.Message(getGen, unix.NLM_F_REQUEST, []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0})
	return g, nil
}

// Get returns the generation. It is rules.ErrNotSupported where the kernel
// has no nf_tables.
func (g *generation) Get() (uint32, error) {
	for body, err := range g.conn.Get(&g.ask) {
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
			return 0, fmt.Errorf("%w: nf_tables (CONFIG_NF_TABLES): %w", rules.ErrNotSupported, err)
		}
		if err != nil {
			return 0, fmt.Errorf("read nf_tables generation: %w", err)
		}
		if len(body) < 4 {
			break
		}
		if id := attr(body[4:], unix.NFTA_GEN_ID); len(id) == 4 {
			return binary.BigEndian.Uint32(id), nil
		}
	}
	return 0, errors.New("read nf_tables generation: no answer")
}

// Close frees the socket.
func (g *generation) Close() error { return g.conn.Close() }
