package vipguard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// serveReply answers every connection with its addresses and ingress interface.
func serveReply(t *testing.T, ln net.Listener) {
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(conn, "%v from %v by interface %d\n", conn.LocalAddr(), conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap(), ingress(conn))
			conn.Close()
		}
	}()
}

// ingress is the interface that a connection came in by, 0 if it is not known.
func ingress(c net.Conn) int {
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return 0
	}
	level, name := unix.IPPROTO_IP, unix.IP_PKTOPTIONS
	if c.LocalAddr().(*net.TCPAddr).IP.To4() == nil {
		level, name = unix.IPPROTO_IPV6, unix.IPV6_2292PKTOPTIONS
	}
	index := 0
	raw.Control(func(fd uintptr) {
		buf := make([]byte, 256)
		size := uint32(len(buf))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, uintptr(level), uintptr(name),
			uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&size)), 0)
		if errno != 0 {
			return
		}
		cmsgs, _ := unix.ParseSocketControlMessage(buf[:size])
		for _, m := range cmsgs {
			switch {
			case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO:
				index = int((*unix.Inet4Pktinfo)(unsafe.Pointer(&m.Data[0])).Ifindex)
			case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO:
				index = int((*unix.Inet6Pktinfo)(unsafe.Pointer(&m.Data[0])).Ifindex)
			}
		}
	})
	return index
}

func refused(err error) bool { return errors.Is(err, unix.ECONNREFUSED) }

func TestOnlyMirrorPortsAnswerOnVIPs(t *testing.T) {
	g := startGuard(t, Options{}, nil)
	l, _ := startAgent(t, g.opts.PodDir)
	for _, ln := range l.All() {
		serveReply(t, ln)
	}
	l.Ready()
	daemon, err := net.Listen("tcp", ":9100")
	if err != nil {
		t.Fatal(err)
	}
	serveReply(t, daemon)
	p := startPod(t)

	cases := map[string]struct {
		why  string
		addr netip.Addr
		port int
		pod  string // what the pod sees
		node bool   // whether a process of the node gets through
	}{
		"vip": {
			why:  "the accepted socket must tell the mirror and the caller",
			addr: aVIP4, port: 4200, node: true,
			pod: fmt.Sprintf("%v:4200 from %v by interface %d", aVIP4, podIP4, p.iface),
		},
		"vip, last port": {
			why:  "the range of ports has two ends",
			addr: aVIP4, port: 4231, node: true,
			pod: fmt.Sprintf("%v:4231 from %v by interface %d", aVIP4, podIP4, p.iface),
		},
		"vip6": {
			why:  "IPv6 takes other options, routes and offsets",
			addr: aVIP6, port: 4203, node: true,
			pod: fmt.Sprintf("[%v]:4203 from %v by interface %d", aVIP6, podIP6, p.iface),
		},
		"hop":                 {why: "gateways come to the node's own address", addr: nodeIP, port: 4144, node: true, pod: fmt.Sprintf("%v:4144 from %v by interface %d", nodeIP, podIP4, p.iface)},
		"hop on a VIP":        {why: "the hop listener is bound to one address", addr: aVIP4, port: 4144, pod: "refused"},
		"no listener":         {why: "a closed port must not hang", addr: aVIP4, port: 9999, pod: "refused"},
		"before the ports":    {why: "the range of ports has two ends", addr: aVIP4, port: 4199, pod: "refused"},
		"after the ports":     {why: "the range of ports has two ends", addr: aVIP4, port: 4232, pod: "refused"},
		"daemon on a VIP":     {why: "a VIP must not open the node's daemons", addr: aVIP4, port: 9100, pod: "refused"},
		"daemon on a VIP6":    {why: "a VIP must not open the node's daemons", addr: aVIP6, port: 9100, pod: "refused"},
		"daemon on the node":  {why: "the daemon does answer elsewhere, or the case above proves nothing", addr: nodeIP, port: 9100, node: true, pod: fmt.Sprintf("%v:9100 from %v by interface 0", nodeIP, podIP4)},
		"mirror port on node": {why: "wildcard listeners must answer on VIPs alone", addr: nodeIP, port: 4200, pod: "refused"},
		"mirror port on host": {why: "wildcard listeners must answer on VIPs alone", addr: hostIP6, port: 4200, pod: "refused"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			got := p.dial("tcp", tc.addr, tc.port)
			if strings.Contains(got, "connection refused") {
				got = "refused"
			}
			if diff := cmp.Diff(tc.pod, got); diff != "" {
				t.Errorf("%s: from a pod (-want +got):\n%s", tc.why, diff)
			}
			_, err := dial(t, tc.addr, tc.port)
			if tc.node != (err == nil) || (err != nil && !refused(err)) {
				t.Errorf("%s: from the node: %v", tc.why, err)
			}
		})
	}
	for _, addr := range []netip.Addr{aVIP4, aVIP6} {
		conn, err := net.Dial("udp", netip.AddrPortFrom(addr, 53).String())
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(5 * time.Second))
		conn.Write([]byte("?"))
		if _, err := conn.Read(make([]byte, 1)); !refused(err) {
			t.Errorf("UDP to %v from the node: %v, want it refused", addr, err)
		}
		conn.Close()
		if got := p.dial("udp", addr, 53); !strings.Contains(got, "connection refused") {
			t.Errorf("UDP to %v from a pod: %v, want it refused", addr, got)
		}
	}
	if err := Ready(g.opts.PodDir); err != nil {
		t.Errorf("all stands, but %v", err)
	}
	if packets := refusals(t); packets == 0 {
		t.Error("the rules' counters count nothing")
	}
}

// refusals adds up the packets that reject rules have counted.
func refusals(t *testing.T) uint64 {
	t.Helper()
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	rules, err := conn.GetRules(nftTable(), &nftables.Chain{Name: chainName})
	if err != nil {
		t.Fatal(err)
	}
	var total uint64
	for _, r := range rules {
		var packets uint64
		for _, e := range r.Exprs {
			switch e := e.(type) {
			case *expr.Counter:
				packets = e.Packets
			case *expr.Reject:
				total += packets
			}
		}
	}
	return total
}

func TestRepair(t *testing.T) {
	nft := func(do func(*nftables.Conn)) func() error {
		return func() error {
			conn, err := nftables.New()
			if err != nil {
				return err
			}
			do(conn)
			return conn.Flush()
		}
	}
	drop := nftables.ChainPolicyDrop
	cases := map[string]struct {
		why    string
		damage func() error
		repair Change
	}{
		"local route": {
			why:    "without it callers are cut off",
			damage: func() error { return netlink.RouteDel(route(Change{Part: PartLocal, CIDR: vip4})) },
			repair: Change{Part: PartLocal, CIDR: vip4},
		},
		"local route, IPv6": {
			why:    "its events come in another group",
			damage: func() error { return netlink.RouteDel(route(Change{Part: PartLocal, CIDR: vip6})) },
			repair: Change{Part: PartLocal, CIDR: vip6},
		},
		"unreachable route": {
			why:    "it is all that keeps plaintext on the node when the local route goes",
			damage: func() error { return netlink.RouteDel(route(Change{Part: PartUnreachable, CIDR: vip4})) },
			repair: Change{Part: PartUnreachable, CIDR: vip4},
		},
		"lo down": {
			why: "it takes the IPv6 routes along",
			damage: func() error {
				lo, err := netlink.LinkByIndex(loopback)
				return errors.Join(err, netlink.LinkSetDown(lo), netlink.LinkSetUp(lo))
			},
			repair: Change{Part: PartLocal, CIDR: vip6},
		},
		"table": {
			why:    "reloading the host's firewall flushes every table",
			damage: nft(func(c *nftables.Conn) { c.FlushRuleset() }),
			repair: Change{Part: PartRuleset},
		},
		"rules": {
			why:    "a chain without rules guards nothing",
			damage: nft(func(c *nftables.Conn) { c.FlushTable(nftTable()) }),
			repair: Change{Part: PartRuleset},
		},
		"policy": {
			why: "a policy of drop cuts the node off",
			damage: nft(func(c *nftables.Conn) {
				c.AddChain(&nftables.Chain{
					Name: chainName, Table: nftTable(), Type: nftables.ChainTypeFilter,
					Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter, Policy: &drop,
				})
			}),
			repair: Change{Part: PartRuleset},
		},
	}
	k := newCountingKernel(vip4, vip6)
	g := startGuard(t, Options{}, k)
	startAgent(t, g.opts.PodDir) // waits for the guard
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			for len(k.writes) > 0 {
				<-k.writes // of before: what is awaited must be the mending
			}
			if err := tc.damage(); err != nil {
				t.Fatal(err)
			}
			t.Log(tc.why)
			await(t, k.writes, tc.repair)
		})
	}
}

func TestReconcileWritesOnlyChanges(t *testing.T) {
	first := newCountingKernel(vip4, vip6)
	g := startGuard(t, Options{}, first)
	_, stop := startAgent(t, g.opts.PodDir)
	if got := len(first.writes); got != 5 {
		t.Errorf("the first guard wrote %d times, want 5: two routes for each range and the table", got)
	}
	stop()
	g.stop()
	second := newCountingKernel(vip4, vip6)
	again := startGuard(t, Options{}, second)
	startAgent(t, again.opts.PodDir)
	if err := Ready(again.opts.PodDir); err != nil {
		t.Error(err)
	}
	if got := len(second.writes); got != 0 {
		t.Errorf("the second guard wrote %d times, first %v", got, <-second.writes)
	}
}

func TestUnreachableRouteOutlivesGuard(t *testing.T) {
	g := startGuard(t, Options{}, nil)
	_, stop := startAgent(t, g.opts.PodDir)
	stop()
	g.stop()
	for _, c := range []netip.Prefix{vip4, vip6} {
		if err := netlink.RouteDel(route(Change{Part: PartLocal, CIDR: c})); err != nil {
			t.Fatalf("the local route of %v did not outlive the guard: %v", c, err)
		}
	}
	for _, vip := range []netip.Addr{aVIP4, aVIP6} {
		if _, err := dial(t, vip, 4200); !errors.Is(err, unix.EHOSTUNREACH) && !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("dial %v: %v, want no route", vip, err)
		}
	}
	if err := netlink.RouteDel(route(Change{Part: PartUnreachable, CIDR: vip4})); err != nil {
		t.Fatal(err)
	}
	leak, err := netlink.RouteGet(aVIP4.AsSlice())
	if err != nil || len(leak) != 1 || !leak[0].Gw.Equal(routerIP.AsSlice()) {
		t.Errorf("without both routes packets go to %v, %v: want the router, or this test proves nothing", leak, err)
	}
}

func TestClean(t *testing.T) {
	g := startGuard(t, Options{}, nil)
	_, stop := startAgent(t, g.opts.PodDir)
	stop()
	g.stop()
	for range 2 {
		if err := Clean(t.Context()); err != nil {
			t.Fatal(err)
		}
		have, _, err := system{}.read()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(State{}, have, prefixes); diff != "" {
			t.Errorf("left behind (-want +got):\n%s", diff)
		}
	}
}

func TestOverlapIsRefused(t *testing.T) {
	o := Options{
		PodDir: t.TempDir(), NodeDir: t.TempDir(), NodeIP: nodeIP,
		CIDRs: []netip.Prefix{netip.MustParsePrefix("192.0.0.0/16")},
	}
	err := Run(t.Context(), o)
	if !errors.Is(err, ErrOverlap) {
		t.Errorf("a range that holds the node's own address: %v, want ErrOverlap", err)
	}
	o.CIDRs, o.ReservedCIDRs = []netip.Prefix{vip4}, []netip.Prefix{netip.MustParsePrefix("240.64.0.0/16")}
	if err := Run(t.Context(), o); !errors.Is(err, ErrOverlap) {
		t.Errorf("a range that holds the pods': %v, want ErrOverlap", err)
	}
	have, _, err := system{}.read()
	if diff := cmp.Diff(State{}, have, prefixes); diff != "" || err != nil {
		t.Errorf("a refused guard left something, %v (-want +got):\n%s", err, diff)
	}
}

func TestPortInUse(t *testing.T) {
	ln, err := net.Listen("tcp4", ":4222")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	t.Cleanup(func() { Clean(context.Background()) })
	o := Options{PodDir: t.TempDir(), NodeDir: t.TempDir(), NodeIP: nodeIP, CIDRs: []netip.Prefix{vip4}}
	err = Run(t.Context(), o)
	if !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("a port that another holds: %v, want EADDRINUSE", err)
	}
	have, _, err := system{}.read()
	want := State{Unreachable: []netip.Prefix{vip4}}
	if diff := cmp.Diff(want, have, prefixes); diff != "" || err != nil {
		t.Errorf("VIPs must be unreachable, and the other's port left alone, %v (-want +got):\n%s", err, diff)
	}
}
