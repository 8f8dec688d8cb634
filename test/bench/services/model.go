package main

import (
	"fmt"
	"net/netip"

	"github.com/flanneld/flanneld/endpoint"
	"github.com/flanneld/flanneld/service"
)

// The cluster that is measured: services of five endpoints each, on hosts that
// exist only as records, 250 to a host and each service on five of them.
const (
	copies   = 5
	perHost  = 250
	identity = "00112233445566778899aabbcc%06x"
	target   = 8080
)

func serviceNetwork() netip.Prefix { return netip.MustParsePrefix("172.20.0.0/16") }
func podNetwork() netip.Prefix     { return netip.MustParsePrefix("10.0.0.0/8") }

// foreignPods are the subnets of those hosts, and of endpoints that moved.
func foreignPods() netip.Prefix { return netip.MustParsePrefix("10.64.0.0/10") }

// hostOf is where an endpoint is, and what number it has there.
func hostOf(n, service, copy int) (host, at int) {
	i := copy*n + service
	return i / perHost, i % perHost
}

func hostName(host int) string { return fmt.Sprintf("far%04d", host) }
func hostSubnet(h int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(64 + h>>8), byte(h), 0}), 24)
}

// virtualIP is the i-th service's.
func virtualIP(i int) netip.Addr {
	i += 256
	return netip.AddrFrom4([4]byte{172, 20, byte(i >> 8), byte(i)})
}

// lastIP is the last service's, of n, whose address is the last of 256, if there
// is one: our chains of iptables are for so many each, and the way to it is the
// longest.
func lastIP(n int) netip.Addr {
	for i := n - 1; i >= 0; i-- {
		if a := virtualIP(i); a.As4()[3] == 255 {
			return a
		}
	}
	return virtualIP(n - 1)
}

// moved is an address that no endpoint had before.
func moved(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 127, byte(i >> 8), byte(i)}) }

func serviceAt(i int) *service.Service {
	app := fmt.Sprintf("app%05d", i)
	return &service.Service{Tenant: endpoint.DefaultTenant, Network: endpoint.DefaultNetwork, Name: app,
		Ports:    []service.Port{{Port: 80, Target: target, Protocol: "tcp"}},
		Selector: map[string]string{"app": app, "tier": "web"}, VirtualIPs: []netip.Addr{virtualIP(i)}}
}

// endpointAt is one of n services.
func endpointAt(n, i, copy int) *endpoint.Endpoint {
	h, at := hostOf(n, i, copy)
	a := hostSubnet(h).Addr().As4()
	a[3] = byte(2 + at)
	e := &endpoint.Endpoint{Tenant: endpoint.DefaultTenant, Network: endpoint.DefaultNetwork, Host: hostName(h), Identity: fmt.Sprintf(identity, h),
		Container: fmt.Sprintf("%012x%052x", (i*copies+copy)*7919, i), IfName: "eth0",
		Addresses: []netip.Addr{netip.AddrFrom4(a)}, MAC: fmt.Sprintf("0a:00:%02x:%02x:%02x:%02x", a[0], a[1], a[2], a[3]),
		Names: []string{fmt.Sprintf("web-%d-%d", i, copy)}, Labels: map[string]string{"app": fmt.Sprintf("app%05d", i), "tier": "web"}}
	e.ID = e.Host + "," + e.Container + "," + e.IfName
	return e
}
