package wireguard

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/flanneld/flanneld/backend/routed"
	wg "github.com/flanneld/flanneld/kernel/wireguard"
)

// marshalData is flannel's BackendData.
func marshalData(k wg.Key) json.RawMessage { return fmt.Appendf(nil, `{"PublicKey":"%s"}`, k) }

// parseData reads a peer's BackendData. The value comes from elsewhere: it may
// be anything.
func parseData(raw []byte, own wg.Key) (wg.Key, error) {
	const most = 4 << 10
	switch {
	case len(raw) == 0:
		return wg.Key{}, errors.New("has no BackendData")
	case len(raw) > most:
		return wg.Key{}, fmt.Errorf("BackendData of %d bytes: must be at most %d", len(raw), most)
	}
	var v struct{ PublicKey *string }
	if err := json.Unmarshal(raw, &v); err != nil || v.PublicKey == nil {
		return wg.Key{}, fmt.Errorf(`BackendData %s: must be as in {"PublicKey":"…"}`, routed.Clip(string(raw)))
	}
	k, err := wg.ParseKey(*v.PublicKey)
	switch {
	case err != nil:
		return wg.Key{}, fmt.Errorf("PublicKey %s: %w", routed.Clip(*v.PublicKey), err)
	case k == own:
		return wg.Key{}, errors.New("PublicKey is this host's own: one of the two is a clone, remove its key file and restart its daemon")
	}
	return k, nil
}
