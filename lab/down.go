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

// Down ends and removes all of the lab, in any state. It does not read the lab's
// own records: it finds processes by cgroup, by the marker in their environment and by
// network namespace, and everything else by name. On a lab that is gone it does nothing.
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
	return l.clear(ctx)
}

// clear is Down for a caller that holds the lab's lock.
func (l *Lab) clear(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	own, err := l.names.ownNetns()
	if err != nil {
		return err
	}
	ours := func(pid int) bool { return l.marked(pid) || isIn(pid, own) }
	if err := l.endProcesses(ctx, l.names.prefix(), ours); err != nil {
		return err
	}
	err = l.removeNamespaces()
	l.progress("processes and namespaces are gone")
	return errors.Join(
		err,
		l.cgroups.remove(ctx, l.names.prefix()),
		l.removeMounts(),
		l.removeState(),
		l.giveRoomBack(ctx),
	)
}

// endProcesses kills every process in a cgroup and every other process that meant
// selects. It repeats this until none is left, because one round may miss a process that
// is just starting.
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

// processes lists the machine's processes that meant selects, except this one. A lab has
// processes outside its cgroups: those that have not joined yet, and commands of `lab
// exec`.
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
	return own != 0 && slices.ContainsFunc(spaces, func(name string) bool {
		return isNetns(netnsPath(name)) && inode(netnsPath(name)) == own
	})
}

// inode returns the inode number of path, or 0 if it cannot be read. No namespace has
// number 0.
func inode(path string) uint64 {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return 0
	}
	return st.Ino
}

// removeNamespaces removes every network namespace of the lab. One that cannot be removed
// does not keep the others from being removed.
func (l *Lab) removeNamespaces() error {
	own, err := l.names.ownNetns()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range own {
		errs = append(errs, removeNetns(name))
	}
	return errors.Join(append(errs, tidyNetnsDir())...)
}

// removeMounts removes mounts below the state folder in the machine's mount namespace.
// There should be none.
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
	all, err := mounts()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, m := range all {
		if m.point == dir || strings.HasPrefix(m.point, dir+"/") {
			out = append(out, m.point)
		}
	}
	return out, nil
}

// mount is a line of /proc/self/mountinfo.
type mount struct {
	id, parent string
	device     string // major:minor
	root       string // the directory of the file system that is shown
	point      string
}

// mounts lists the mounts of this process's mount namespace. A mount stands behind the
// mount that it covers.
func mounts() ([]mount, error) {
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	var out []mount
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		out = append(out, mount{
			id:     f[0],
			parent: f[1],
			device: f[2],
			root:   f[3],
			point:  f[4],
		})
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
