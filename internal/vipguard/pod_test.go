package vipguard

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A pod is a copy of this process in a network namespace of its own, with a
// wire to the node. It dials what it is told and prints how that went.

var (
	podIP4  = netip.MustParseAddr("10.244.0.7")
	podIP6  = netip.MustParseAddr("fd00:244::7")
	hostIP4 = netip.MustParseAddr("10.244.0.1")
	hostIP6 = netip.MustParseAddr("fd00:244::1")
)

func podMain() int {
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		if err := runPodCommand(in.Text()); err != nil {
			fmt.Println(err)
		}
	}
	return 0
}

func runPodCommand(line string) error {
	if line == "setup" {
		err := setUpWire("pod", podIP4, podIP6, hostIP4, hostIP6)
		if err == nil {
			fmt.Println("ok")
		}
		return err
	}
	network, addr, _ := strings.Cut(line, " ")
	conn, err := net.DialTimeout(network, addr, 5*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	if network == "udp" {
		conn.Write([]byte("?"))
	}
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	text, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return err
	}
	fmt.Print(text)
	return nil
}

// setUpWire gives one end of a wire its addresses and, to a pod, its gateways.
func setUpWire(name string, own4, own6 netip.Addr, gateways ...netip.Addr) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	for _, own := range []netip.Prefix{netip.PrefixFrom(own4, 24), netip.PrefixFrom(own6, 64)} {
		addr, err := netlink.ParseAddr(own.String())
		if err != nil {
			return err
		}
		addr.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("add %v: %w", own, err)
		}
	}
	for _, gw := range gateways {
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gw.AsSlice()}); err != nil {
			return fmt.Errorf("route by %v: %w", gw, err)
		}
	}
	return nil
}

type pod struct {
	t   *testing.T
	in  *os.File
	out *bufio.Reader
	// iface is the node's end of the wire.
	iface int
}

func startPod(t *testing.T) *pod {
	t.Helper()
	stdin, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, stdout, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), podEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stdin.Close()
	stdout.Close()
	wire := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "host"},
		PeerName:  "pod", PeerNamespace: netlink.NsPid(cmd.Process.Pid),
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Wait()
		out.Close()
		netlink.LinkDel(wire)
	})
	if err := netlink.LinkAdd(wire); err != nil {
		t.Fatal(err)
	}
	if err := setUpWire("host", hostIP4, hostIP6); err != nil {
		t.Fatal(err)
	}
	p := &pod{t: t, in: in, out: bufio.NewReader(out), iface: wire.Index}
	if got := p.request("setup"); got != "ok" {
		t.Fatalf("set up the pod: %s", got)
	}
	return p
}

func (p *pod) request(line string) string {
	p.t.Helper()
	fmt.Fprintln(p.in, line)
	answer, err := p.out.ReadString('\n')
	if err != nil {
		p.t.Fatalf("the pod is gone: %v", err)
	}
	return strings.TrimSpace(answer)
}

// dial returns what the pod was told by whoever answers, or its error.
func (p *pod) dial(network string, addr netip.Addr, port int) string {
	p.t.Helper()
	return p.request(network + " " + netip.AddrPortFrom(addr, uint16(port)).String())
}
