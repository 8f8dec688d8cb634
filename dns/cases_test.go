package dns

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"
)

var theNames struct {
	sync.Once
	book *book
}

// names are those of every test. They are made once.
func names(t testing.TB) *book {
	t.Helper()
	theNames.Do(func() { theNames.book = makeNames(t) })
	return theNames.book
}

func makeNames(t testing.TB) *book {
	t.Helper()
	records := []string{
		"cluster.local. NS ns.dns.cluster.local.",
		"ns.dns.cluster.local. A 10.0.0.10",
		"ns.dns.cluster.local. AAAA fd00:10::a",
		"web.default.cluster.local. A 10.1.2.1",
		"web.default.cluster.local. A 10.1.3.1",
		"local web.default.cluster.local. A 10.1.1.1",
		"web.default.cluster.local. AAAA fd00:1:2::1",
		"db.default.cluster.local. A 10.1.2.2",
		"six.default.cluster.local. AAAA fd00:1:2::6",
		"a-b.default.cluster.local. A 10.1.2.9",
		"0123456789ab.default.cluster.local. A 10.1.2.1",
		`odd\.name.default.cluster.local. A 10.1.2.8`,
		strings.Repeat("x", 63) + ".default.cluster.local. A 10.1.2.7",
		deep + ". A 10.1.2.10",
		"alias.default.cluster.local. CNAME web.default.cluster.local.",
		"frontend.default.svc.cluster.local. A 10.0.0.20",
		"frontend.default.svc.cluster.local. AAAA fd00:10::14",
		"_http._tcp.frontend.default.svc.cluster.local. SRV 0 100 8888 frontend.default.svc.cluster.local.",
		"e1.peers.default.svc.cluster.local. A 10.1.1.1",
		"e2.peers.default.svc.cluster.local. A 10.1.2.1",
		"e2.peers.default.svc.cluster.local. AAAA fd00:1:2::1",
		"peers.default.svc.cluster.local. A 10.1.1.1",
		"peers.default.svc.cluster.local. A 10.1.2.1",
		"_db._tcp.peers.default.svc.cluster.local. SRV 0 50 5432 e1.peers.default.svc.cluster.local.",
		"_db._tcp.peers.default.svc.cluster.local. SRV 0 50 5432 e2.peers.default.svc.cluster.local.",
		"10-1-2-1.default.pod.cluster.local. A 10.1.2.1",
		"1.2.1.10.in-addr.arpa. PTR web.default.cluster.local.",
		"20.0.0.10.in-addr.arpa. PTR frontend.default.svc.cluster.local.",
		"9.2.1.10.in-addr.arpa. PTR one.default.cluster.local.",
		"9.2.1.10.in-addr.arpa. PTR two.default.cluster.local.",
		"1.0.0.0." + strings.Repeat("0.", 16) + "2.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa. PTR web.default.cluster.local.",
	}
	for i := range 60 { // more than 512 octets, less than 1232
		records = append(records, fmt.Sprintf("sixty.default.cluster.local. A 10.2.0.%d", i))
	}
	for i := range 200 { // more than 1232
		records = append(records, fmt.Sprintf("many.default.cluster.local. A 10.3.0.%d", i))
	}
	for i := range 5000 { // more than 65535
		records = append(records, fmt.Sprintf("all.default.cluster.local. A 10.4.%d.%d", i/250, i%250))
	}
	for i := range 20 { // the addresses do not fit beside them
		target := fmt.Sprintf("t%d.wide.default.svc.cluster.local.", i)
		records = append(records, target+" A 10.5.0."+strconv.Itoa(i), "_w._udp.wide.default.svc.cluster.local. SRV 0 1 53 "+target)
	}
	return newBook(t, []string{"cluster.local.", "1.10.in-addr.arpa.", "0.0.10.in-addr.arpa.", "1.0.0.0.0.0.d.f.ip6.arpa."}, records...)
}

// deep is as long as a name can be: 255 octets.
var deep = strings.Repeat("d.", 110) + "abcdefgh.default.cluster.local"

// Parts of answers that come again and again.
const (
	soa     = "\n! cluster.local. SOA ns.dns.cluster.local. hostmaster.cluster.local. 7 7200 1800 86400 5"
	web     = "\n= web.default.cluster.local. A 10.1.1.1\n= web.default.cluster.local. A 10.1.2.1\n= web.default.cluster.local. A 10.1.3.1"
	opt     = "\nopt 1232"
	optDO   = "\nopt 1232 do"
	nodata  = "NOERROR aa" + soa
	nothing = "NXDOMAIN aa" + soa
)

// exchanges are questions, "NAME TYPE option…", and what is answered, over UDP
// and TCP alike.
//
// Options: edns=SIZE, do, v=VERSION, cd, ad, norec, class=CLASS,
// opcode=OPCODE, udp, tcp (only). Answers: the code; aa, tc; nora if recursion
// is not available; then lines: = answer, ! authority, + additional, opt.
var exchanges = map[string]struct{ ask, want string }{
	"a container by its name":                     {"db.default.cluster.local. A", "NOERROR aa\n= db.default.cluster.local. A 10.1.2.2"},
	"all addresses of a name":                     {"web.default.cluster.local. A", "NOERROR aa" + web},
	"AAAA of a name with both families":           {"web.default.cluster.local. AAAA", "NOERROR aa\n= web.default.cluster.local. AAAA fd00:1:2::1"},
	"AAAA of a name with IPv4 only":               {"db.default.cluster.local. AAAA", nodata},
	"A of a name with IPv6 only":                  {"six.default.cluster.local. A", nodata},
	"AAAA of a name with IPv6 only":               {"six.default.cluster.local. AAAA", "NOERROR aa\n= six.default.cluster.local. AAAA fd00:1:2::6"},
	"a name that does not exist":                  {"nobody.default.cluster.local. A", nothing},
	"AAAA of a name that does not exist":          {"nobody.default.cluster.local. AAAA", nothing},
	"SRV of a name that does not exist":           {"_x._tcp.nobody.default.svc.cluster.local. SRV", nothing},
	"below a name that does not exist":            {"a.b.nobody.default.cluster.local. A", nothing},
	"below a name that exists":                    {"a.web.default.cluster.local. A", nothing},
	"an empty non-terminal":                       {"default.cluster.local. A", nodata},
	"an empty non-terminal, AAAA":                 {"svc.cluster.local. AAAA", nodata},
	"an empty non-terminal of SRV":                {"_tcp.frontend.default.svc.cluster.local. SRV", nodata},
	"an empty non-terminal, deep":                 {"d.abcdefgh.default.cluster.local. A", nodata},
	"the apex":                                    {"cluster.local. A", nodata},
	"the apex, SOA":                               {"cluster.local. SOA", "NOERROR aa\n= " + strings.TrimPrefix(soa, "\n! ")},
	"the apex, NS":                                {"cluster.local. NS", "NOERROR aa\n= cluster.local. NS ns.dns.cluster.local."},
	"the apex, AAAA":                              {"cluster.local. AAAA", nodata},
	"the apex, in capitals":                       {"CLUSTER.LOCAL. MX", nodata},
	"above the apex":                              {"local. A norec", "REFUSED"},
	"the root":                                    {". NS norec", "REFUSED"},
	"beside the apex":                             {"xcluster.local. A", "NXDOMAIN"},
	"the nameserver":                              {"ns.dns.cluster.local. A", "NOERROR aa\n= ns.dns.cluster.local. A 10.0.0.10"},
	"the nameserver, AAAA":                        {"ns.dns.cluster.local. AAAA", "NOERROR aa\n= ns.dns.cluster.local. AAAA fd00:10::a"},
	"SOA of a name":                               {"web.default.cluster.local. SOA", nodata},
	"NS of a name":                                {"web.default.cluster.local. NS", nodata},
	"MX of a name":                                {"web.default.cluster.local. MX", nodata},
	"TXT of a name":                               {"web.default.cluster.local. TXT", nodata},
	"HTTPS of a name":                             {"web.default.cluster.local. HTTPS", nodata},
	"SVCB of a name":                              {"web.default.cluster.local. SVCB", nodata},
	"DS of a name":                                {"web.default.cluster.local. DS", nodata},
	"DNSKEY of the apex":                          {"cluster.local. DNSKEY", nodata},
	"NAPTR of a name":                             {"web.default.cluster.local. NAPTR", nodata},
	"CNAME of a name that is none":                {"web.default.cluster.local. CNAME", nodata},
	"a private type":                              {"web.default.cluster.local. TYPE65280", nodata},
	"a type nobody knows":                         {"nobody.default.cluster.local. TYPE4711", nothing},
	"the last type":                               {"web.default.cluster.local. TYPE65535", nodata},
	"type 0":                                      {"web.default.cluster.local. TYPE0", "FORMERR"},
	"type OPT":                                    {"web.default.cluster.local. OPT", "FORMERR"},
	"type OPT with OPT":                           {"web.default.cluster.local. OPT edns=1232", "FORMERR" + opt},
	"an alias":                                    {"alias.default.cluster.local. CNAME", "NOERROR aa\n= alias.default.cluster.local. CNAME web.default.cluster.local."},
	"a short name":                                {"web. A", "NXDOMAIN"},
	"capitals":                                    {"WEB.DEFAULT.CLUSTER.LOCAL. A", "NOERROR aa" + web},
	"mixed case":                                  {"wEb.deFAult.CLuster.locaL. A", "NOERROR aa" + web},
	"mixed case of what does not exist":           {"nOBody.default.Cluster.LOCAL. A", nothing},
	"mixed case of no data":                       {"dB.default.Cluster.LOCAL. AAAA", nodata},
	"mixed case of a service":                     {"FrontEnd.Default.SVC.cluster.local. A", "NOERROR aa\n= frontend.default.svc.cluster.local. A 10.0.0.20"},
	"mixed case outside":                          {"CacheD.eXample. A", "NOERROR\n= cached.example. A 192.0.2.1"},
	"a hyphen":                                    {"a-b.default.cluster.local. A", "NOERROR aa\n= a-b.default.cluster.local. A 10.1.2.9"},
	"a container by its id":                       {"0123456789ab.default.cluster.local. A", "NOERROR aa\n= 0123456789ab.default.cluster.local. A 10.1.2.1"},
	"a dot within a label":                        {`odd\.name.default.cluster.local. A`, `NOERROR aa` + "\n" + `= odd\.name.default.cluster.local. A 10.1.2.8`},
	"a dot within a label is not one between":     {"odd.name.default.cluster.local. A", nothing},
	"a zero within a label":                       {`we\000b.default.cluster.local. A`, nothing},
	"octets above 127":                            {`w\195\164b.default.cluster.local. A`, nothing},
	"at-signs and brackets are no letters":        {`\@\[\].default.cluster.local. A`, nothing},
	"a wildcard is a name":                        {"*.default.cluster.local. A", nothing},
	"a label of 63":                               {strings.Repeat("X", 63) + ".default.cluster.local. A", "NOERROR aa\n= " + strings.Repeat("x", 63) + ".default.cluster.local. A 10.1.2.7"},
	"a name of 255":                               {deep + ". A", "NOERROR aa\n= " + deep + ". A 10.1.2.10"},
	"a name of 255 that does not exist":           {"e" + deep[1:] + ". A", nothing},
	"a service":                                   {"frontend.default.svc.cluster.local. A", "NOERROR aa\n= frontend.default.svc.cluster.local. A 10.0.0.20"},
	"a service, AAAA":                             {"frontend.default.svc.cluster.local. AAAA", "NOERROR aa\n= frontend.default.svc.cluster.local. AAAA fd00:10::14"},
	"a service that is none":                      {"nobody.default.svc.cluster.local. A", nothing},
	"a headless service":                          {"peers.default.svc.cluster.local. A", "NOERROR aa\n= peers.default.svc.cluster.local. A 10.1.1.1\n= peers.default.svc.cluster.local. A 10.1.2.1"},
	"a headless service, no data":                 {"peers.default.svc.cluster.local. AAAA", nodata},
	"a service's port":                            {"_http._tcp.frontend.default.svc.cluster.local. SRV", "NOERROR aa\n= _http._tcp.frontend.default.svc.cluster.local. SRV 0 100 8888 frontend.default.svc.cluster.local.\n+ frontend.default.svc.cluster.local. A 10.0.0.20\n+ frontend.default.svc.cluster.local. AAAA fd00:10::14"},
	"a service's port with OPT":                   {"_HTTP._tcp.frontend.default.svc.cluster.local. SRV edns=4096", "NOERROR aa\n= _http._tcp.frontend.default.svc.cluster.local. SRV 0 100 8888 frontend.default.svc.cluster.local.\n+ frontend.default.svc.cluster.local. A 10.0.0.20\n+ frontend.default.svc.cluster.local. AAAA fd00:10::14" + opt},
	"a headless service's port":                   {"_db._tcp.peers.default.svc.cluster.local. SRV", "NOERROR aa\n= _db._tcp.peers.default.svc.cluster.local. SRV 0 50 5432 e1.peers.default.svc.cluster.local.\n= _db._tcp.peers.default.svc.cluster.local. SRV 0 50 5432 e2.peers.default.svc.cluster.local.\n+ e1.peers.default.svc.cluster.local. A 10.1.1.1\n+ e2.peers.default.svc.cluster.local. A 10.1.2.1\n+ e2.peers.default.svc.cluster.local. AAAA fd00:1:2::1"},
	"a port of the other protocol":                {"_http._udp.frontend.default.svc.cluster.local. SRV", nothing},
	"a service's port, A":                         {"_http._tcp.frontend.default.svc.cluster.local. A", nodata},
	"a pod by its address":                        {"10-1-2-1.default.pod.cluster.local. A", "NOERROR aa\n= 10-1-2-1.default.pod.cluster.local. A 10.1.2.1"},
	"a pod that is none":                          {"10-1-2-99.default.pod.cluster.local. A", nothing},
	"a container's address":                       {"1.2.1.10.in-addr.arpa. PTR", "NOERROR aa\n= 1.2.1.10.in-addr.arpa. PTR web.default.cluster.local."},
	"an address of two names":                     {"9.2.1.10.in-addr.arpa. PTR", "NOERROR aa\n= 9.2.1.10.in-addr.arpa. PTR one.default.cluster.local.\n= 9.2.1.10.in-addr.arpa. PTR two.default.cluster.local."},
	"a service's address":                         {"20.0.0.10.IN-ADDR.arpa. PTR", "NOERROR aa\n= 20.0.0.10.in-addr.arpa. PTR frontend.default.svc.cluster.local."},
	"an address of ours without a name":           {"77.2.1.10.in-addr.arpa. PTR", "NXDOMAIN aa" + reverseSOA("1.10.in-addr.arpa.")},
	"an address of ours, A":                       {"1.2.1.10.in-addr.arpa. A", "NOERROR aa" + reverseSOA("1.10.in-addr.arpa.")},
	"a part of an address of ours":                {"2.1.10.in-addr.arpa. PTR", "NOERROR aa" + reverseSOA("1.10.in-addr.arpa.")},
	"the apex of a reverse zone":                  {"1.10.in-addr.arpa. PTR", "NOERROR aa" + reverseSOA("1.10.in-addr.arpa.")},
	"the apex of a reverse zone, SOA":             {"1.10.in-addr.arpa. SOA", "NOERROR aa\n= " + strings.TrimPrefix(reverseSOA("1.10.in-addr.arpa."), "\n! ")},
	"an IPv6 address":                             {"1.0.0.0." + strings.Repeat("0.", 16) + "2.0.0.0.1.0.0.0.0.0.D.F.ip6.arpa. PTR", "NOERROR aa\n= 1.0.0.0." + strings.Repeat("0.", 16) + "2.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa. PTR web.default.cluster.local."},
	"an IPv6 address without a name":              {"2.0.0.0." + strings.Repeat("0.", 16) + "2.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa. PTR", "NXDOMAIN aa" + reverseSOA("1.0.0.0.0.0.d.f.ip6.arpa.")},
	"an address elsewhere":                        {"1.1.168.192.in-addr.arpa. PTR", "NXDOMAIN"},
	"ANY of a name":                               {"web.default.cluster.local. ANY", "NOERROR aa\n= web.default.cluster.local. HINFO \"RFC8482\" \"\""},
	"ANY of the apex":                             {"cluster.local. ANY", "NOERROR aa\n= cluster.local. HINFO \"RFC8482\" \"\""},
	"ANY of an empty non-terminal":                {"svc.cluster.local. ANY", "NOERROR aa\n= svc.cluster.local. HINFO \"RFC8482\" \"\""},
	"ANY of a name that does not exist":           {"nobody.default.cluster.local. ANY", nothing},
	"HINFO of a name":                             {"web.default.cluster.local. HINFO", nodata},
	"AXFR":                                        {"cluster.local. AXFR", "REFUSED"},
	"AXFR with OPT":                               {"cluster.local. AXFR edns=1232", "REFUSED" + opt},
	"IXFR":                                        {"cluster.local. IXFR", "REFUSED"},
	"MAILB":                                       {"cluster.local. MAILB", "REFUSED"},
	"TKEY":                                        {"cluster.local. TKEY", "REFUSED"},
	"AXFR of what is outside":                     {"example. AXFR", "REFUSED"},
	"version.bind":                                {"version.bind. TXT class=CH", "REFUSED"},
	"hostname.bind with OPT":                      {"hostname.bind. TXT class=CH edns=1232 do", "REFUSED" + optDO},
	"class Hesiod":                                {"web.default.cluster.local. A class=HS", "REFUSED"},
	"class ANY":                                   {"web.default.cluster.local. A class=ANY", "REFUSED"},
	"class NONE":                                  {"web.default.cluster.local. A class=NONE", "REFUSED"},
	"class 0":                                     {"web.default.cluster.local. A class=0", "REFUSED"},
	"STATUS":                                      {"cluster.local. SOA opcode=2", "NOTIMP"},
	"IQUERY":                                      {"cluster.local. A opcode=1", "NOTIMP"},
	"NOTIFY":                                      {"cluster.local. SOA opcode=4", "NOTIMP"},
	"UPDATE":                                      {"cluster.local. SOA opcode=5", "NOTIMP"},
	"DSO":                                         {"cluster.local. SOA opcode=6", "NOTIMP"},
	"an opcode nobody knows":                      {"cluster.local. SOA opcode=15", "NOTIMP"},
	"NOTIFY with OPT":                             {"cluster.local. SOA opcode=4 edns=1232", "NOTIMP" + opt},
	"NOTIFY with another version of EDNS":         {"cluster.local. SOA opcode=4 edns=1232 v=1", "NOTIMP" + opt},
	"recursion not desired":                       {"web.default.cluster.local. A norec", "NOERROR aa" + web},
	"recursion not desired, nothing there":        {"nobody.default.cluster.local. A norec", nothing},
	"recursion not desired, outside":              {"slow.example. A norec", "REFUSED"},
	"recursion not desired, what others asked":    {"cached.example. A norec", "REFUSED"},
	"checking disabled":                           {"db.default.cluster.local. A cd", "NOERROR aa cd\n= db.default.cluster.local. A 10.1.2.2"},
	"authentic data wished":                       {"db.default.cluster.local. A ad", "NOERROR aa\n= db.default.cluster.local. A 10.1.2.2"},
	"OPT":                                         {"db.default.cluster.local. A edns=1232", "NOERROR aa\n= db.default.cluster.local. A 10.1.2.2" + opt},
	"OPT of size 0":                               {"db.default.cluster.local. A edns=0", "NOERROR aa\n= db.default.cluster.local. A 10.1.2.2" + opt},
	"OPT of the largest size":                     {"db.default.cluster.local. A edns=65535", "NOERROR aa\n= db.default.cluster.local. A 10.1.2.2" + opt},
	"OPT with DNSSEC":                             {"db.default.cluster.local. A edns=1232 do", "NOERROR aa\n= db.default.cluster.local. A 10.1.2.2" + optDO},
	"OPT where nothing exists":                    {"nobody.default.cluster.local. A edns=1232", nothing + opt},
	"OPT where there is no data":                  {"db.default.cluster.local. AAAA edns=4096 do", nodata + optDO},
	"OPT with an option":                          {"db.default.cluster.local. A edns=1232 option", "NOERROR aa\n= db.default.cluster.local. A 10.1.2.2" + opt},
	"version 1 of EDNS":                           {"db.default.cluster.local. A edns=1232 v=1", "BADVERS" + opt},
	"version 255 of EDNS":                         {"db.default.cluster.local. A edns=512 v=255 do", "BADVERS" + optDO},
	"version 1 of EDNS, outside":                  {"cached.example. A edns=1232 v=1", "BADVERS" + opt},
	"60 addresses do not fit":                     {"sixty.default.cluster.local. A udp", "NOERROR aa tc"},
	"60 addresses fit with EDNS":                  {"sixty.default.cluster.local. A edns=1232", "NOERROR aa" + addresses("sixty", "10.2", 60) + opt},
	"60 addresses fit with more":                  {"sixty.default.cluster.local. A edns=4096", "NOERROR aa" + addresses("sixty", "10.2", 60) + opt},
	"60 addresses do not fit with EDNS of 512":    {"sixty.default.cluster.local. A edns=512 udp", "NOERROR aa tc" + opt},
	"60 addresses do not fit with EDNS of 100":    {"sixty.default.cluster.local. A edns=100 udp", "NOERROR aa tc" + opt},
	"60 addresses over TCP":                       {"sixty.default.cluster.local. A tcp", "NOERROR aa" + addresses("sixty", "10.2", 60)},
	"200 addresses do not fit":                    {"many.default.cluster.local. A edns=65535 udp", "NOERROR aa tc" + opt},
	"200 addresses over TCP":                      {"many.default.cluster.local. A tcp", "NOERROR aa" + addresses("many", "10.3", 200)},
	"200 addresses over TCP, whatever EDNS says":  {"many.default.cluster.local. A edns=512 tcp", "NOERROR aa" + addresses("many", "10.3", 200) + opt},
	"5,000 addresses fit nowhere":                 {"all.default.cluster.local. A udp", "NOERROR aa tc"},
	"5,000 addresses, as many as fit":             {"all.default.cluster.local. A tcp", "NOERROR aa tc" + someAnswer},
	"targets' addresses that do not fit are left": {"_w._udp.wide.default.svc.cluster.local. SRV edns=1232 udp", "NOERROR aa" + targets(20) + someExtra + opt},
	"outside, known":                              {"cached.example. A", "NOERROR\n= cached.example. A 192.0.2.1"},
	"outside, known, with OPT":                    {"cached.example. A edns=1232 do", "NOERROR\n= cached.example. A 192.0.2.1" + optDO},
	"outside, to be asked for":                    {"slow.example. A", "NOERROR\n= slow.example. A 192.0.2.1"},
	"outside, to be asked for, with OPT":          {"slow.example. AAAA edns=1232", "NOERROR\n= slow.example. A 192.0.2.1" + opt},
	"outside, does not exist":                     {"nobody.example. A", "NXDOMAIN"},
	"outside, ANY":                                {"nobody.example. ANY", "NXDOMAIN"},
	"outside, does not fit":                       {"many.example. A udp", "NOERROR tc" + someAnswer},
	"outside, over TCP":                           {"many.example. A tcp", "NOERROR" + outsideAddresses(80)},
	"outside, checking disabled":                  {"cached.example. A cd", "NOERROR cd\n= cached.example. A 192.0.2.1"},
}

const (
	someExtra  = "\n+ …" // the additional section is not compared
	someAnswer = "\n= …"
)

func reverseSOA(apex string) string { return strings.Replace(soa, "cluster.local.", apex, 1) }

func addresses(name, begin string, n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "\n= %s.default.cluster.local. A %s.0.%d", name, begin, i)
	}
	return b.String()
}

func outsideAddresses(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "\n= many.example. A 192.0.2.%d", 1+i)
	}
	return b.String()
}

func targets(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "\n= _w._udp.wide.default.svc.cluster.local. SRV 0 1 53 t%d.wide.default.svc.cluster.local.", i)
	}
	return b.String()
}

func TestExchanges(t *testing.T) {
	at := serveBook(t, Options{Forward: &outsiders{}})
	for name, c := range exchanges {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			msg, only := question(t, c.ask)
			if only != "tcp" {
				exchange(t, "udp", at, msg, c.want)
			}
			if only != "udp" {
				exchange(t, "tcp", at, msg, c.want)
			}
		})
	}
}

// question makes a message of its description.
func question(t *testing.T, text string) (msg []byte, only string) {
	t.Helper()
	words := strings.Fields(text)
	kind, ok := dns.StringToType[words[1]]
	if !ok {
		n, err := strconv.ParseUint(strings.TrimPrefix(words[1], "TYPE"), 10, 16)
		if err != nil {
			t.Fatal(err)
		}
		kind = uint16(n)
	}
	m := ask(words[0], kind)
	for _, w := range words[2:] {
		key, value, _ := strings.Cut(w, "=")
		n, _ := strconv.Atoi(value)
		switch key {
		case "edns":
			m.SetEdns0(uint16(n), false)
		case "do":
			m.IsEdns0().SetDo()
		case "v":
			m.IsEdns0().SetVersion(uint8(n))
		case "option":
			m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_NSID{Code: dns.EDNS0NSID}, &dns.EDNS0_LOCAL{Code: 65001, Data: []byte("x")})
		case "cd":
			m.CheckingDisabled = true
		case "ad":
			m.AuthenticatedData = true
		case "norec":
			m.RecursionDesired = false
		case "class":
			m.Question[0].Qclass = max(dns.StringToClass[value], uint16(n))
		case "opcode":
			m.Opcode = n
		case "udp", "tcp":
			only = key
		default:
			t.Fatalf("option %q", w)
		}
	}
	return pack(t, m), only
}

// exchange asks and compares, and checks what holds for every answer.
func exchange(t *testing.T, proto string, at netip.AddrPort, msg []byte, want string) {
	t.Helper()
	send := askUDP
	if proto == "tcp" {
		send = askTCP
	}
	b, err := send(at, msg)
	if err != nil {
		t.Fatalf("%s: %v", proto, err)
	}
	reply := check(t, msg, b, proto == "tcp")
	for _, some := range []string{someAnswer, someExtra} {
		if strings.Contains(want, some) {
			want = strings.Replace(want, some, "", 1)
			if some == someAnswer {
				reply.Answer = nil
			} else {
				reply.Extra = slices.DeleteFunc(reply.Extra, func(rr dns.RR) bool { return rr.Header().Rrtype != dns.TypeOPT })
			}
		}
	}
	if got := render(reply); got != sorted(want) {
		t.Errorf("%s:\n%s\nwant\n%s", proto, got, sorted(want))
	}
}

// check is what holds for every answer to a query that could be read.
func check(t testing.TB, msg, b []byte, tcp bool) *dns.Msg {
	t.Helper()
	reply, err := unpack(b)
	if err != nil {
		t.Fatalf("%v in %x", err, b)
	}
	var q dns.Msg
	if err := q.Unpack(msg); err != nil {
		t.Fatal(err)
	}
	limit := 512
	o := q.IsEdns0()
	if o != nil {
		limit = min(max(512, int(o.UDPSize())), 1232)
	}
	if len(b) > limit && !tcp {
		t.Errorf("%d octets, at most %d are wanted", len(b), limit)
	}
	end := 12
	for msg[end] != 0 {
		end += 1 + int(msg[end])
	}
	end += 5
	if reply.Id != q.Id || !reply.Response || reply.Opcode != q.Opcode || reply.RecursionDesired != q.RecursionDesired || !bytes.Equal(b[12:end], msg[12:end]) {
		t.Errorf("answer %v to %v", reply, &q)
	}
	switch r := reply.IsEdns0(); {
	case (r != nil) != (o != nil):
		t.Errorf("OPT in the query %v, in the answer %v", o, r)
	case r != nil && (r.Version() != 0 || r.Do() != o.Do() || len(r.Option) > 0):
		t.Errorf("OPT in the query %v, in the answer %v", o, r)
	}
	seen := map[string]bool{}
	for _, rr := range slices.Concat(reply.Answer, reply.Ns, reply.Extra) {
		if seen[rr.String()] {
			t.Errorf("twice: %v", rr)
		}
		seen[rr.String()] = true
		if reply.Authoritative && rr.Header().Rrtype != dns.TypeOPT && rr.Header().Ttl != bookTTL {
			t.Errorf("TTL of %v, want %d", rr, bookTTL)
		}
	}
	return reply
}

// render writes an answer as exchanges do, names in lower case.
func render(m *dns.Msg) string {
	lines := []string{}
	head := dns.RcodeToString[m.Rcode]
	if m.Rcode == dns.RcodeBadVers {
		head = "BADVERS"
	}
	for _, f := range []struct {
		on   bool
		name string
	}{{m.Authoritative, "aa"}, {m.Truncated, "tc"}, {!m.RecursionAvailable, "nora"}, {m.CheckingDisabled, "cd"}, {m.AuthenticatedData, "ad"}} {
		if f.on {
			head += " " + f.name
		}
	}
	section := func(mark string, rrs []dns.RR) {
		for _, rr := range rrs {
			if o, ok := rr.(*dns.OPT); ok {
				line := fmt.Sprintf("opt %d", o.UDPSize())
				if o.Do() {
					line += " do"
				}
				lines = append(lines, line)
				continue
			}
			h := rr.Header()
			data := strings.TrimPrefix(rr.String(), h.String())
			lines = append(lines, strings.Join([]string{mark, strings.ToLower(h.Name), dns.TypeToString[h.Rrtype], lowerNames(data)}, " "))
		}
	}
	section("=", m.Answer)
	section("!", m.Ns)
	section("+", m.Extra)
	return sorted(strings.Join(append([]string{head}, lines...), "\n"))
}

// lowerNames: what was compressed is spelled as the question is.
func lowerNames(data string) string {
	if strings.HasPrefix(data, `"`) {
		return data
	}
	return strings.ToLower(data)
}

func sorted(text string) string {
	lines := strings.Split(text, "\n")
	slices.Sort(lines[1:])
	return strings.Join(lines, "\n")
}
