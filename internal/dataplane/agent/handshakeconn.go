package agent

import (
	"context"
	"net"

	"github.com/causeway-mesh/causeway/internal/dataplane/budget"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
)

// A handshakeConn is a connection whose handshake holds a slot of a limiter while it
// computes, and releases it while it waits for its peer. So a slow or dead peer does
// not delay other handshakes. The limiter serves links in turn.
type handshakeConn struct {
	*net.TCPConn
	limiter *budget.FairSemaphore
	link    string
	ctx     context.Context
	holding bool
}

// acquire waits for a slot. It returns false if the context or the connection ended
// first.
func (c *handshakeConn) acquire() bool {
	c.holding = c.limiter.Acquire(c.ctx, c.link, func() bool { return !transport.IsClosed(c.TCPConn) })
	return c.holding
}

// release releases the slot, if the connection holds one.
func (c *handshakeConn) release() {
	if c.holding {
		c.holding = false
		c.limiter.Release()
	}
}

func (c *handshakeConn) Read(b []byte) (int, error) {
	c.release()
	n, err := c.TCPConn.Read(b)
	if err == nil && !c.acquire() {
		return 0, net.ErrClosed
	}
	return n, err
}
