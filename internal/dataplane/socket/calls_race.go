//go:build race

package socket

import "syscall"

// In builds with the race detector, Read and Write call package syscall. It tells the
// race detector that a write happens before the read that returns the written bytes.

func read(fd uintptr, p []byte) (int, error)  { return repeat(syscall.Read, fd, p) }
func write(fd uintptr, p []byte) (int, error) { return repeat(syscall.Write, fd, p) }

// repeat makes a system call, and makes it again as long as a signal interrupts it.
func repeat(call func(int, []byte) (int, error), fd uintptr, p []byte) (int, error) {
	for {
		if n, err := call(int(fd), p); err != syscall.EINTR {
			return max(n, 0), err
		}
	}
}
