//go:build race

package socket

import "syscall"

// The race detector learns from package syscall that a write happens before the read of
// what was written.

func read(fd uintptr, p []byte) (int, error)  { return repeat(syscall.Read, fd, p) }
func write(fd uintptr, p []byte) (int, error) { return repeat(syscall.Write, fd, p) }

// repeat makes a call again while signals interrupt it.
func repeat(call func(int, []byte) (int, error), fd uintptr, p []byte) (int, error) {
	for {
		if n, err := call(int(fd), p); err != syscall.EINTR {
			return max(n, 0), err
		}
	}
}
