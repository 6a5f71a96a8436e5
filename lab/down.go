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
	if err := l.endProcesses(ctx); err != nil {
		return err
	}
	if err := l.removeNamespaces(); err != nil {
		return err
	}
	l.progress("processes and namespaces are gone")
	err = errors.Join(l.cgroups.remove(ctx, l.names.prefix()), l.removeMounts(), l.removeState())
	return errors.Join(err, l.giveRoomBack(ctx))
}

// endProcesses kills until none is left: the first round may miss what was being born.
func (l *Lab) endProcesses(ctx context.Context) error {
	for {
		if err := l.cgroups.kill(ctx, l.names.prefix()); err != nil {
			return err
		}
		strays, err := l.strays()
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

// strays are the lab's processes outside its cgroups: those between their birth and joining, and commands that `lab exec` runs.
func (l *Lab) strays() ([]int, error) {
	spaces, err := l.netnsInodes()
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var out []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() || isZombie(pid) {
			continue
		}
		if l.marked(pid) || slices.Contains(spaces, inode(fmt.Sprintf("/proc/%d/ns/net", pid))) {
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

func (l *Lab) netnsInodes() ([]uint64, error) {
	own, err := l.names.ownNetns()
	if err != nil {
		return nil, err
	}
	var out []uint64
	for _, name := range own {
		if isNetns(netnsPath(name)) {
			out = append(out, inode(netnsPath(name)))
		}
	}
	return out, nil
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
