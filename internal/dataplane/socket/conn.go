package socket

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Conn is a TCP connection whose methods Read, Write and WriteNow use the functions of
// this package. Its other methods are those of net.TCPConn. All methods are safe for
// concurrent use.
type Conn struct {
	*net.TCPConn
	raw              syscall.RawConn
	reading, writing operation
}

// An operation is a read or a write in progress.
type operation struct {
	mu  sync.Mutex // held during the operation; guards what follows
	p   []byte
	n   int // bytes read or written
	err error
	// NewConn allocates these functions once, so that an operation allocates nothing.
	// Only writes have tryOnce.
	try, tryOnce func(fd uintptr) bool
}

// NewConn returns c as a Conn. Closing either of them closes the connection. c may be
// closed already: then Read and Write return net.ErrClosed in a net.OpError.
func NewConn(c *net.TCPConn) *Conn {
	raw, err := c.SyscallConn()
	if err != nil {
		panic(err) // only the zero TCPConn has no SyscallConn
	}
	s := &Conn{TCPConn: c, raw: raw}
	s.reading.try, s.writing.try = s.reading.tryRead, s.writing.tryWrite
	s.writing.tryOnce = func(fd uintptr) bool { s.writing.tryWrite(fd); return true }
	return s
}

// Raw returns the syscall.RawConn of the connection. Its methods provide the socket for
// the functions of this package.
func (c *Conn) Raw() syscall.RawConn { return c.raw }

// Read implements net.Conn. It returns io.EOF at the end of the stream.
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	o := &c.reading
	o.mu.Lock()
	defer o.mu.Unlock()
	o.begin(p)
	n, err := o.end(c.raw.Read(o.try))
	switch {
	case err != nil:
		return n, c.opError("read", err)
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (int, error) {
	o := &c.writing
	o.mu.Lock()
	defer o.mu.Unlock()
	o.begin(p)
	n, err := o.end(c.raw.Write(o.try))
	if err != nil {
		return n, c.opError("write", err)
	}
	return n, nil
}

// WriteNow writes what fits into the send queue. It does not wait for space in the queue,
// but it waits for a Write in progress. n is less than len(p) if the queue is full.
func (c *Conn) WriteNow(p []byte) (n int, err error) {
	o := &c.writing
	o.mu.Lock()
	defer o.mu.Unlock()
	o.begin(p)
	n, err = o.end(c.raw.Write(o.tryOnce))
	if err != nil && err != unix.EAGAIN {
		return n, c.opError("write", err)
	}
	return n, nil
}

// begin starts an operation. The caller holds o.mu until end has returned.
func (o *operation) begin(p []byte) { o.p, o.n, o.err = p, 0, nil }

// end returns the result of an operation. waited is the error of syscall.RawConn, which
// waits until the connection is ready: a passed deadline, or a closed connection.
func (o *operation) end(waited error) (int, error) {
	o.p = nil
	if waited != nil {
		return o.n, waited
	}
	return o.n, o.err
}

// tryRead returns false if there are no bytes yet.
func (o *operation) tryRead(fd uintptr) bool {
	o.n, o.err = Read(fd, o.p)
	return o.err != unix.EAGAIN
}

// tryWrite returns false if the send queue is full and bytes are left.
func (o *operation) tryWrite(fd uintptr) bool {
	for o.n < len(o.p) {
		n, err := Write(fd, o.p[o.n:])
		switch {
		case err != nil:
			o.err = err
			return err != unix.EAGAIN
		case n == 0:
			o.err = io.ErrUnexpectedEOF // as package net does; sockets never write 0 bytes
			return true
		}
		o.n += n
	}
	o.err = nil
	return true
}

// opError returns the error that package net would return.
func (c *Conn) opError(op string, err error) error {
	if e, ok := err.(*net.OpError); ok { // from c.raw, whose Op is raw-read or raw-write
		e.Op = op
		return e
	}
	if errno, ok := err.(syscall.Errno); ok {
		err = os.NewSyscallError(op, errno)
	}
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}
