package ipam

import "maps"

// Relabel gives an attachment the labels that change makes of a copy of its own
// (never nil), under its lock. Who reads the record meanwhile finds the former
// ones or the new ones. false: there is no such attachment, or it is not
// finished. An error of change is returned as it is, and nothing is written; it
// waits and fails as Find does.
func (n *Network) Relabel(k Key, change func(Record, map[string]string) error) (found bool, err error) {
	h, err := n.Find(k)
	if err != nil || h == nil {
		return false, err
	}
	defer h.Close()
	if !h.Intact || !h.Record.Attached {
		return false, nil
	}
	r := h.Record
	r.Labels = make(map[string]string, len(h.Record.Labels))
	maps.Copy(r.Labels, h.Record.Labels)
	if err := change(h.Record, r.Labels); err != nil || maps.Equal(r.Labels, h.Record.Labels) {
		return true, err
	}
	// Not in place: somebody might read half of it. Whoever waits for the
	// former file's lock finds it gone, and looks again.
	d, err := n.lock()
	if err != nil {
		return true, err
	}
	defer d.Close()
	now, err := n.write(r)
	if err != nil {
		return true, err
	}
	now.Close()
	return true, nil
}
