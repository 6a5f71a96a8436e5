package socket

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Conn is a TCP connection that Read and Write use by the functions of this package.
// All methods may be called concurrently.
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
	// Functions that are allocated once, and not for each operation.
	try, tryOnce func(fd uintptr) bool // tryOnce: of writes
}

// NewConn returns c as a Conn. The owner of c still has to close it. c may be closed.
func NewConn(c *net.TCPConn) *Conn {
	raw, err := c.SyscallConn()
	if err != nil {
		panic(err) // only the zero TCPConn has none
	}
	s := &Conn{TCPConn: c, raw: raw}
	s.reading.try, s.writing.try = s.reading.tryRead, s.writing.tryWrite
	s.writing.tryOnce = func(fd uintptr) bool { s.writing.tryWrite(fd); return true }
	return s
}

// Raw returns the connection for calls of the functions of this package.
func (c *Conn) Raw() syscall.RawConn { return c.raw }

// Read is of net.Conn.
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

// Write is of net.Conn.
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

// WriteNow writes what fits into the send queue, and does not wait. n is less than len(p)
// if the queue is full.
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

// begin starts an operation. o.mu is held until end has returned.
func (o *operation) begin(p []byte) { o.p, o.n, o.err = p, 0, nil }

// end returns the result of an operation. waited is the error of waiting for the
// connection to be ready.
func (o *operation) end(waited error) (int, error) {
	o.p = nil
	if waited != nil {
		return o.n, waited
	}
	return o.n, o.err
}

func (o *operation) tryRead(fd uintptr) bool {
	o.n, o.err = Read(fd, o.p)
	return o.err != unix.EAGAIN
}

// tryWrite returns false until all bytes are written.
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
	if e, ok := err.(*net.OpError); ok { // of c.raw, which calls it raw-read or raw-write
		e.Op = op
		return e
	}
	if errno, ok := err.(syscall.Errno); ok {
		err = os.NewSyscallError(op, errno)
	}
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}
