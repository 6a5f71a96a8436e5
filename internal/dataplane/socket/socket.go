// Package socket reads from and writes to non-blocking sockets without telling Go's
// scheduler.
//
// Before each system call, package net tells the scheduler about it, so that another
// goroutine gets the processor if the call takes long. If the process was idle, this
// wakes the scheduler's watching thread (sysmon), which then looks for such calls every
// 20 µs for a while. In agents and gateways that carry small messages, that thread used
// up to 30 % of the CPU time. System calls of non-blocking sockets never wait, so this
// package makes them as package runtime makes its own. The thread still wakes at each
// timer, so every 100 ms with package parallelism, and looks after the other goroutines.
//
// What always holds: each function is called with a non-blocking socket or pipe, and
// returns unix.EAGAIN where it would have to wait.
package socket

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Read reads at most len(p) bytes. The end is 0 bytes without an error. With an error the
// number is 0.
func Read(fd uintptr, p []byte) (int, error) { return read(fd, p) }

// Write writes at most len(p) bytes. With an error the number is 0.
func Write(fd uintptr, p []byte) (int, error) { return write(fd, p) }

// Peek is Read, but leaves the bytes in the socket.
func Peek(fd uintptr, p []byte) (int, error) {
	return transfer(unix.SYS_RECVFROM, fd, p)
}

// transfer makes a system call whose first arguments are those of read. SYS_RECVFROM
// gets the flag MSG_PEEK and no address, and SYS_READ and SYS_WRITE ignore both.
func transfer(call, fd uintptr, p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		n, _, errno := unix.RawSyscall6(
			call, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), unix.MSG_PEEK, 0, 0,
		)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, unix.EAGAIN // a constant, so that it is not allocated
		default:
			return 0, errno
		}
	}
}

// Splice moves at most size bytes from a socket to a pipe, or from a pipe to a socket.
// The end is 0 bytes without an error. With an error the number is 0.
func Splice(from, to uintptr, size int) (int, error) {
	for {
		n, _, errno := unix.RawSyscall6(
			unix.SYS_SPLICE, from, 0, to, 0, uintptr(size), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK,
		)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, unix.EAGAIN
		default:
			return 0, errno
		}
	}
}

// IsQuiet reports that a socket is open and has nothing to read: no bytes, no FIN and no
// reset.
func IsQuiet(fd uintptr) bool {
	poll := unix.PollFd{Fd: int32(fd), Events: unix.POLLIN | unix.POLLRDHUP}
	var now unix.Timespec
	for {
		n, _, errno := unix.RawSyscall6(
			unix.SYS_PPOLL, uintptr(unsafe.Pointer(&poll)), 1, uintptr(unsafe.Pointer(&now)), 0, 0, 0,
		)
		if errno != unix.EINTR {
			return n == 0 && errno == 0
		}
	}
}
