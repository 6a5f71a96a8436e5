package budget

import "golang.org/x/sys/unix"

// reservedDescriptors are for all that is not a proxied connection: listeners, streams to
// the controller, pipes, files.
const reservedDescriptors = 1024

// Connections returns how many connections a process may have open: most, or fewer if
// its limit of open files (RLIMIT_NOFILE) does not suffice for them with each file
// descriptors per connection. It returns at least 1.
func Connections(most, each int) int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return most // the kernel then refuses what is too many
	}
	return connections(limit.Cur, most, each)
}

func connections(files uint64, most, each int) int {
	if files >= uint64(most)*uint64(each)+reservedDescriptors {
		return most
	}
	return max(1, (int(files)-reservedDescriptors)/each)
}
