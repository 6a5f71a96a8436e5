package transport

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/causeway-mesh/causeway/internal/dataplane/socket"
)

const bufferSize = 64 << 10 // a multiple of a TLS record

var bufferPool = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// source reads a TCP connection without holding a buffer while it waits, so that an idle
// connection costs none.
type source struct {
	conn     syscall.RawConn
	headroom int               // kept free at the head of buf
	most     int               // bytes that one read may return; 0: as buf holds
	buf      *[bufferSize]byte // set after read until release
	n        int               // bytes read
	err      error
	try      func(fd uintptr) bool
}

func newSource(c *net.TCPConn) (*source, error) {
	conn, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &source{conn: conn}
	s.try = s.tryRead // allocated once, not for each read
	return s, nil
}

// read waits for bytes: s.n of them from s.buf[s.headroom:]. The caller must then call
// release. The end is io.EOF.
func (s *source) read() error {
	if err := s.conn.Read(s.try); err != nil {
		return err
	}
	switch {
	case s.err != nil:
		return os.NewSyscallError("read", s.err)
	case s.n == 0:
		s.release()
		return io.EOF
	}
	return nil
}

func (s *source) tryRead(fd uintptr) bool {
	s.buf = bufferPool.Get().(*[bufferSize]byte)
	room := s.buf[s.headroom:]
	if s.most > 0 {
		room = room[:min(len(room), s.most)]
	}
	if s.n, s.err = socket.Read(fd, room); s.err != nil {
		s.release()
	}
	return s.err != unix.EAGAIN
}

func (s *source) release() {
	bufferPool.Put(s.buf)
	s.buf = nil
}

// awaitReset waits, after the FIN of c was read, for an error on c: a reset, or
// unanswered keepalives. It returns this error, or why it cannot wait any longer. Without
// it a half-closed connection whose peer is gone would stay open as long as there is
// nothing to send.
func awaitReset(c *net.TCPConn) error {
	conn, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var broken error
	err = conn.Read(func(fd uintptr) bool {
		errno, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err != nil || errno == 0 {
			broken = err
			return err != nil
		}
		broken = syscall.Errno(errno)
		return true
	})
	if broken != nil {
		return os.NewSyscallError("getsockopt", broken)
	}
	return err
}
