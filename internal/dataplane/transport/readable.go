package transport

import (
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/causeway-mesh/causeway/internal/dataplane/socket"
)

// A ReadableConn is a TCP connection whose reader can wait for bytes without holding a
// buffer. Make it with NewReadableConn. One goroutine may read or wait at a time.
type ReadableConn struct {
	*socket.Conn
	// Arguments of Raw's methods, which are allocated once and not for each read.
	pollFunc, readFunc func(fd uintptr) bool
	quietFunc          func(fd uintptr)
	quiet              bool // the result of quietFunc

	// Of ReadWhenReady.
	memory func() []byte
	drop   func()
	n      int
	err    error
}

// NewReadableConn returns c as a ReadableConn.
func NewReadableConn(c *net.TCPConn) *ReadableConn {
	r := &ReadableConn{Conn: socket.NewConn(c)}
	r.pollFunc = func(fd uintptr) bool { return !socket.IsQuiet(fd) }
	r.readFunc = r.tryRead
	r.quietFunc = func(fd uintptr) { r.quiet = socket.IsQuiet(fd) }
	return r
}

// WaitReadable blocks until Read would not block, or until c's read deadline.
func (r *ReadableConn) WaitReadable() error { return r.Raw().Read(r.pollFunc) }

// ReadWhenReady is Read, but takes memory only while it tries to read. It calls memory
// before each attempt, and drop after one that has found nothing.
func (r *ReadableConn) ReadWhenReady(memory func() []byte, drop func()) (int, error) {
	r.memory, r.drop, r.n, r.err = memory, drop, 0, nil
	err := r.Raw().Read(r.readFunc)
	switch {
	case err != nil:
		return 0, err
	case r.err != nil:
		return 0, os.NewSyscallError("read", r.err)
	case r.n == 0:
		return 0, io.EOF
	}
	return r.n, nil
}

func (r *ReadableConn) tryRead(fd uintptr) bool {
	if r.n, r.err = socket.Read(fd, r.memory()); r.err != unix.EAGAIN {
		return true
	}
	r.drop()
	return false
}

// IsQuiet is the function IsQuiet for this connection. It must not be called concurrently.
func (r *ReadableConn) IsQuiet() bool {
	err := r.Raw().Control(r.quietFunc)
	return err == nil && r.quiet
}
