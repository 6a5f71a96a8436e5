package transport

import (
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// A ReadableConn is a TCP connection whose reader can wait for bytes without holding a
// buffer. Make it with NewReadableConn.
type ReadableConn struct {
	*net.TCPConn
	raw  syscall.RawConn
	err  error
	n    int
	peek [1]byte
	try  func(fd uintptr) bool
}

// NewReadableConn returns c as a ReadableConn. The error is c's.
func NewReadableConn(c *net.TCPConn) (*ReadableConn, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	r := &ReadableConn{TCPConn: c, raw: raw}
	r.try = r.tryPeek // allocated once, not for each wait
	return r, nil
}

// WaitReadable blocks until Read would not block, or until c's read deadline. The error
// is io.EOF at the end of the connection. One goroutine may read or wait at a time.
func (r *ReadableConn) WaitReadable() error {
	if err := r.raw.Read(r.try); err != nil {
		return err
	}
	switch {
	case r.err != nil:
		return os.NewSyscallError("recvfrom", r.err)
	case r.n == 0:
		return io.EOF
	}
	return nil
}

func (r *ReadableConn) tryPeek(fd uintptr) bool {
	r.n, _, r.err = unix.Recvfrom(int(fd), r.peek[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	return r.err != unix.EAGAIN && r.err != unix.EINTR
}
