package probe

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"
)

const size = 1450

// What looks find, as judgement has it.
func well() observation   { return observation{answered: true, mtu: size, tcp: TCPWorks} }
func pinged() observation { return observation{answered: true, mtu: size} }
func silent() observation { return observation{underlay: true} }
func narrow() observation { return observation{answered: true, mtu: 1412} }
func noTCP() observation  { return observation{answered: true, mtu: size, tcp: TCPFails} }
func here() observation   { return observation{err: errHere} }

func TestVerdicts(t *testing.T) {
	for name, c := range map[string]struct {
		down bool
		seen []observation
		want Verdict
	}{
		"nothing":                              {false, nil, Unknown},
		"well":                                 {false, []observation{well()}, OK},
		"pings only":                           {false, []observation{pinged()}, OK},
		"one silent look is no alarm":          {false, []observation{well(), silent()}, OK},
		"nor is one at first":                  {false, []observation{silent()}, Unknown},
		"two are":                              {false, []observation{well(), silent(), silent()}, Unreachable},
		"one answer ends it":                   {false, []observation{silent(), silent(), pinged()}, OK},
		"two that differ are no alarm":         {false, []observation{well(), silent(), narrow()}, OK},
		"then one of them again":               {false, []observation{well(), silent(), narrow(), narrow()}, SmallMTU},
		"silent, known not to live":            {true, []observation{well(), silent()}, Down},
		"answers, although said to be down":    {true, []observation{pinged()}, OK},
		"is no longer said to be down":         {false, []observation{silent()}, Unknown},
		"large ones are lost":                  {false, []observation{narrow(), narrow()}, SmallMTU},
		"TCP fails once":                       {false, []observation{well(), noTCP()}, OK},
		"TCP fails twice":                      {false, []observation{noTCP(), noTCP()}, BrokenTCP},
		"TCP failed, and was not tried since":  {false, []observation{noTCP(), noTCP(), pinged()}, BrokenTCP},
		"TCP works again":                      {false, []observation{noTCP(), noTCP(), well()}, OK},
		"trouble of this host changes nothing": {false, []observation{silent(), silent(), here(), here()}, Unreachable},
		"and is no loss":                       {false, []observation{well(), silent(), here(), here()}, OK},
		"worse replaces bad after two looks":   {false, []observation{narrow(), narrow(), silent()}, SmallMTU},
		"then it is worse":                     {false, []observation{narrow(), narrow(), silent(), silent()}, Unreachable},
	} {
		var p path
		for _, o := range c.seen {
			p = p.after(o, size, c.down)
		}
		if got := p.show(&State{}, &Peer{}, 0).Verdict; got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func TestPlainFailsAtOnce(t *testing.T) {
	with := func(o observation, p Plain) observation { o.plain = p; return o }
	direct := func(o observation) observation { o.direct = true; return o }
	tcp := func(how TCP) observation {
		return with(observation{answered: true, mtu: size, tcp: how, direct: true}, PlainPasses)
	}
	passes := with(well(), PlainPasses)
	for name, c := range map[string]struct {
		seen []observation
		want Plain
	}{
		"passes":                      {[]observation{with(well(), PlainPasses)}, PlainPasses},
		"a failed look":               {[]observation{passes, with(direct(well()), PlainFails)}, PlainFails},
		"a loss, and nothing answers": {[]observation{passes, with(direct(silent()), PlainFails)}, PlainFails},
		"silent where it goes plain":  {[]observation{passes, direct(silent())}, PlainFails},
		"silent in the tunnel":        {[]observation{passes, silent()}, PlainPasses},
		"TCP works plainly":           {[]observation{passes, tcp(TCPWorks)}, PlainPasses},
		"TCP fails plainly":           {[]observation{passes, tcp(TCPFails)}, PlainFails},
		"TCP is filtered plainly":     {[]observation{passes, tcp(TCPFiltered)}, PlainFails},
		"TCP fails in the tunnel":     {[]observation{passes, with(noTCP(), PlainPasses)}, PlainPasses},
		"trouble of this host":        {[]observation{passes, {err: errHere, plain: PlainFails, direct: true}}, PlainPasses},
		"not tried":                   {[]observation{with(well(), PlainPasses), well()}, PlainPasses},
		"moved to another link":       {[]observation{with(well(), PlainPasses), with(well(), PlainElsewhere)}, PlainElsewhere},
	} {
		var p path
		for _, o := range c.seen {
			p = p.after(o, size, false)
		}
		if p.plain != c.want {
			t.Errorf("%s: %q, want %q", name, p.plain, c.want)
		}
	}
}

// What fails without the tunnel is not the tunnel's fault.
func TestPlainPathsDoNotBlameTheTunnel(t *testing.T) {
	s := &State{Tunnel: Tunnel{Name: "VXLAN", Protocol: 17, Ports: []uint16{8472}}}
	peer := &Peer{Name: "host2", Public: []netip.Addr{netip.MustParseAddr("192.168.77.2")}}
	first, lost, noTCP, tunnel := well(), silent(), noTCP(), well()
	first.plain = PlainPasses
	lost.direct, lost.plain = true, PlainFails
	noTCP.direct, noTCP.plain = true, PlainPasses
	for name, o := range map[string]observation{"silent": lost, "TCP fails": noTCP} {
		p := path{}.after(first, size, false)
		if !p.moved {
			t.Errorf("%s: the first look without the tunnel is not soon", name)
		}
		for range 2 * alarm {
			p = p.after(o, size, false)
		}
		const want = "host2: packets without the tunnel to 192.168.77.2 do not arrive: the tunnel is used"
		if got := p.show(s, peer, 0); got.Verdict != OK || got.Message != want || got.TCP == TCPFails {
			t.Errorf("%s: %+v", name, got)
		}
		if p = p.after(tunnel, size, false); p.show(s, peer, 0).Message != want || p.moved {
			t.Errorf("%s, in the tunnel: %+v", name, p)
		}
		if p = p.after(first, size, false); p.show(s, peer, 0).Message != "" {
			t.Errorf("%s, passes again: %+v", name, p)
		}
	}
}

func TestPlainIsHeldDown(t *testing.T) {
	type fails []time.Duration // since the start
	minutes := func(n time.Duration) time.Duration { return n * time.Minute }
	for name, c := range map[string]struct {
		fails fails
		want  time.Duration
	}{
		"never failed":              {nil, 0},
		"once":                      {fails{0}, minutes(1)},
		"twice":                     {fails{0, minutes(1)}, minutes(2)},
		"three times":               {fails{0, minutes(1), minutes(3)}, minutes(4)},
		"often":                     {fails{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, minutes(30)},
		"again after most of it":    {fails{0, minutes(59)}, minutes(2)},
		"again after more than it":  {fails{0, 1, 2, minutes(61)}, minutes(1)},
		"an hour since the last is": {fails{0, minutes(40), minutes(80)}, minutes(4)},
	} {
		start, last := time.Unix(0, 0), time.Duration(0)
		var h hold
		for _, at := range c.fails {
			h, last = h.fail(start.Add(at)), at
		}
		if h.wait != c.want {
			t.Errorf("%s: %v, want %v", name, h.wait, c.want)
		}
		if now := start.Add(last); h.on(now) != (c.want > 0) || h.on(now.Add(c.want)) {
			t.Errorf("%s: held at the start %v, at the end %v", name, h.on(now), h.on(now.Add(c.want)))
		}
	}
}

func TestMessagesNameTheThingAndTheCure(t *testing.T) {
	vxlan := Tunnel{Name: "VXLAN", Protocol: 17, Ports: []uint16{8472}}
	v4, v6 := netip.MustParseAddr("192.168.77.2"), netip.MustParseAddr("fd77::2")
	peer := &Peer{Name: "host2", Addrs: []netip.Addr{netip.MustParseAddr("10.1.2.0"), netip.MustParseAddr("fd00:1:2::")}, Public: []netip.Addr{v4, v6}, Service: Port}
	for want, c := range map[string]struct {
		s      State
		p      path
		family int
	}{
		"": {p: path{verdict: OK}},
		"host2: VXLAN packets to 192.168.77.2:8472/udp do not arrive: a firewall?": {
			s: State{Tunnel: vxlan}, p: path{verdict: Unreachable, underlay: true}},
		"host2: VXLAN packets to [fd77::2]:8472/udp do not arrive: a firewall?": {
			s: State{Tunnel: vxlan}, p: path{verdict: Unreachable, underlay: true}, family: 1},
		"host2: WireGuard packets to [fd77::2]:51821/udp do not arrive: a firewall?": {
			s: State{Tunnel: Tunnel{Name: "WireGuard", Protocol: 17, Ports: []uint16{51820, 51821}}}, p: path{verdict: Unreachable, underlay: true}, family: 1},
		"host2: GRE packets to 192.168.77.2 (IP protocol 47) do not arrive: a firewall?": {
			s: State{Tunnel: Tunnel{Name: "GRE", Protocol: 47}}, p: path{verdict: Unreachable, underlay: true}},
		"host2: packets of pods, routed by 192.168.77.2, do not arrive: a firewall?": {
			s: State{Tunnel: Tunnel{Name: "HOST-GW"}}, p: path{verdict: Unreachable, underlay: true}},
		"host2: does not answer at 192.168.77.2 on the underlay either: is the host, or the network between, down?": {
			s: State{Tunnel: vxlan}, p: path{verdict: Unreachable}},
		"host2: packets over 1412 bytes are lost: set MTU 1412 (\"MTU\":1462 in the configuration's Backend)": {
			s: State{Overhead: 50}, p: path{verdict: SmallMTU, mtu: 1412}},
		"host2: packets over 1412 bytes are lost on the underlay itself, without a tunnel: set \"MTU\":1412 in the configuration's Backend": {
			s: State{Overhead: 50}, p: path{verdict: SmallMTU, mtu: 1412, direct: true}},
		"host2: TCP fails but ping works: checksum offload of eth0; remedy: --fix-offload on both, which costs throughput": {
			s: State{Underlay: Underlay{Link: "eth0"}}, p: path{verdict: BrokenTCP}},
		"host2: TCP fails but ping works: checksum offload of its network interface; remedy: --fix-offload there, too": {
			s: State{FixOffload: true}, p: path{verdict: BrokenTCP}},
		"host2: is down: its record under hosts/ ended and it does not answer": {p: path{verdict: Down}},
		"host2: cannot be probed: operation not permitted":                     {p: path{err: errors.Join(errHere)}},
	} {
		if got := c.p.show(&c.s, peer, c.family).Message; got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestWorstPathCounts(t *testing.T) {
	r := Result{Paths: []Path{{Verdict: OK}, {Verdict: BrokenTCP}}}
	if got := r.Worst().Verdict; got != BrokenTCP {
		t.Error(got)
	}
	if got := (Result{}).Worst().Verdict; got.Bad() {
		t.Error(got)
	}
	if !(SmallMTU.Bad() && !Down.Bad() && !Unknown.Bad()) {
		t.Error("who is down needs no alarm about tunnels")
	}
}

func TestWhereNobodyAnswersTheFaultIsHere(t *testing.T) {
	vxlan := State{Tunnel: Tunnel{Name: "VXLAN", Protocol: 17, Ports: []uint16{8472}}, Underlay: Underlay{Link: "eth0"}}
	wireguard := State{Tunnel: Tunnel{Name: "WireGuard", Protocol: 17, Ports: []uint16{51820, 51821}}}
	gre := State{Tunnel: Tunnel{Name: "GRE", Protocol: 47}}
	path := func(addr string, v Verdict, underlay bool) Path {
		return Path{Addr: netip.MustParseAddr(addr), Verdict: v, Underlay: underlay}
	}
	of := func(v4, v6 Verdict) Result {
		r := Result{Paths: []Path{path("10.1.1.0", v4, true)}}
		if v6 != "" {
			r.Paths = append(r.Paths, path("fd00::1", v6, true))
		}
		return r
	}
	one := func(v Verdict) Result { return of(v, "") }
	cut := Result{Paths: []Path{path("10.1.1.0", Unreachable, false)}}
	for name, c := range map[string]struct {
		state State
		peers []Result
		alone [2]bool
		want  string
	}{
		"nobody there":            {vxlan, nil, [2]bool{}, ""},
		"one peer":                {vxlan, []Result{one(Unreachable)}, [2]bool{}, ""},
		"one of two":              {vxlan, []Result{one(Unreachable), one(OK)}, [2]bool{}, ""},
		"another in trouble":      {vxlan, []Result{one(Unreachable), one(Unreachable), one(SmallMTU)}, [2]bool{}, ""},
		"one not known yet":       {vxlan, []Result{one(Unreachable), one(Unreachable), one(Unknown)}, [2]bool{}, ""},
		"one and a dead one":      {vxlan, []Result{one(Unreachable), one(Down)}, [2]bool{}, ""},
		"both":                    {vxlan, []Result{one(Unreachable), one(Unreachable)}, [2]bool{true, false}, "no peer answers through the tunnel: does this host's own firewall drop VXLAN packets (8472/udp)?"},
		"both of those that live": {gre, []Result{one(Unreachable), one(Down), one(Unreachable)}, [2]bool{true, false}, "no peer answers through the tunnel: does this host's own firewall drop GRE packets (IP protocol 47)?"},
		"both families":           {wireguard, []Result{of(Unreachable, Unreachable), of(Unreachable, Unreachable)}, [2]bool{true, true}, "no peer answers through the tunnel: does this host's own firewall drop WireGuard packets (51820/udp, 51821/udp)?"},
		"one family":              {vxlan, []Result{of(OK, Unreachable), of(OK, Unreachable)}, [2]bool{false, true}, "no peer answers by IPv6 through the tunnel: does this host's own firewall drop VXLAN packets (8472/udp)?"},
		"on the underlay neither": {vxlan, []Result{cut, cut}, [2]bool{true, false}, "no peer answers, nor does any on the underlay: is eth0 of this host, or the network behind it, down?"},
		"without a tunnel":        {State{}, []Result{one(Unreachable), one(Unreachable)}, [2]bool{true, false}, "no peer answers: does this host's own firewall drop packets of pods?"},
	} {
		alone, got := Alone(c.state, slices.Values(c.peers))
		if alone != c.alone || got != c.want {
			t.Errorf("%s: %v %q, want %v %q", name, alone, got, c.alone, c.want)
		}
	}
}
