package vipguard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

const (
	// namespaceEnv is set in the copy of the test process that has a network
	// namespace of its own.
	namespaceEnv = "VIPGUARD_TEST_NAMESPACE"
	// podEnv is set in the copy that plays a pod.
	podEnv = "VIPGUARD_TEST_POD"
)

// The whole package is tested in a throw-away network namespace: it changes
// routes and binds fixed ports.
func TestMain(m *testing.M) {
	switch {
	case os.Getenv(podEnv) != "":
		os.Exit(podMain())
	case os.Getenv(namespaceEnv) == "":
		os.Exit(inNamespace())
	case slices.Contains(os.Args, "-test.fuzzworker"): // in its parent's namespace
		os.Exit(m.Run())
	}
	if err := setUpNode(); err != nil {
		fmt.Fprintln(os.Stderr, "set up the test's namespace:", err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// inNamespace runs this process again in a new network namespace.
func inNamespace() int {
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests make a network namespace and must run as root")
		return 1
	}
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), namespaceEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "run the tests in a network namespace:", err)
		return 1
	}
	return 0
}

// The node of the tests: a wire to a router, by which everything unknown leaves.
var (
	nodeIP   = netip.MustParseAddr("192.0.2.1")
	routerIP = netip.MustParseAddr("192.0.2.2")
	vip4     = netip.MustParsePrefix("240.64.0.0/12")
	vip6     = netip.MustParsePrefix("fd4c:a5e1:1200::/108")
	aVIP4    = netip.MustParseAddr("240.65.1.2")
	aVIP6    = netip.MustParseAddr("fd4c:a5e1:1200::5:102")
)

func setUpNode() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	wire := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "node"}, PeerName: "router"}
	if err := netlink.LinkAdd(wire); err != nil {
		return err
	}
	router, err := netlink.LinkByName("router")
	if err != nil {
		return err
	}
	addr, _ := netlink.ParseAddr(nodeIP.String() + "/24")
	return errors.Join(
		netlink.LinkSetUp(lo), netlink.LinkSetUp(wire), netlink.LinkSetUp(router),
		netlink.AddrAdd(wire, addr),
		netlink.RouteAdd(&netlink.Route{LinkIndex: wire.Index, Gw: routerIP.AsSlice()}),
	)
}

// countingKernel is the system with its writes counted, and told to who listens.
type countingKernel struct {
	system
	writes chan Change
}

func newCountingKernel(cidrs ...netip.Prefix) countingKernel {
	return countingKernel{system{cidrs: sorted(cidrs)}, make(chan Change, 100)}
}

func (c countingKernel) apply(change Change) error {
	err := c.system.apply(change)
	c.writes <- change
	return err
}

// logs is a slog handler that passes messages on.
type logs struct {
	slog.Handler
	messages chan string
}

func newLogs(t *testing.T) (*slog.Logger, chan string) {
	messages := make(chan string, 100)
	return slog.New(logs{slog.NewTextHandler(t.Output(), nil), messages}), messages
}

func (l logs) Handle(ctx context.Context, r slog.Record) error {
	select {
	case l.messages <- r.Message:
	default:
	}
	return l.Handler.Handle(ctx, r)
}

// await receives until want comes, at most for some seconds.
func await[T comparable](t *testing.T, ch <-chan T, want T) {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		select {
		case got := <-ch:
			if got == want {
				return
			}
		case <-timeout:
			t.Fatalf("no %v came", want)
		}
	}
}

// testGuard is a running guard.
type testGuard struct {
	opts Options
	logs chan string
	stop func()
}

// startGuard runs a guard until the test ends or stop is called. It is there
// when a client can dial it; clients wait for it by themselves.
func startGuard(t *testing.T, o Options, k kernel) *testGuard {
	t.Helper()
	if o.PodDir == "" {
		o.PodDir = t.TempDir()
	}
	if o.NodeDir == "" {
		o.NodeDir = t.TempDir()
	}
	if o.CIDRs == nil {
		o.CIDRs = []netip.Prefix{vip4, vip6}
	}
	o.NodeIP = nodeIP
	var messages chan string
	o.Log, messages = newLogs(t)
	o, err := o.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	if k == nil {
		k = system{cidrs: o.CIDRs}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- run(ctx, o, k); close(done) }()
	g := &testGuard{opts: o, logs: messages}
	g.stop = func() {
		cancel()
		if err, first := <-done; first && err != nil {
			t.Errorf("guard ended: %v", err)
		}
	}
	t.Cleanup(func() {
		g.stop()
		if err := Clean(context.Background()); err != nil {
			t.Errorf("clean: %v", err)
		}
	})
	return g
}

// startAgent takes the listeners and serves until the test ends or stop is called.
func startAgent(t *testing.T, podDir string) (*Listeners, func()) {
	t.Helper()
	log, _ := newLogs(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	l, err := TakeListeners(ctx, podDir, AgentOptions{Log: log})
	cancel()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Serve(ctx); close(done) }()
	stop := func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("agent ended: %v", err)
		}
		if err := l.Close(); err != nil {
			t.Errorf("close listeners: %v", err)
		}
	}
	t.Cleanup(stop)
	return l, stop
}

// dial connects and returns the connection, which the test closes at its end.
func dial(t *testing.T, addr netip.Addr, port int) (net.Conn, error) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", netip.AddrPortFrom(addr, uint16(port)).String(), 5*time.Second)
	if err == nil {
		t.Cleanup(func() { conn.Close() })
	}
	return conn, err
}
