package transport

import (
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// A ReadableConn is a TCP connection whose reader can wait for bytes without holding a
// buffer. Make it with NewReadableConn. One goroutine may read or wait at a time.
type ReadableConn struct {
	*net.TCPConn
	raw syscall.RawConn
	// The functions that raw calls, allocated once and not for each read.
	pollFunc, readFunc func(fd uintptr) bool
	quietFunc          func(fd uintptr)
	quiet              bool // the result of quietFunc

	// Of ReadWhenReady.
	memory func() []byte
	drop   func()
	n      int
	err    error
}

// NewReadableConn returns c as a ReadableConn. The error is c's.
func NewReadableConn(c *net.TCPConn) (*ReadableConn, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	r := &ReadableConn{TCPConn: c, raw: raw}
	r.pollFunc = func(fd uintptr) bool { return !isQuiet(int(fd)) }
	r.readFunc = r.tryRead
	r.quietFunc = func(fd uintptr) { r.quiet = isQuiet(int(fd)) }
	return r, nil
}

// WaitReadable blocks until Read would not block, or until c's read deadline.
func (r *ReadableConn) WaitReadable() error { return r.raw.Read(r.pollFunc) }

// ReadWhenReady is Read, but takes memory only while it tries to read. It calls memory
// before each attempt, and drop after one that has found nothing.
func (r *ReadableConn) ReadWhenReady(memory func() []byte, drop func()) (int, error) {
	r.memory, r.drop, r.n, r.err = memory, drop, 0, nil
	err := r.raw.Read(r.readFunc)
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
	p := r.memory()
	for {
		if r.n, r.err = unix.Read(int(fd), p); r.err != unix.EINTR {
			break
		}
	}
	if r.err != unix.EAGAIN {
		return true
	}
	r.drop()
	return false
}

// isQuiet reports that a socket is open and has nothing to read.
func isQuiet(fd int) bool {
	sockets := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLRDHUP}}
	for {
		n, err := unix.Poll(sockets[:], 0)
		if err != unix.EINTR {
			return n == 0 && err == nil
		}
	}
}

// IsQuiet is the function IsQuiet for this connection. It must not be called concurrently.
func (r *ReadableConn) IsQuiet() bool {
	err := r.raw.Control(r.quietFunc)
	return err == nil && r.quiet
}
