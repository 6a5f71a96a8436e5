package mux

import (
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// memoryConn is one end of a connection in memory with a buffer in each direction, as a
// socket has. It works in a testing/synctest bubble.
type memoryConn struct{ in, out *memoryBuffer }

const memoryBufferSize = 256 << 10

func newMemoryPair() (client, server net.Conn) {
	a, b := newMemoryBuffer(), newMemoryBuffer()
	return &memoryConn{in: a, out: b}, &memoryConn{in: b, out: a}
}

// memoryBuffer is one direction.
type memoryBuffer struct {
	mu            sync.Mutex
	cond          sync.Cond
	b             []byte
	r             int
	closed        bool // the writer has closed
	broken        bool // the reader has closed
	readTimeout   memoryTimeout
	writeDeadline memoryTimeout
}

// memoryTimeout is a deadline.
type memoryTimeout struct {
	expired bool
	timer   *time.Timer
}

func newMemoryBuffer() *memoryBuffer {
	m := &memoryBuffer{}
	m.cond.L = &m.mu
	return m
}

func (m *memoryBuffer) set(d *memoryTimeout, at time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.expired = !at.IsZero() && !at.After(time.Now())
	if !at.IsZero() && !d.expired {
		var timer *time.Timer
		timer = time.AfterFunc(time.Until(at), func() {
			m.mu.Lock()
			defer m.mu.Unlock()
			if d.timer == timer {
				d.expired = true
				m.cond.Broadcast()
			}
		})
		d.timer = timer
	}
	m.cond.Broadcast()
}

func (c *memoryConn) Read(p []byte) (int, error) {
	m := c.in
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		switch {
		case m.broken:
			return 0, net.ErrClosed
		case m.readTimeout.expired:
			return 0, os.ErrDeadlineExceeded
		case m.r < len(m.b):
			n := copy(p, m.b[m.r:])
			if m.r += n; m.r == len(m.b) {
				m.b, m.r = m.b[:0], 0
			}
			m.cond.Broadcast()
			return n, nil
		case m.closed:
			return 0, io.EOF
		}
		m.cond.Wait()
	}
}

func (c *memoryConn) Write(p []byte) (int, error) {
	m := c.out
	m.mu.Lock()
	defer m.mu.Unlock()
	total := 0
	for {
		switch {
		case m.closed:
			return total, net.ErrClosed
		case m.broken:
			return total, io.ErrClosedPipe
		case m.writeDeadline.expired:
			return total, os.ErrDeadlineExceeded
		}
		n := min(len(p), memoryBufferSize-(len(m.b)-m.r))
		m.b = append(m.b, p[:n]...)
		p = p[n:]
		total += n
		if n > 0 {
			m.cond.Broadcast()
		}
		if len(p) == 0 {
			return total, nil
		}
		m.cond.Wait()
	}
}

// Close ends both directions. What was written can still be read.
func (c *memoryConn) Close() error {
	c.out.mu.Lock()
	c.out.closed = true
	c.out.cond.Broadcast()
	c.out.mu.Unlock()
	c.in.mu.Lock()
	c.in.broken = true
	c.in.cond.Broadcast()
	c.in.mu.Unlock()
	c.SetDeadline(time.Time{})
	return nil
}

func (c *memoryConn) LocalAddr() net.Addr  { return memoryAddr{} }
func (c *memoryConn) RemoteAddr() net.Addr { return memoryAddr{} }

func (c *memoryConn) SetDeadline(t time.Time) error {
	c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

func (c *memoryConn) SetReadDeadline(t time.Time) error {
	c.in.set(&c.in.readTimeout, t)
	return nil
}

func (c *memoryConn) SetWriteDeadline(t time.Time) error {
	c.out.set(&c.out.writeDeadline, t)
	return nil
}

type memoryAddr struct{}

func (memoryAddr) Network() string { return "memory" }
func (memoryAddr) String() string  { return "memory" }
