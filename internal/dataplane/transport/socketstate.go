package transport

import (
	"errors"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-mesh/causeway/internal/dataplane/socket"
)

// IsQuiet reports whether a connection is open and has nothing to read: no bytes, no
// FIN and no reset. It does not wait.
func IsQuiet(c *net.TCPConn) bool {
	quiet := false
	err := control(c, func(fd int) error {
		quiet = socket.IsQuiet(uintptr(fd))
		return nil
	})
	return err == nil && quiet
}

// HasUnacked reports whether bytes were retransmitted that the peer's kernel has not
// acknowledged.
func HasUnacked(c *net.TCPConn) bool {
	info, err := tcpInfo(c)
	return err == nil && info.Unacked > 0 && info.Retransmits > 0
}

// HasUnansweredProbe reports whether a keepalive probe was sent that the peer's kernel
// has not answered.
func HasUnansweredProbe(c *net.TCPConn) bool {
	info, err := tcpInfo(c)
	return err == nil && info.Probes > 0
}

// AwaitReadable waits for at most d until a connection is readable. It reads nothing.
// It returns nil if there are bytes, io.EOF at the end, os.ErrDeadlineExceeded after d,
// and otherwise the error of the connection.
func AwaitReadable(c *net.TCPConn, d time.Duration) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	if err := c.SetReadDeadline(time.Now().Add(d)); err != nil {
		return err
	}
	var n int
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		n, failed = socket.Peek(fd, make([]byte, 1))
		return failed != unix.EAGAIN
	})
	switch {
	case err != nil:
		return errors.Join(err, c.SetReadDeadline(time.Time{}))
	case failed != nil:
		return os.NewSyscallError("recvfrom", failed)
	case n == 0:
		return io.EOF
	}
	return c.SetReadDeadline(time.Time{})
}

// HasReceivedFIN reports whether the other end's FIN has arrived, even if it was not
// read yet. All bytes before the FIN have then arrived, too, and our kernel has
// acknowledged them.
func HasReceivedFIN(c *net.TCPConn) bool {
	const closeWait = 8 // see tcpClose
	info, err := tcpInfo(c)
	return err == nil && info.State == closeWait
}
