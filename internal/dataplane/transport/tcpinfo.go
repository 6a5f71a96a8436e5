package transport

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// tcpClose is the state of a connection that was reset, timed out or has ended both ways
// (include/net/tcp_states.h).
const tcpClose = 7

// closed reports whether the kernel has closed a connection.
func closed(c *net.TCPConn) bool {
	info, err := tcpInfo(c)
	return err != nil || info.State == tcpClose
}

// RTT returns the shortest round trip that the kernel has lately seen on a connection, or
// zero if it knows none.
func RTT(c *net.TCPConn) time.Duration {
	const none = 1<<32 - 1
	info, err := tcpInfo(c)
	if err != nil || info.Min_rtt == none {
		return 0
	}
	return time.Duration(info.Min_rtt) * time.Microsecond
}

// tcpInfo returns what the kernel knows about a connection.
func tcpInfo(c *net.TCPConn) (info *unix.TCPInfo, err error) {
	err = control(c, func(fd int) (err error) {
		info, err = unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		return err
	})
	return info, err
}

// control calls do with a connection's descriptor, and returns its error.
func control(c syscall.Conn, do func(fd int) error) error {
	conn, err := c.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := conn.Control(func(fd uintptr) { err = do(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}
