package grpctls

import (
	"net"
	"sync"
	"sync/atomic"
)

// Limit returns a listener that keeps at most n connections of ln open. It closes each
// further connection at once and calls refused for it, unless refused is nil. A gRPC
// server has no such limit.
func Limit(ln net.Listener, n int, refused func()) net.Listener {
	return &limited{Listener: ln, limit: int64(n), refused: refused}
}

type limited struct {
	net.Listener
	limit   int64
	refused func()
	open    atomic.Int64
}

// Accept implements net.Listener.
func (l *limited) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.open.Add(1) <= l.limit {
			return &counted{Conn: conn, closed: sync.OnceFunc(func() { l.open.Add(-1) })}, nil
		}
		l.open.Add(-1)
		conn.Close()
		if l.refused != nil {
			l.refused()
		}
	}
}

type counted struct {
	net.Conn
	closed func()
}

// Close implements net.Conn.
func (c *counted) Close() error {
	c.closed()
	return c.Conn.Close()
}
