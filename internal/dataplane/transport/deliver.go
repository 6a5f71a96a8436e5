package transport

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// resetDelivered resets c once its peer's kernel has taken all that was written, or has gone, and
// within the time given at the latest.
func resetDelivered(c *net.TCPConn, within time.Duration) {
	deadline := time.Now().Add(within)
	for pause := time.Millisecond; undelivered(c) && time.Now().Before(deadline); pause *= 2 {
		<-time.After(min(pause, 50*time.Millisecond))
	}
	Reset(c)
}

// undelivered reports whether the peer's kernel has not acknowledged all that was written to c.
func undelivered(c *net.TCPConn) bool {
	left := 0
	err := control(c, func(fd int) (err error) {
		left, err = unix.IoctlGetInt(fd, unix.SIOCOUTQ)
		return err
	})
	return err == nil && left > 0 && !closed(c)
}
