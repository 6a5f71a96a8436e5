package agent

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
)

// errDrainNotice reports a connection that carried the drain notice of a gateway
// instead of a session.
var errDrainNotice = errors.New("a gateway drains")

// inboundConns are the inbound sessions, so that those that come by a gateway that
// drains can move to another one before it cuts them, and so that a newer session can
// renew them. The zero value is ready.
type inboundConns struct {
	mu   sync.Mutex // guards what follows
	open map[tunnel.SessionName]*inboundConn
	// accepting are the sessions that are not open yet, but whose client may already have
	// the answer to HELLO.
	accepting map[*inboundConn]struct{}
}

// accept records a session that is being accepted. The caller must call add or reject.
func (a *inboundConns) accept(in *inboundConn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.accepting == nil {
		a.accepting = make(map[*inboundConn]struct{})
	}
	a.accepting[in] = struct{}{}
}

// reject forgets a session that was not accepted.
func (a *inboundConns) reject(in *inboundConn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.accepting, in)
}

func (a *inboundConns) add(in *inboundConn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.open == nil {
		a.open = make(map[tunnel.SessionName]*inboundConn)
	}
	delete(a.accepting, in)
	a.open[in.secret.Name()] = in
}

func (a *inboundConns) remove(in *inboundConn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.open, in.secret.Name())
}

// find returns the session with a name, or nil.
func (a *inboundConns) find(name tunnel.SessionName) *inboundConn {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.open[name]
}

// all returns the sessions in any order.
func (a *inboundConns) all() []*inboundConn {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Collect(maps.Values(a.open))
}

// drainVia ends the sessions that come from a gateway's address: idle ones now, and
// others after their exchange. If several gateways share one node address, it ends the
// sessions of all of them, and the clients make new ones.
func (a *inboundConns) drainVia(gateway netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for in := range a.accepting {
		if in.from == gateway {
			in.retiring.Store(true) // awaitOpen checks it
		}
	}
	for _, in := range a.open {
		if in.from == gateway && !in.retiring.Swap(true) {
			in.interruptIdle()
		}
	}
}

// interruptIdle ends the wait for OPEN, unless a caller may just be sending it.
func (in *inboundConn) interruptIdle() {
	if m := in.requests.Load(); m != nil {
		m.GoAway()
		return
	}
	in.deadlineMu.Lock()
	defer in.deadlineMu.Unlock()
	switch since := in.idleSince.Load(); {
	case since == 0:
	case in.isReused() || in.isIdle():
		in.conn.SetReadDeadline(time.Unix(1, 0))
	default:
		in.conn.SetReadDeadline(time.Unix(0, since).Add(idleAfter))
	}
}

// markAwaitingOpen records since when the session waits for OPEN.
func (in *inboundConn) markAwaitingOpen(since time.Time) {
	in.deadlineMu.Lock()
	defer in.deadlineMu.Unlock()
	in.idleSince.Store(since.UnixNano())
}

// markOpenReceived records that OPEN has arrived.
func (in *inboundConn) markOpenReceived() {
	in.deadlineMu.Lock()
	defer in.deadlineMu.Unlock()
	in.idleSince.Store(0)
}
