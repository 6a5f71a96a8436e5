package agent

import (
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
)

// errNotice says that a connection was no session, but the notice of a gateway that drains.
var errNotice = errors.New("a gateway drains")

// arrivals are the inbound sessions, so that those that come by a gateway that drains can move to
// another one before it cuts them, and so that a newer session can renew them. The zero value is
// ready.
type arrivals struct {
	mu   sync.Mutex // guards open
	open map[tunnel.SessionName]*arrival
}

func (a *arrivals) add(in *arrival) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.open == nil {
		a.open = make(map[tunnel.SessionName]*arrival)
	}
	a.open[in.secret.Name()] = in
}

func (a *arrivals) remove(in *arrival) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.open, in.secret.Name())
}

// find returns the session with a name, or nil.
func (a *arrivals) find(name tunnel.SessionName) *arrival {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.open[name]
}

// retire ends the sessions that come from a gateway's address: idle ones now, and others
// after their exchange. If several gateways share one node address, this ends the
// sessions of all of them, and the clients make new ones.
func (a *arrivals) retire(gateway netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, in := range a.open {
		if in.from == gateway && !in.retiring.Swap(true) {
			in.wake()
		}
	}
}

// wake ends the wait for OPEN, if nobody is on the way with one.
func (in *arrival) wake() {
	in.waking.Lock()
	defer in.waking.Unlock()
	switch since := in.idleSince.Load(); {
	case since == 0:
	case in.between() || in.nobodyThere():
		in.conn.SetReadDeadline(time.Unix(1, 0))
	default:
		in.conn.SetReadDeadline(time.Unix(0, since).Add(warmAfter))
	}
}

// waits notes that OPEN is awaited from now on.
func (in *arrival) waits(since time.Time) {
	in.waking.Lock()
	defer in.waking.Unlock()
	in.idleSince.Store(since.UnixNano())
}

// opens notes that OPEN has come.
func (in *arrival) opens() {
	in.waking.Lock()
	defer in.waking.Unlock()
	in.idleSince.Store(0)
}
