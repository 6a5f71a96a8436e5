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

// A way leads to the world's gateway by an address of its own, and can die: what is on it is lost, and nobody is told.
type way struct {
	ln      net.Listener
	address string

	mu    sync.Mutex // guards conns
	conns []*net.TCPConn
	carry sync.WaitGroup
}

// newWay is open until the test ends.
func (w *world) newWay() *way {
	way := &way{ln: listen(w.TB, "127.0.0.1")}
	way.address = way.ln.Addr().String()
	way.carry.Go(func() {
		for {
			c, err := way.ln.Accept()
			if err != nil {
				return
			}
			way.carry.Go(func() { way.lead(c.(*net.TCPConn), w.peers.Addr().String()) })
		}
	})
	w.Cleanup(func() {
		way.ln.Close()
		way.mu.Lock()
		for _, c := range way.conns {
			c.Close()
		}
		way.mu.Unlock()
		way.carry.Wait()
	})
	return way
}

func (way *way) lead(near *net.TCPConn, to string) {
	defer near.Close()
	far, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer far.Close()
	way.mu.Lock()
	way.conns = append(way.conns, near, far.(*net.TCPConn))
	way.mu.Unlock()
	var back sync.WaitGroup
	back.Go(func() {
		io.Copy(near, far)
		near.CloseWrite()
	})
	io.Copy(far, near)
	far.(*net.TCPConn).CloseWrite()
	back.Wait()
}

// die makes the kernel throw away whatever comes for the way's connections, before it is acknowledged.
func (way *way) die(t *testing.T) {
	t.Helper()
	nothing := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
	way.mu.Lock()
	defer way.mu.Unlock()
	for _, c := range way.conns {
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

// waiting is a world in which sessions wait for alice, all of them by a way of their own.
func waiting(t *testing.T) (*world, *way) {
	t.Helper()
	w := newWorld(t, echo)
	way := w.newWay()
	w.lead(way.address)
	for range 2 {
		if answer, err := w.call(alice, "hello"); err != nil || answer != "you said hello" {
			t.Fatalf("alice's call: %q, %v", answer, err)
		}
	}
	// None is on its way any more: it would come by another way, and be the next to be used.
	eventually(t, "all sessions are idle", func() bool {
		all := w.became(sessionMade) + w.became(sessionAhead) - w.became(sessionRetired) - w.became(sessionLost)
		made := w.became(sessionBegun) == w.became(sessionAhead)+w.became(sessionFailed)
		return made && w.idle() == all && all >= 2
	})
	return w, way
}

// waitBy reports whether a session of west's is idle by a way.
func (w *world) waitBy(way *way) bool {
	return slices.ContainsFunc(w.west.sessions.Idle(), func(s *clientSession) bool { return s.by == way.address })
}

// lead tells west's agent by which addresses east is to be reached.
func (w *world) lead(addresses ...string) {
	w.change(&w.westView, "link/east", func(r *wire.Resource) {
		r.GetLink().Gateways = nil
		for _, a := range addresses {
			r.GetLink().Gateways = append(r.GetLink().Gateways, &wire.GatewayAddress{Address: a, Healthy: true})
		}
	})
}

// A way that has died is found out by the first who calls, whose bytes may have arrived and are not sent again. Nobody else is reset.
func TestDeadWayCostsOneCall(t *testing.T) {
	w, way := waiting(t)
	w.lead(way.address, w.peers.Addr().String())
	way.die(t)
	start := time.Now()
	answer, err := w.call(alice, "may have arrived")
	wantReset(t, "the call on a tunnel whose way is dead, answered "+answer, err)
	if took := time.Since(start); took > reachTimeout {
		t.Errorf("it took %v, want less than %v", took, reachTimeout)
	}
	if w.waitBy(way) {
		t.Error("a session waits on by the dead way")
	}
	if answer, err := w.call(alice, "goes another way"); err != nil || answer != "you said goes another way" {
		t.Errorf("alice's next call: %q, %v", answer, err)
	}
	if order := w.west.detours.order([]string{way.address, "another"}, time.Now()); order[0] != "another" {
		t.Error("the dead way is still the first to be dialled")
	}
}

// Who has nothing to lose loses nothing: without bytes of the caller's the call is made again.
func TestDeadWayCostsNoSilentCaller(t *testing.T) {
	w, way := waiting(t)
	w.lead(w.peers.Addr().String())
	// Nobody knows yet who speaks first, so that OPEN does not wait for the caller.
	way.die(t)
	c := w.dial(alice)
	eventually(t, "the sessions are given up", func() bool { return !w.waitBy(way) })
	if answer, err := ask(c, "late"); err != nil || answer != "you said late" {
		t.Errorf("a caller who had not spoken: %q, %v", answer, err)
	}
}

// An address that dials find wanting is no place to wait, either.
func TestSessionsLeaveAWantingAddress(t *testing.T) {
	w, way := waiting(t)
	w.lead(way.address, w.peers.Addr().String())
	way.ln.Close()
	peer := w.west.state.Load().links["east"]
	eventually(t, "a dial finds the address wanting", func() bool {
		raw, by, err := w.west.reach(t.Context(), peer)
		if err != nil || by == way.address {
			t.Fatalf("reached by %s: %v", by, err)
		}
		raw.Reset()
		return w.west.detours.order([]string{way.address, by}, time.Now())[0] == by
	})
	for _, s := range w.west.sessions.Idle() {
		if s.by == way.address {
			w.Errorf("a session of %s waits by way of %s, which nobody reaches", s.key.caller, way.address)
		}
	}
}

func TestUnheardIsTold(t *testing.T) {
	w, way := waiting(t)
	raw := transport.RawOf(w.west.sessions.Idle()[0].conn).Conn.(*net.TCPConn)
	if transport.Unheard(raw) || transport.Unanswered(raw) {
		t.Error("a session that waits on a living way is doubted")
	}
	if err := raw.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 9}); err != nil {
		t.Fatal(err)
	}
	way.die(t)
	eventually(t, "keepalive has asked and was not answered", func() bool { return transport.Unanswered(raw) })
}
