package transport

import (
	"context"
	"fmt"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	keepIdle     = 15 * time.Second
	keepInterval = 10 * time.Second
	keepCount    = 6
	userTimeout  = 20 * time.Second
)

// tuning are the socket options that Tune sets.
var tuning = []struct{ level, option, value int }{
	{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
	{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
	{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(keepIdle / time.Second)},
	{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(keepInterval / time.Second)},
	{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepCount},
	{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout / time.Millisecond)},
}

// Tune sets the options of every connection of Causeway: no delay; keepalive, which
// detects a silent peer after at most 75 s; and a user timeout of 20 s, after which
// unacknowledged data fails the connection. Exchange and Splice replace the user
// timeout with their own check of the peer.
func Tune(c *net.TCPConn) error {
	if err := control(c, tune); err != nil {
		return fmt.Errorf("tune connection with %v: %w", c.RemoteAddr(), err)
	}
	return nil
}

// tune sets the options of tuning on a socket.
func tune(fd int) error {
	for _, o := range tuning {
		if err := unix.SetsockoptInt(fd, o.level, o.option, o.value); err != nil {
			return err
		}
	}
	return nil
}

// Listen listens on a TCP address. What it accepts needs no Tune, because Linux copies
// the options of a listener to each connection that it accepts.
func Listen(ctx context.Context, address string) (*net.TCPListener, error) {
	config := net.ListenConfig{
		KeepAlive: -1, // or package net sets its own on each connection
		Control: func(_, _ string, c syscall.RawConn) error {
			var err error
			if cerr := c.Control(func(fd uintptr) { err = tune(int(fd)) }); cerr != nil {
				return cerr
			}
			return err
		},
	}
	// The options are those of TCP, and the kernel splices no Multipath TCP.
	config.SetMultipathTCP(false)
	ln, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return ln.(*net.TCPListener), nil
}

func setUserTimeout(c *net.TCPConn, d time.Duration) error {
	return control(c, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
	})
}
