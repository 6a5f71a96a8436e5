package agent

import (
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// A gatewayPath leads to the world's gateway by an address of its own, and can die:
// its packets are lost, and neither end is notified.
type gatewayPath struct {
	ln      net.Listener
	address string

	mu      sync.Mutex // guards conns
	conns   []*net.TCPConn
	copying sync.WaitGroup
}

// newGatewayPath is open until the test ends.
func (w *harness) newGatewayPath() *gatewayPath {
	path := &gatewayPath{ln: listen(w.TB, "127.0.0.1")}
	path.address = path.ln.Addr().String()
	path.serve(w.TB, w.peers.Addr().String())
	return path
}

// serve forwards each connection to an address until the test ends.
func (path *gatewayPath) serve(t testing.TB, to string) {
	path.copying.Go(func() {
		for {
			c, err := path.ln.Accept()
			if err != nil {
				return
			}
			path.copying.Go(func() { path.proxy(c.(*net.TCPConn), to) })
		}
	})
	t.Cleanup(func() {
		path.ln.Close()
		path.mu.Lock()
		for _, c := range path.conns {
			transport.Reset(c) // a FIN would leave the other end to wait for what is lost
		}
		path.mu.Unlock()
		path.copying.Wait()
	})
}

func (path *gatewayPath) proxy(near *net.TCPConn, to string) {
	defer near.Close()
	far, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer far.Close()
	path.mu.Lock()
	path.conns = append(path.conns, near, far.(*net.TCPConn))
	path.mu.Unlock()
	var back sync.WaitGroup
	back.Go(func() {
		io.Copy(near, far)
		near.CloseWrite()
	})
	io.Copy(far, near)
	far.(*net.TCPConn).CloseWrite()
	back.Wait()
}

// blackhole makes the kernel throw away whatever comes for the way's connections,
// before it is acknowledged.
func (path *gatewayPath) blackhole(t *testing.T) {
	t.Helper()
	nothing := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
	path.mu.Lock()
	defer path.mu.Unlock()
	for _, c := range path.conns {
		raw, err := c.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		cerr := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &nothing[0]})
		})
		if errors.Is(cerr, net.ErrClosed) {
			continue
		}
		if err := errors.Join(cerr, err); err != nil {
			t.Fatal(err)
		}
	}
}

// newIdleHarness is a world in which sessions wait for alice, all of them by a way of
// their own.
func newIdleHarness(t *testing.T) (*harness, *gatewayPath) {
	t.Helper()
	w := newHarness(t, echo)
	path := w.newGatewayPath()
	w.setGateways(path.address)
	for range 2 {
		if answer, err := w.call(alice, "hello"); err != nil || answer != "you said hello" {
			t.Fatalf("alice's call: %q, %v", answer, err)
		}
	}
	// None is on its way any more: it would come by another way, and be the next to be
	// used.
	eventually(t, "all sessions are idle", func() bool {
		all := w.sessionCount(sessionMade) + w.sessionCount(sessionPreconnected) - w.sessionCount(sessionRetired) - w.sessionCount(sessionLost)
		made := w.sessionCount(sessionPreconnecting) == w.sessionCount(sessionPreconnected)+w.sessionCount(sessionFailed)
		return made && w.idle() == all && all >= 2
	})
	return w, path
}

// hasIdleVia reports whether a session of west's is idle by a way.
func (w *harness) hasIdleVia(path *gatewayPath) bool {
	return slices.ContainsFunc(w.west.sessions.Idle(), func(s *clientSession) bool { return s.gateway == path.address })
}

// setGateways tells west's agent by which addresses east is to be reached.
func (w *harness) setGateways(addresses ...string) {
	w.change(&w.westView, "link/east", func(r *wire.Resource) {
		r.GetLink().Gateways = nil
		for _, a := range addresses {
			r.GetLink().Gateways = append(r.GetLink().Gateways, &wire.GatewayAddress{Address: a, Healthy: true})
		}
	})
}

// A way that has died is found out by the first who calls, whose bytes may have arrived
// and are not sent again. Nobody else is reset.
func TestDeadGatewayPathResetsOneCall(t *testing.T) {
	w, path := newIdleHarness(t)
	w.setGateways(path.address, w.peers.Addr().String())
	path.blackhole(t)
	start := time.Now()
	answer, err := w.call(alice, "may have arrived")
	wantReset(t, "the call on a tunnel whose way is dead, answered "+answer, err)
	if took := time.Since(start); took > gatewayDialTimeout {
		t.Errorf("it took %v, want less than %v", took, gatewayDialTimeout)
	}
	if w.hasIdleVia(path) {
		t.Error("a session waits on by the dead way")
	}
	if answer, err := w.call(alice, "goes another way"); err != nil || answer != "you said goes another way" {
		t.Errorf("alice's next call: %q, %v", answer, err)
	}
	if order := w.west.penalties.order([]string{path.address, "another"}, time.Now()); order[0] != "another" {
		t.Error("the dead address is still dialed first")
	}
}

// Who has nothing to lose loses nothing: without bytes of the caller's the call is made
// again.
func TestDeadGatewayPathRetriesWithoutEarlyData(t *testing.T) {
	w, path := newIdleHarness(t)
	w.setGateways(w.peers.Addr().String())
	// Nobody knows yet who speaks first, so that OPEN does not wait for the caller.
	path.blackhole(t)
	c := w.dial(alice)
	eventually(t, "the sessions are given up", func() bool { return !w.hasIdleVia(path) })
	if answer, err := ask(c, "late"); err != nil || answer != "you said late" {
		t.Errorf("a caller who had not spoken: %q, %v", answer, err)
	}
}

// An address that dials find wanting is no place to wait, either.
func TestSessionsLeavePenalizedAddress(t *testing.T) {
	w, path := newIdleHarness(t)
	w.setGateways(path.address, w.peers.Addr().String())
	path.ln.Close()
	peer := w.west.state.Load().links["east"]
	eventually(t, "a dial finds the address wanting", func() bool {
		raw, gateway, err := w.west.dialGateway(t.Context(), peer)
		if err != nil || gateway == path.address {
			t.Fatalf("reached by %s: %v", gateway, err)
		}
		raw.Reset()
		return w.west.penalties.order([]string{path.address, gateway}, time.Now())[0] == gateway
	})
	for _, s := range w.west.sessions.Idle() {
		if s.gateway == path.address {
			w.Errorf("a session of %s waits by way of %s, which nobody reaches", s.key.caller, path.address)
		}
	}
}

func TestAbortIfDead(t *testing.T) {
	w, path := newIdleHarness(t)
	raw := transport.RawOf(w.west.sessions.Idle()[0].conn).Conn.(*net.TCPConn)
	if transport.HasUnacked(raw) || transport.HasUnansweredProbe(raw) {
		t.Error("a session that waits on a living way is doubted")
	}
	if err := raw.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 9}); err != nil {
		t.Fatal(err)
	}
	path.blackhole(t)
	eventually(t, "keepalive has asked and was not answered", func() bool { return transport.HasUnansweredProbe(raw) })
}
