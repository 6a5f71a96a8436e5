//go:build !race

package socket

import "golang.org/x/sys/unix"

func read(fd uintptr, p []byte) (int, error)  { return transfer(unix.SYS_READ, fd, p) }
func write(fd uintptr, p []byte) (int, error) { return transfer(unix.SYS_WRITE, fd, p) }
