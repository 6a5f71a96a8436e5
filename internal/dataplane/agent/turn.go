package agent

import (
	"context"
	"net"
)

// A turn is a connection whose handshake computes only while it has one of a few
// turns, and gives it back while it waits for its peer: who is slow costs others
// nothing.
type turn struct {
	net.Conn
	turns chan struct{}
}

// take waits for a turn. It returns false if ctx ended first.
func (t *turn) take(ctx context.Context) bool {
	select {
	case t.turns <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (t *turn) give() { <-t.turns }

func (t *turn) Read(b []byte) (int, error) {
	t.give()
	defer func() { t.turns <- struct{}{} }()
	return t.Conn.Read(b)
}
