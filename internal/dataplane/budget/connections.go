package budget

import (
	"math"

	"golang.org/x/sys/unix"
)

const (
	// reservedDescriptors are for all that is not a proxied connection: listeners, streams
	// to the controller, pipes, files.
	reservedDescriptors = 1024
	// connectionPart is the divisor of the process's memory that connections may take. A
	// quarter of the memory is for their windows (WindowBytes), and the rest for state
	// and for bytes under way.
	connectionPart = 2
)

// A Cost is what one connection takes of the process's resources.
type Cost struct {
	// Descriptors is the number of its file descriptors.
	Descriptors int
	// Memory is what it holds while it is idle, in bytes.
	Memory int
}

// Connections returns how many connections a process may have open: most, or fewer if
// its limit of open files (RLIMIT_NOFILE) or half of its memory (Memory) does not suffice
// for them. It returns at least 1.
func Connections(most int, each Cost) int {
	limit := unix.Rlimit{Cur: math.MaxUint64}
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		limit.Cur = math.MaxUint64 // the kernel then enforces its limit
	}
	return connections(limit.Cur, Memory(), most, each)
}

func connections(files, memory uint64, most int, each Cost) int {
	free := files - min(files, reservedDescriptors)
	return int(max(1, min(uint64(most), free/uint64(each.Descriptors), memory/connectionPart/uint64(each.Memory))))
}
