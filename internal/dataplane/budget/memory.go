package budget

import (
	"bytes"
	"io/fs"
	"math"
	"os"
	"path"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Memory returns how many bytes this process may use: the memory limit of the Go runtime
// (GOMEMLIMIT), that of the container (its cgroup), or the memory of the machine,
// whichever is least.
func Memory() uint64 {
	return min(uint64(debug.SetMemoryLimit(-1)), cgroupMemory(os.DirFS("/")), machineMemory())
}

// machineMemory returns the size of the machine's memory.
func machineMemory() uint64 {
	var machine unix.Sysinfo_t
	if err := unix.Sysinfo(&machine); err != nil {
		return 1 << 30 // assume a small machine
	}
	return uint64(machine.Totalram) * uint64(machine.Unit)
}

// cgroupMemory returns the least memory limit of the process's cgroup and of those above
// it, from a root file system with /proc and /sys. Without a limit it returns
// math.MaxUint64.
//
// A container may see its own cgroup as the root of the hierarchy, while /proc names it
// by a path of the node. So a directory that does not exist counts as one without a
// limit.
func cgroupMemory(root fs.FS) uint64 {
	least := uint64(math.MaxUint64)
	lines, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return least
	}
	for line := range strings.Lines(string(lines)) { // hierarchy:controllers:path
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 {
			continue
		}
		mount, file := "sys/fs/cgroup", "memory.max" // version 2
		switch {
		case strings.Contains(","+fields[1]+",", ",memory,"): // version 1
			mount, file = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
		case fields[1] != "":
			continue
		}
		for at := path.Clean("/" + fields[2]); ; at = path.Dir(at) {
			b, err := fs.ReadFile(root, path.Join(mount, at, file))
			if n, bad := strconv.ParseUint(string(bytes.TrimSpace(b)), 10, 64); err == nil && bad == nil {
				least = min(least, n)
			}
			if at == "/" {
				break
			}
		}
	}
	return least
}
