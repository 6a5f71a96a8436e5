package agent

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// These tests are three processes: the one that go test starts, which starts a node,
// root in a network namespace of its own, which starts a finder there, which is to
// the kernel what an agent is: uid 64144 without a capability.
const (
	partEnv  = "CAUSEWAY_TEST_PART"
	agentUID = 64144
)

// asNode runs the named test or benchmark again in a new network namespace. It
// returns true there, and else when that has ended.
func asNode(tb testing.TB, flags ...string) bool {
	tb.Helper()
	if os.Getenv(partEnv) == "node" {
		return true
	}
	if os.Getuid() != 0 {
		tb.Fatal("this test makes a network namespace and must run as root")
	}
	cmd := exec.CommandContext(tb.Context(), os.Args[0], flags...)
	cmd.Env = append(os.Environ(), partEnv+"=node")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if tb.Logf("%s", out); err != nil {
		tb.Errorf("as a node: %v", err)
	}
	return false
}

// A found is what a finder answers.
type found struct {
	Iface, Port         int
	MAC                 []byte
	Error               string
	Silent, FarOff, Raw bool
}

// answerFinds is the whole life of a finder: an address a line, and an answer.
func answerFinds(in io.Reader, out io.Writer) {
	k, answers := new(kernel), json.NewEncoder(out)
	for lines := bufio.NewScanner(in); lines.Scan(); {
		at, err := k.find(netip.MustParseAddr(lines.Text()))
		f := found{Iface: at.iface, Port: at.port, MAC: []byte(at.mac)}
		if err != nil {
			f.Error, f.Silent, f.FarOff = err.Error(), errors.Is(err, errSilent), errors.Is(err, errFarOff)
		}
		f.Raw = canDoAnything()
		answers.Encode(f)
	}
}

// canDoAnything reports whether this process has any capability.
func canDoAnything() bool {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return true
	}
	for line := range strings.Lines(string(status)) {
		if bits, ok := strings.CutPrefix(line, "CapEff:"); ok {
			caps, err := strconv.ParseUint(strings.TrimSpace(bits), 16, 64)
			return err != nil || caps != 0 || os.Getuid() != agentUID
		}
	}
	return true
}

// startFinder returns what an agent without privileges finds.
func startFinder(tb testing.TB) func(netip.Addr) (attachment, error) {
	tb.Helper()
	cmd := exec.CommandContext(tb.Context(), "/proc/self/exe")
	cmd.Env, cmd.Stderr = append(os.Environ(), partEnv+"=finder"), os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: agentUID, Gid: agentUID}, Pdeathsig: syscall.SIGKILL,
	}
	questions := must(cmd.StdinPipe())(tb)
	answers := json.NewDecoder(must(cmd.StdoutPipe())(tb))
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		questions.Close()
		cmd.Wait()
	})
	var mu sync.Mutex
	return func(addr netip.Addr) (attachment, error) {
		mu.Lock()
		defer mu.Unlock()
		var f found
		if _, err := fmt.Fprintln(questions, addr); err != nil {
			return attachment{}, err
		}
		if err := answers.Decode(&f); err != nil {
			return attachment{}, err
		}
		switch {
		case f.Raw:
			return attachment{}, errors.New("the finder has capabilities: it proves nothing")
		case f.Silent:
			return attachment{}, fmt.Errorf("%s: %w", f.Error, errSilent)
		case f.FarOff:
			return attachment{}, fmt.Errorf("%s: %w", f.Error, errFarOff)
		case f.Error != "":
			return attachment{}, errors.New(f.Error)
		}
		return attachment{iface: f.Iface, mac: string(f.MAC), port: f.Port}, nil
	}
}

// playedPod is a network namespace with an interface eth0 and what runs there.
type playedPod struct {
	addr netip.Addr
	mac  net.HardwareAddr
	port netlink.Link // the node's end
	do   chan func()
}

// newPod wires a pod to the node: to a bridge, or without one by itself.
func newPod(tb testing.TB, name string, addr netip.Addr, bridge netlink.Link) *playedPod {
	tb.Helper()
	p := &playedPod{addr: addr, do: make(chan func())}
	namespace := make(chan *os.File)
	var living sync.WaitGroup
	living.Go(func() {
		runtime.LockOSThread() // and ends with the thread
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			panic(err)
		}
		namespace <- must(os.Open("/proc/thread-self/ns/net"))(tb)
		for f := range p.do {
			f()
		}
	})
	tb.Cleanup(func() { close(p.do); living.Wait() })
	ns := <-namespace
	defer ns.Close()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "-in"}
	ok(tb, netlink.LinkAdd(veth))
	ok(tb, netlink.LinkSetNsFd(must(netlink.LinkByName(veth.PeerName))(tb), int(ns.Fd())))
	p.port = must(netlink.LinkByName(name))(tb)
	if bridge != nil {
		ok(tb, netlink.LinkSetMaster(p.port, bridge))
	} else {
		host := &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen(), addr.BitLen())}
		defer func() {
			ok(tb, netlink.RouteAdd(&netlink.Route{LinkIndex: p.port.Attrs().Index, Dst: host, Scope: netlink.SCOPE_LINK}))
		}()
	}
	ok(tb, netlink.LinkSetUp(p.port))
	p.run(func() {
		eth := must(netlink.LinkByName(veth.PeerName))(tb)
		p.mac = eth.Attrs().HardwareAddr
		ok(tb, netlink.AddrAdd(eth, &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen()/4*3, addr.BitLen())}, Flags: unix.IFA_F_NODAD}))
		ok(tb, netlink.LinkSetUp(eth))
	})
	return p
}

// run does f in the pod, to its end.
func (p *playedPod) run(f func()) {
	done := make(chan struct{})
	p.do <- func() { defer close(done); f() }
	<-done
}

// kill takes the pod's interface away, as the end of its sandbox does.
func (p *playedPod) kill(tb testing.TB) { ok(tb, netlink.LinkDel(p.port)) }

// call connects to the node, as pods call mirrors.
func (p *playedPod) call(tb testing.TB, to net.Addr) {
	tb.Helper()
	var c net.Conn
	var err error
	p.run(func() { c, err = net.Dial("tcp", to.String()) })
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
}

// claims asks, with a link address, who has node, and so says that addr is there.
func (p *playedPod) claims(tb testing.TB, mac net.HardwareAddr, addr, node netip.Addr) {
	tb.Helper()
	frame := append([]byte{255, 255, 255, 255, 255, 255}, mac...)
	frame = append(frame, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1) // RFC 826: ARP, Ethernet, IPv4, request
	frame = append(append(append(frame, mac...), addr.AsSlice()...), 0, 0, 0, 0, 0, 0)
	frame = append(frame, node.AsSlice()...)
	p.run(func() {
		arp := binary.NativeEndian.Uint16([]byte{8, 6})
		fd := must(unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(arp)))(tb)
		defer unix.Close(fd)
		eth := must(netlink.LinkByName(p.port.Attrs().Name + "-in"))(tb)
		ok(tb, unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Protocol: arp, Ifindex: eth.Attrs().Index, Halen: 6}))
	})
}

func ok(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

var (
	bridgeAddr  = netip.MustParseAddr("10.77.0.1")
	bridgeAddr6 = netip.MustParseAddr("fd77::1")
)

// newBridge returns a node's bridge.
func newBridge(tb testing.TB) netlink.Link {
	tb.Helper()
	ok(tb, netlink.LinkSetUp(must(netlink.LinkByName("lo"))(tb)))
	b := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "cni0"}}
	ok(tb, netlink.LinkAdd(b))
	for _, addr := range []netip.Addr{bridgeAddr, bridgeAddr6} {
		ok(tb, netlink.AddrAdd(b, &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen()/4*3, addr.BitLen())}, Flags: unix.IFA_F_NODAD}))
	}
	ok(tb, netlink.LinkSetUp(b))
	return b
}

// The kernel's own word on who calls, through all that a neighbour can do on a bridge.
func TestWhoOnABridge(t *testing.T) {
	if !asNode(t, "-test.run=^TestWhoOnABridge$") {
		return
	}
	cni := newBridge(t)
	ln := must(net.Listen("tcp", netip.AddrPortFrom(bridgeAddr, 0).String()))(t)
	defer ln.Close()
	find := startFinder(t)
	a := newAttachments(find, stir)
	ctx, stop := context.WithCancel(t.Context())
	var settling sync.WaitGroup
	settling.Go(func() { a.settle(ctx) })
	defer settling.Wait()
	defer stop()

	victimAddr, thiefAddr := netip.MustParseAddr("10.77.0.11"), netip.MustParseAddr("10.77.0.12")
	victim, thief := newPod(t, "victim", victimAddr, cni), newPod(t, "thief", thiefAddr, cni)
	v, th := &pod{uid: "victim"}, &pod{uid: "thief"}
	s := podsAt(map[netip.Addr][]*pod{victimAddr: {v}, thiefAddr: {th}})

	if at, err := find(victimAddr); !errors.Is(err, errSilent) {
		t.Fatalf("before its first packet the kernel finds the pod at %+v, %v", at, err)
	}
	a.update(s)
	eventually(t, "pods are found by the agent's own looking", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return len(a.open) == 0
	})
	want := attachment{iface: cni.Attrs().Index, mac: string(victim.mac), port: victim.port.Attrs().Index}
	if at, err := find(victimAddr); err != nil || at != want {
		t.Fatalf("the kernel finds the pod at %+v, %v, want %+v", at, err, want)
	}
	stands := func(why string, s *state, addr netip.Addr, want *pod) {
		t.Helper()
		if got, err := a.pod(s, addr, cni.Attrs().Index); err != nil || got != want {
			t.Errorf("%s: %v stands for %v, %v, want %v", why, addr, got, err, want)
		}
	}
	// One frame may be lost, or another of the pod's own may follow it: does says it again.
	refused := func(why string, s *state, addr netip.Addr, does func()) {
		t.Helper()
		eventually(t, why, func() bool {
			does()
			_, err := a.pod(s, addr, cni.Attrs().Index)
			return errors.Is(err, errElsewhere)
		})
	}
	isItself := func() {
		t.Helper()
		eventually(t, "the pod is itself again", func() bool {
			victim.claims(t, victim.mac, victimAddr, bridgeAddr)
			got, err := a.pod(s, victimAddr, cni.Attrs().Index)
			return err == nil && got == v
		})
	}
	victim.call(t, ln.Addr())
	stands("a call of its own", s, victimAddr, v)

	refused("the address announced by a neighbour", s, victimAddr, func() { thief.claims(t, thief.mac, victimAddr, bridgeAddr) })
	stands("the neighbour's own address", s, thiefAddr, th)
	isItself()
	refused("address and link address taken by a neighbour", s, victimAddr, func() { thief.claims(t, victim.mac, victimAddr, bridgeAddr) })
	isItself()

	victim.kill(t)
	next := newPod(t, "next", victimAddr, cni)
	announce := func(p *playedPod) func() { // as a CNI does
		return func() { p.claims(t, p.mac, victimAddr, bridgeAddr) }
	}
	refused("a new pod at the address, which the API has not told yet", s, victimAddr, announce(next))
	next.call(t, ln.Addr())
	n := &pod{uid: "next"}
	s = podsAt(map[netip.Addr][]*pod{victimAddr: {n}, thiefAddr: {th}})
	a.update(s)
	stands("the new pod, once it is told of", s, victimAddr, n)

	next.kill(t)
	again := newPod(t, "again", victimAddr, cni)
	refused("its next sandbox, not told yet", s, victimAddr, announce(again))
	n = &pod{uid: "next", sandbox: 1}
	s = podsAt(map[netip.Addr][]*pod{victimAddr: {n}, thiefAddr: {th}})
	a.update(s)
	stands("its next sandbox", s, victimAddr, n)
}

// What is no bridge's, and what is IPv6.
func TestKernelFinds(t *testing.T) {
	if !asNode(t, "-test.run=^TestKernelFinds$") {
		return
	}
	cni := newBridge(t)
	find := startFinder(t)
	ptp := newPod(t, "ptp", netip.MustParseAddr("10.78.0.11"), nil)
	six := newPod(t, "six", netip.MustParseAddr("fd77::11"), cni)
	ok(t, netlink.RouteAdd(&netlink.Route{LinkIndex: cni.Attrs().Index, Gw: net.IPv4(10, 77, 0, 99),
		Dst: &net.IPNet{IP: net.IPv4(10, 79, 0, 0), Mask: net.CIDRMask(16, 32)}}))

	if at, err := find(ptp.addr); err != nil || at != (attachment{iface: ptp.port.Attrs().Index}) {
		t.Errorf("a pod with an interface of its own is at %+v, %v, want its interface alone", at, err)
	}
	want := attachment{iface: cni.Attrs().Index, mac: string(six.mac), port: six.port.Attrs().Index}
	eventually(t, "a pod with IPv6 is found", func() bool {
		stir(six.addr)
		at, err := find(six.addr)
		return err == nil && at == want
	})
	for addr, why := range map[string]error{
		"10.79.0.1":     errFarOff,        // another node's pod
		"203.0.113.1":   unix.ENETUNREACH, // nobody's
		"10.77.0.50":    errSilent,        // not there
		"fd77::50":      errSilent,
		"2001:db8::abc": unix.ENETUNREACH,
	} {
		_, err := new(kernel).find(netip.MustParseAddr(addr))
		if !errors.Is(err, why) {
			t.Errorf("%s: %v, want %v", addr, err, why)
		}
		if _, err := find(netip.MustParseAddr(addr)); err == nil {
			t.Errorf("%s is found", addr)
		}
	}
	if at, err := find(netip.MustParseAddr("127.0.0.1")); err != nil || at.iface != loopback {
		t.Errorf("127.0.0.1 is at %+v, %v, want lo", at, err)
	}
}

// What each call costs.
func BenchmarkKernelFind(b *testing.B) {
	if !asNode(b, "-test.run=^$", "-test.bench=^BenchmarkKernelFind$", "-test.benchmem") {
		return
	}
	cni, k := newBridge(b), new(kernel)
	ptp := newPod(b, "ptp", netip.MustParseAddr("10.78.0.11"), nil)
	bridged := newPod(b, "bridged", netip.MustParseAddr("10.77.0.11"), cni)
	eventually(b, "the pod is found", func() bool { stir(bridged.addr); _, err := k.find(bridged.addr); return err == nil })
	for name, addr := range map[string]netip.Addr{"ptp": ptp.addr, "bridge": bridged.addr} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := k.find(addr); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// Where each pod has an interface of its own, an agent that lives for a year sees more of them than it should remember.
func TestInterfacesAreForgotten(t *testing.T) {
	var k kernel
	for i := range 3*maxRemembered + 1 {
		k.remember(i+1, false)
	}
	n := 0
	k.bridges.Range(func(any, any) bool { n++; return true })
	if _, ok := k.bridges.Load(3*maxRemembered + 1); !ok || n > maxRemembered {
		t.Errorf("%d interfaces are remembered, want at most %d, the last among them: %v", n, maxRemembered, ok)
	}
}
