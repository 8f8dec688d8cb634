package subnet

// Live returns the record of the host that holds l; false if no such host
// lives (as far as the view is Fresh), or is flannel's.
func (v View) Live(l *Lease) (Host, bool) {
	if l.Identity == "" {
		return Host{}, false
	}
	h, ok := v.Hosts[l.Node]
	if !ok || h.Identity != l.Identity {
		h, ok = v.Hosts[alias(l.Node, l.Identity)]
	}
	if !ok || h.Identity != l.Identity {
		return Host{}, false
	}
	return h, true
}

// alias is the name that a host goes by where its own is another's.
func alias(name, identity string) string { return name + "-" + identity[:min(8, len(identity))] }
