package transport

import (
	"net"

	"golang.org/x/sys/unix"
)

// Quiet reports whether a connection stands and nothing has come that was not read,
// be it bytes, an end or a reset. It does not wait.
func Quiet(c *net.TCPConn) bool {
	quiet := false
	err := control(c, func(fd int) error {
		_, _, err := unix.Recvfrom(fd, make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		quiet = err == unix.EAGAIN
		return nil
	})
	return err == nil && quiet
}
