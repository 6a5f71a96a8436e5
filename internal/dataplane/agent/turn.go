package agent

import (
	"context"
	"net"

	"github.com/causeway-mesh/causeway/internal/dataplane/budget"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
)

// A turn is a connection whose handshake computes only while it has one of a few turns, and
// gives it back while it waits for its peer: one that is slow, or has gone, costs the others
// nothing. Turns go from link to link.
type turn struct {
	*net.TCPConn
	turns *budget.Turns
	link  string
	ctx   context.Context
	has   bool
}

// take waits for a turn. It returns false if the context or the connection ended first.
func (t *turn) take() bool {
	t.has = t.turns.Take(t.ctx, t.link, func() bool { return !transport.Gone(t.TCPConn) })
	return t.has
}

// give gives the turn back, if there is one.
func (t *turn) give() {
	if t.has {
		t.has = false
		t.turns.Give()
	}
}

func (t *turn) Read(b []byte) (int, error) {
	t.give()
	n, err := t.TCPConn.Read(b)
	if err == nil && !t.take() {
		return 0, net.ErrClosed
	}
	return n, err
}
