package transport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrNoInterface reports a connection whose ingress interface the kernel does not know.
var ErrNoInterface = errors.New("the kernel does not report the connection's interface")

// IngressInterface returns the index of the interface by which the first packet of an
// accepted connection came in. The kernel stores it with the socket. Later packets do
// not change it. The error wraps ErrNoInterface or the system's.
func IngressInterface(c *net.TCPConn) (int, error) {
	var index int
	err := control(c, func(fd int) error {
		domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
		if err != nil {
			return err
		}
		if domain == unix.AF_INET6 {
			index, err = ingress(fd, unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, unix.IPV6_2292PKTOPTIONS, unix.IPV6_PKTINFO, 16)
		} else {
			index, err = ingress(fd, unix.SOL_IP, unix.IP_PKTINFO, unix.IP_PKTOPTIONS, unix.IP_PKTINFO, 0)
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("ingress interface of %v: %w", c.RemoteAddr(), err)
	}
	return index, nil
}

// ingress enables packet information and reads the interface index at an offset of the
// control message.
func ingress(fd, level, enable, option int, message int32, offset int) (int, error) {
	if err := unix.SetsockoptInt(fd, level, enable, 1); err != nil {
		return 0, err
	}
	var buf [256]byte
	n, err := getsockopt(fd, level, option, buf[:])
	if err != nil {
		return 0, err
	}
	messages, err := unix.ParseSocketControlMessage(buf[:n])
	if err != nil {
		return 0, err
	}
	for _, m := range messages {
		if m.Header.Level == int32(level) && m.Header.Type == message && len(m.Data) >= offset+4 {
			if index := binary.NativeEndian.Uint32(m.Data[offset:]); index != 0 {
				return int(index), nil
			}
		}
	}
	return 0, ErrNoInterface
}

// getsockopt reads an option of any form, which x/sys has no function for.
func getsockopt(fd, level, option int, buf []byte) (int, error) {
	n := uint32(len(buf))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&n)), 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
