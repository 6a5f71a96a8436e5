package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const pollEvery = 20 * time.Millisecond

// Down ends and removes all of the lab, whatever state it is in. It reads no record of its own: it finds processes by cgroup, by the marker in their
// environment and by network namespace, and everything else by name. Called again it does nothing.
func Down(ctx context.Context, o Options) error {
	l, err := newLab(o)
	if err != nil {
		return err
	}
	unlock, err := l.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	own, err := l.names.ownNetns()
	if err != nil {
		return err
	}
	if err := l.endProcesses(ctx, l.names.prefix(), func(pid int) bool { return l.marked(pid) || isIn(pid, own) }); err != nil {
		return err
	}
	if err := l.removeNamespaces(); err != nil {
		return err
	}
	l.progress("processes and namespaces are gone")
	err = errors.Join(l.cgroups.remove(ctx, l.names.prefix()), l.removeMounts(), l.removeState())
	return errors.Join(err, l.giveRoomBack(ctx))
}

// endProcesses kills what is in a cgroup, and what else is meant, until none is left: the first round may miss what was being born.
func (l *Lab) endProcesses(ctx context.Context, cgroup string, meant func(pid int) bool) error {
	for {
		if err := l.cgroups.kill(ctx, cgroup); err != nil {
			return err
		}
		strays, err := processes(meant)
		if err != nil {
			return err
		}
		if len(strays) == 0 {
			return nil
		}
		for _, pid := range strays {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		if err := pause(ctx, pollEvery); err != nil {
			return fmt.Errorf("end the processes %v: %w", strays, err)
		}
	}
}

// processes are those of the machine that are meant, beside this one. A lab has some outside its cgroups: those between their birth and
// joining, and commands that `lab exec` runs.
func processes(meant func(pid int) bool) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var out []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err == nil && pid != os.Getpid() && !isZombie(pid) && meant(pid) {
			out = append(out, pid)
		}
	}
	return out, nil
}

func (l *Lab) marked(pid int) bool {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return false
	}
	return slices.ContainsFunc(bytes.Split(raw, []byte{0}), func(v []byte) bool {
		return string(v) == marker+"="+l.names.lab
	})
}

// isIn reports whether a process is in one of these network namespaces.
func isIn(pid int, spaces []string) bool {
	own := inode(fmt.Sprintf("/proc/%d/ns/net", pid))
	return own != 0 && slices.ContainsFunc(spaces, func(name string) bool { return isNetns(netnsPath(name)) && inode(netnsPath(name)) == own })
}

// inode returns 0 for what cannot be asked; no namespace has that number.
func inode(path string) uint64 {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return 0
	}
	return st.Ino
}

func (l *Lab) removeNamespaces() error {
	own, err := l.names.ownNetns()
	if err != nil {
		return err
	}
	for _, name := range own {
		if err := removeNetns(name); err != nil {
			return err
		}
	}
	_ = os.Remove(netnsDir) // only if nothing else is in it
	return nil
}

// removeMounts drops mounts below the state folder in the machine's own mount namespace. There should be none.
func (l *Lab) removeMounts() error {
	points, err := mountsBelow(l.names.dir())
	if err != nil {
		return err
	}
	for _, p := range slices.Backward(points) {
		if err := unix.Unmount(p, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %q: %w", p, err)
		}
	}
	return nil
}

// mountsBelow lists the mount points at or below dir, outer ones first.
func mountsBelow(dir string) ([]string, error) {
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	var out []string
	for _, line := range strings.Split(string(raw), "\n") {
		f := strings.Fields(line)
		if len(f) > 4 && (f[4] == dir || strings.HasPrefix(f[4], dir+"/")) {
			out = append(out, f[4])
		}
	}
	return out, nil
}

func (l *Lab) removeState() error {
	if err := os.RemoveAll(l.names.dir()); err != nil {
		return fmt.Errorf("remove the state of lab %q: %w", l.names.lab, err)
	}
	if l.names.state == filepath.Clean(DefaultState) {
		_ = os.Remove(l.names.state) // only if no other lab is in it
	}
	return nil
}
