package podid

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
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
)

// These tests are three processes. The one that go test starts starts a node: root in a
// network namespace of its own. The node starts a finder in it, which has the rights of
// an agent: uid 64144 and no capability.
const (
	partEnv  = "CAUSEWAY_TEST_PART"
	agentUID = 64144
)

// asNode runs the named test or benchmark again in a new network namespace. It returns
// true there. Elsewhere it returns false when that has ended.
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

// An answer is one line of a finder.
type answer struct {
	Iface, Port                  int
	MAC                          []byte
	Error                        string
	Silent, NotLocal, Privileged bool
}

// answerQueries is the process of a finder: it reads one address per line, and writes one
// answer for each.
func answerQueries(in io.Reader, out io.Writer) {
	k, answers := NewKernel(), json.NewEncoder(out)
	for lines := bufio.NewScanner(in); lines.Scan(); {
		at, err := k.Find(netip.MustParseAddr(lines.Text()))
		a := answer{Iface: at.Iface, Port: at.Port, MAC: []byte(at.MAC)}
		if err != nil {
			a.Error, a.Silent = err.Error(), errors.Is(err, ErrSilent)
			a.NotLocal = errors.Is(err, ErrNotLocal)
		}
		a.Privileged = privileged()
		answers.Encode(a)
	}
}

// privileged reports whether this process has a capability or is not the agent's user.
func privileged() bool {
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

// unprivileged is a Finder in a process that has the rights of an agent.
type unprivileged struct {
	mu      sync.Mutex // guards the conversation with the process
	queries io.Writer
	answers *json.Decoder
}

// startFinder starts a finder, which ends with the test.
func startFinder(tb testing.TB) *unprivileged {
	tb.Helper()
	cmd := exec.CommandContext(tb.Context(), "/proc/self/exe")
	cmd.Env, cmd.Stderr = append(os.Environ(), partEnv+"=finder"), os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: agentUID, Gid: agentUID},
		Pdeathsig:  syscall.SIGKILL,
	}
	queries := must(cmd.StdinPipe())(tb)
	answers := json.NewDecoder(must(cmd.StdoutPipe())(tb))
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		queries.Close()
		cmd.Wait()
	})
	return &unprivileged{queries: queries, answers: answers}
}

func (u *unprivileged) Find(addr netip.Addr) (Attachment, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	var a answer
	if _, err := fmt.Fprintln(u.queries, addr); err != nil {
		return Attachment{}, err
	}
	if err := u.answers.Decode(&a); err != nil {
		return Attachment{}, err
	}
	switch {
	case a.Privileged:
		return Attachment{}, errors.New("the finder is privileged, so it proves nothing")
	case a.Silent:
		return Attachment{}, fmt.Errorf("%s: %w", a.Error, ErrSilent)
	case a.NotLocal:
		return Attachment{}, fmt.Errorf("%s: %w", a.Error, ErrNotLocal)
	case a.Error != "":
		return Attachment{}, errors.New(a.Error)
	}
	return Attachment{Iface: a.Iface, MAC: string(a.MAC), Port: a.Port}, nil
}

func (u *unprivileged) Solicit(addr netip.Addr) { NewKernel().Solicit(addr) }

// simulatedPod is a network namespace with an interface eth0 and what runs there.
type simulatedPod struct {
	addr netip.Addr
	mac  net.HardwareAddr
	port netlink.Link // the node's end
	do   chan func()
}

// newPod connects a pod to the node: to a bridge or, without one, by a route.
func newPod(tb testing.TB, name string, addr netip.Addr, bridge netlink.Link) *simulatedPod {
	tb.Helper()
	p := &simulatedPod{addr: addr, do: make(chan func())}
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
			r := &netlink.Route{LinkIndex: p.port.Attrs().Index, Dst: host, Scope: netlink.SCOPE_LINK}
			ok(tb, netlink.RouteAdd(r))
		}()
	}
	ok(tb, netlink.LinkSetUp(p.port))
	p.run(func() {
		eth := must(netlink.LinkByName(veth.PeerName))(tb)
		p.mac = eth.Attrs().HardwareAddr
		ok(tb, netlink.AddrAdd(eth, inSubnet(addr)))
		ok(tb, netlink.LinkSetUp(eth))
	})
	return p
}

// inSubnet returns an address of an interface in a subnet of three quarters of its bits.
func inSubnet(addr netip.Addr) *netlink.Addr {
	subnet := &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen()/4*3, addr.BitLen())}
	return &netlink.Addr{IPNet: subnet, Flags: unix.IFA_F_NODAD}
}

// run does f in the pod, to its end.
func (p *simulatedPod) run(f func()) {
	done := make(chan struct{})
	p.do <- func() { defer close(done); f() }
	<-done
}

// kill takes the pod's interface away, as the end of its sandbox does.
func (p *simulatedPod) kill(tb testing.TB) { ok(tb, netlink.LinkDel(p.port)) }

// call connects to the node, as pods call mirrors.
func (p *simulatedPod) call(tb testing.TB, to net.Addr) {
	tb.Helper()
	var c net.Conn
	var err error
	p.run(func() { c, err = net.Dial("tcp", to.String()) })
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
}

// claims sends an ARP request for node that announces addr at a link address.
func (p *simulatedPod) claims(tb testing.TB, mac net.HardwareAddr, addr, node netip.Addr) {
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
		to := &unix.SockaddrLinklayer{Protocol: arp, Ifindex: eth.Attrs().Index, Halen: 6}
		ok(tb, unix.Sendto(fd, frame, 0, to))
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
		ok(tb, netlink.AddrAdd(b, inSubnet(addr)))
	}
	ok(tb, netlink.LinkSetUp(b))
	return b
}

// The kernel's own answers, through all that a neighbor can do on a bridge.
func TestLookupOnABridge(t *testing.T) {
	if !asNode(t, "-test.run=^TestLookupOnABridge$") {
		return
	}
	cni := newBridge(t)
	ln := must(net.Listen("tcp", netip.AddrPortFrom(bridgeAddr, 0).String()))(t)
	defer ln.Close()
	finder := startFinder(t)
	table := New(finder)
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { table.Run(ctx) })
	defer running.Wait()
	defer stop()

	victimAddr, thiefAddr := netip.MustParseAddr("10.77.0.11"), netip.MustParseAddr("10.77.0.12")
	victim, thief := newPod(t, "victim", victimAddr, cni), newPod(t, "thief", thiefAddr, cni)
	v, th := Claim{UID: "victim", Addr: victimAddr}, Claim{UID: "thief", Addr: thiefAddr}
	claims := []Claim{v, th}

	if at, err := finder.Find(victimAddr); !errors.Is(err, ErrSilent) {
		t.Fatalf("before its first packet the kernel finds the pod at %+v, %v", at, err)
	}
	table.Update(claims, false)
	eventually(t, "pods are found by the agent alone", func() bool { return len(table.openRecords()) == 0 })
	want := Attachment{Iface: cni.Attrs().Index, MAC: string(victim.mac), Port: victim.port.Attrs().Index}
	if at, err := finder.Find(victimAddr); err != nil || at != want {
		t.Fatalf("the kernel finds the pod at %+v, %v, want %+v", at, err, want)
	}
	source := func(addr netip.Addr) (Claim, error) { return lookup(table, addr, cni.Attrs().Index, claims) }
	standsFor := func(why string, want Claim) {
		t.Helper()
		if got, err := source(want.Addr); err != nil || got != want {
			t.Errorf("%s: %v stands for %v, %v, want %v", why, want.Addr, got, err, want)
		}
	}
	// One frame may be lost, or another of the pod's own may follow it: does sends it
	// again.
	isRefused := func(why string, does func()) {
		t.Helper()
		eventually(t, why, func() bool {
			does()
			_, err := source(victimAddr)
			return errors.Is(err, ErrMoved)
		})
	}
	isItself := func() {
		t.Helper()
		eventually(t, "the pod is itself again", func() bool {
			victim.claims(t, victim.mac, victimAddr, bridgeAddr)
			got, err := source(victimAddr)
			return err == nil && got == v
		})
	}
	victim.call(t, ln.Addr())
	standsFor("a connection of its own", v)

	isRefused("a neighbor announces the address",
		func() { thief.claims(t, thief.mac, victimAddr, bridgeAddr) })
	standsFor("the neighbor's own address", th)
	isItself()
	isRefused("a neighbor takes address and link address",
		func() { thief.claims(t, victim.mac, victimAddr, bridgeAddr) })
	isItself()

	victim.kill(t)
	next := newPod(t, "next", victimAddr, cni)
	announce := func(p *simulatedPod) func() { // as a CNI does
		return func() { p.claims(t, p.mac, victimAddr, bridgeAddr) }
	}
	isRefused("a new pod with the address, before the API shows it", announce(next))
	next.call(t, ln.Addr())
	n := Claim{UID: "next", Addr: victimAddr}
	claims = []Claim{n, th}
	table.Update(claims, false)
	standsFor("the new pod, once the API shows it", n)

	next.kill(t)
	again := newPod(t, "again", victimAddr, cni)
	isRefused("its next sandbox, before the API shows it", announce(again))
	n = Claim{UID: "next", Addr: victimAddr, Sandbox: 1}
	claims = []Claim{n, th}
	table.Update(claims, false)
	standsFor("its next sandbox", n)
}

// The kernel of a pod that gets an address does not know the connections of the pod that
// had the address before, so it answers no probe on them. A bridge, and link addresses
// that are made from addresses, leave no other difference.
func TestNewOwnerOfAddressResetsOldConnections(t *testing.T) {
	if !asNode(t, "-test.run=^TestNewOwnerOfAddressResetsOldConnections$") {
		return
	}
	cni, k := newBridge(t), NewKernel()
	ln := must(net.Listen("tcp", netip.AddrPortFrom(bridgeAddr, 0).String()))(t)
	defer ln.Close()
	addr := netip.MustParseAddr("10.77.0.11")
	former := newPod(t, "former", addr, cni)
	former.call(t, ln.Addr())
	c := must(ln.Accept())(t).(*net.TCPConn)
	defer c.Close()
	if err := transport.AwaitSegment(t.Context(), c, time.Now()); err != nil {
		t.Errorf("the pod that made the connection: %v", err)
	}
	former.kill(t)
	heir := newPod(t, "heir", addr, cni)
	eventually(t, "the kernel finds the heir", func() bool {
		heir.claims(t, heir.mac, addr, bridgeAddr)
		at, err := k.Find(addr)
		return err == nil && at.MAC == string(heir.mac)
	})
	err := transport.AwaitSegment(t.Context(), c, time.Now())
	if !errors.Is(err, transport.ErrConnectionGone) {
		t.Errorf("the heir: %v, want %v", err, transport.ErrConnectionGone)
	}
}

// Pods without a bridge, and pods with IPv6.
func TestKernelFinds(t *testing.T) {
	if !asNode(t, "-test.run=^TestKernelFinds$") {
		return
	}
	cni := newBridge(t)
	finder := startFinder(t)
	ptp := newPod(t, "ptp", netip.MustParseAddr("10.78.0.11"), nil)
	six := newPod(t, "six", netip.MustParseAddr("fd77::11"), cni)
	ok(t, netlink.RouteAdd(&netlink.Route{LinkIndex: cni.Attrs().Index, Gw: net.IPv4(10, 77, 0, 99),
		Dst: &net.IPNet{IP: net.IPv4(10, 79, 0, 0), Mask: net.CIDRMask(16, 32)}}))

	if at, err := finder.Find(ptp.addr); err != nil || at != (Attachment{Iface: ptp.port.Attrs().Index}) {
		t.Errorf("a pod with an interface of its own is at %+v, %v, want its interface alone", at, err)
	}
	want := Attachment{Iface: cni.Attrs().Index, MAC: string(six.mac), Port: six.port.Attrs().Index}
	eventually(t, "a pod with IPv6 is found", func() bool {
		finder.Solicit(six.addr)
		at, err := finder.Find(six.addr)
		return err == nil && at == want
	})
	for addr, why := range map[string]error{
		"10.79.0.1":     ErrNotLocal,      // on another node
		"203.0.113.1":   unix.ENETUNREACH, // on the Internet
		"10.77.0.50":    ErrSilent,        // not assigned
		"fd77::50":      ErrSilent,
		"2001:db8::abc": unix.ENETUNREACH,
	} {
		_, err := NewKernel().Find(netip.MustParseAddr(addr))
		if !errors.Is(err, why) {
			t.Errorf("%s: %v, want %v", addr, err, why)
		}
		if _, err := finder.Find(netip.MustParseAddr(addr)); err == nil {
			t.Errorf("%s is found", addr)
		}
	}
	if at, err := finder.Find(netip.MustParseAddr("127.0.0.1")); err != nil || at.Iface != loopback {
		t.Errorf("127.0.0.1 is at %+v, %v, want lo", at, err)
	}
}

// Queries run at the same time, each on a socket of its own, and get their own answers.
func TestKernelRunsConcurrentQueries(t *testing.T) {
	if !asNode(t, "-test.run=^TestKernelRunsConcurrentQueries$") {
		return
	}
	ok(t, netlink.LinkSetUp(must(netlink.LinkByName("lo"))(t)))
	var pods []*simulatedPod
	for i := range 2 * maxSockets {
		addr := netip.AddrFrom4([4]byte{10, 78, 0, byte(10 + i)})
		pods = append(pods, newPod(t, fmt.Sprintf("ptp%d", i), addr, nil))
	}
	k := NewKernel()
	var callers sync.WaitGroup
	for _, p := range pods {
		callers.Go(func() {
			for range 200 {
				want := Attachment{Iface: p.port.Attrs().Index}
				if at, err := k.Find(p.addr); err != nil || at != want {
					t.Errorf("%v is at %+v, %v, want %+v", p.addr, at, err, want)
					return
				}
			}
		})
	}
	callers.Wait()
}

// The cost of identifying a caller.
func BenchmarkKernelFind(b *testing.B) {
	if !asNode(b, "-test.run=^$", "-test.bench=^BenchmarkKernelFind$", "-test.benchmem") {
		return
	}
	cni, k := newBridge(b), NewKernel()
	ptp := newPod(b, "ptp", netip.MustParseAddr("10.78.0.11"), nil)
	bridged := newPod(b, "bridged", netip.MustParseAddr("10.77.0.11"), cni)
	eventually(b, "the pod is found", func() bool {
		k.Solicit(bridged.addr)
		_, err := k.Find(bridged.addr)
		return err == nil
	})
	for name, addr := range map[string]netip.Addr{"ptp": ptp.addr, "bridge": bridged.addr} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := k.Find(addr); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// Where each pod has an interface of its own, an agent that runs for a year sees more of
// them than it should remember.
func TestInterfaceCacheIsBounded(t *testing.T) {
	k := NewKernel()
	for i := range 3*maxBridges + 1 {
		k.storeBridge(i+1, false)
	}
	n := 0
	k.bridges.Range(func(any, any) bool { n++; return true })
	if _, ok := k.bridges.Load(3*maxBridges + 1); !ok || n > maxBridges {
		t.Errorf("%d interfaces are remembered, want at most %d, the last among them: %v", n, maxBridges, ok)
	}
}

// eventually waits for the effect of another process or of the kernel.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(20 * time.Second); !is(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("%s: has not happened", what)
		}
	}
}

// must returns v, or ends the test: must(f())(t).
func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}
