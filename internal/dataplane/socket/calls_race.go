//go:build race

package socket

import "syscall"

// In builds with the race detector, Read and Write call package syscall. It tells the
// race detector that a write happens before the read that returns the written bytes.

func read(fd uintptr, p []byte) (int, error)  { return repeat(syscall.Read, fd, p) }
func write(fd uintptr, p []byte) (int, error) { return repeat(syscall.Write, fd, p) }
