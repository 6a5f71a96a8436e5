// Package socket reads from and writes to non-blocking sockets without notifying Go's
// scheduler of its system calls.
//
// Package net notifies the scheduler before each system call, so that another goroutine
// gets the processor if the call takes long. If the process was idle, this wakes the
// scheduler's monitor thread (sysmon). For a while sysmon then looks for long calls every
// 20 µs. In agents and gateways that carry small messages, sysmon and waking it used up
// to 30 % of the CPU time. System calls on non-blocking sockets never wait. So this
// package makes them without notifying the scheduler, as package runtime does with its
// own.
//
// A large write or splice takes up to some 100 µs although it does not wait, because the
// kernel carries the packets to the next process within the call. Meanwhile no other
// goroutine gets the processor. With a notice it would get one, but the threads that this
// needs cost bulk a quarter of its CPU time (docs/bench.md). sysmon still wakes at each
// timer, and checks the other goroutines then. With package parallelism this happens
// every 100 ms.
//
// What always holds: the caller of each function passes a non-blocking socket or pipe.
// Read, Write, Peek and Splice return unix.EAGAIN if they would have to wait.
package socket

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Read reads at most len(p) bytes. At the end of the stream it returns 0 and no error. If
// there is an error, the number is 0.
func Read(fd uintptr, p []byte) (int, error) { return read(fd, p) }

// Write writes at most len(p) bytes and returns how many it has written. If there is an
// error, the number is 0.
func Write(fd uintptr, p []byte) (int, error) { return write(fd, p) }

// Peek is like Read, but leaves the bytes in the socket's receive queue.
func Peek(fd uintptr, p []byte) (int, error) {
	return transfer(unix.SYS_RECVFROM, fd, p)
}

// transfer makes a system call whose first three arguments are those of read. The other
// arguments are the flag MSG_PEEK and no address for SYS_RECVFROM. SYS_READ and SYS_WRITE
// ignore them.
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
			return 0, unix.EAGAIN // a constant, unlike errno, does not allocate
		default:
			return 0, errno
		}
	}
}

// Splice moves at most size bytes from a socket to a pipe, or from a pipe to a socket,
// and returns how many it has moved. At the end of the stream it returns 0 and no error.
// If there is an error, the number is 0.
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

// IsQuiet reports whether a socket is open and has nothing to read: no bytes, no FIN and
// no reset. It does not wait.
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
