package nft

import (
	"fmt"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/flanneld/flanneld/kernel/nlbatch"
)

// elements returns the keys of a set of our table of a family, sorted. It reads the
// kernel's answer in place: a set may hold an element for every host.
func (g *generation) elements(family nftables.TableFamily, name string, keyLen int) ([]string, error) {
	var ask nlbatch.Batch
	const getSetElem = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETSETELEM
	ask.Message(getSetElem, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, []byte{byte(family), unix.NFNETLINK_V0, 0, 0})
	ask.String(unix.NFTA_SET_ELEM_LIST_TABLE, Table)
	ask.String(unix.NFTA_SET_ELEM_LIST_SET, name)
	var all []byte
	for body, err := range g.conn.Get(&ask) {
		if err != nil {
			return nil, fmt.Errorf("list set %s: %w", name, err)
		}
		if len(body) < 4 {
			continue
		}
		for _, element := range nlbatch.Attrs(attr(body[4:], unix.NFTA_SET_ELEM_LIST_ELEMENTS)) {
			if key := attr(attr(element, unix.NFTA_SET_ELEM_KEY), unix.NFTA_DATA_VALUE); len(key) == keyLen {
				all = append(all, key...)
			}
		}
	}
	keys := make([]string, len(all)/keyLen)
	s := string(all)
	for i := range keys {
		keys[i] = s[i*keyLen : (i+1)*keyLen]
	}
	slices.Sort(keys)
	return keys, nil
}

// attr returns the value of the first attribute of a kind, nil without one.
func attr(b []byte, kind uint16) []byte {
	for k, v := range nlbatch.Attrs(b) {
		if k == kind {
			return v
		}
	}
	return nil
}
