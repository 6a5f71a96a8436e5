package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const cgroupMount = "/sys/fs/cgroup"

// hierarchies are the cgroup trees of this machine. In tracking every process of a lab is found; on a machine with cgroup v1 the
// kubelet and runc use the others as well.
type hierarchies struct {
	tracking string
	legacy   []string
}

func findHierarchies() (hierarchies, error) {
	if isCgroup2(cgroupMount) {
		return hierarchies{tracking: cgroupMount}, nil
	}
	entries, err := os.ReadDir(cgroupMount)
	if err != nil {
		return hierarchies{}, fmt.Errorf("look for cgroups: %w", err)
	}
	var h hierarchies
	for _, e := range entries {
		path := filepath.Join(cgroupMount, e.Name())
		switch {
		case !e.IsDir():
		case isCgroup2(path):
			h.tracking = path
		case exists(filepath.Join(path, "cgroup.procs")):
			h.legacy = append(h.legacy, path)
		}
	}
	if h.tracking == "" {
		i := slices.Index(h.legacy, filepath.Join(cgroupMount, "pids"))
		if i < 0 {
			return h, fmt.Errorf("no cgroup v2 and no pids hierarchy below %s", cgroupMount)
		}
		h.tracking = h.legacy[i]
	}
	return h, nil
}

func (h hierarchies) all() []string {
	if slices.Contains(h.legacy, h.tracking) {
		return h.legacy
	}
	return append([]string{h.tracking}, h.legacy...)
}

func isCgroup2(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

// ensure makes a cgroup for processes in the tracking hierarchy.
func (h hierarchies) ensure(cgroup string) error {
	if err := os.MkdirAll(filepath.Join(h.tracking, cgroup), 0o755); err != nil {
		return fmt.Errorf("make cgroup %q: %w", cgroup, err)
	}
	return nil
}

// ensureForPods makes a cgroup in every hierarchy, ready for a kubelet to put pods beneath.
func (h hierarchies) ensureForPods(cgroup string) error {
	for _, root := range h.all() {
		if err := os.MkdirAll(filepath.Join(root, cgroup), 0o755); err != nil {
			return fmt.Errorf("make cgroup %q: %w", cgroup, err)
		}
	}
	parts := strings.Split(cgroup, "/")
	for i := range parts {
		path := filepath.Join(parts[:i]...)
		if len(h.legacy) == 0 {
			delegate(filepath.Join(h.tracking, path))
		}
		if err := h.fillCpuset(path, filepath.Join(parts[:i+1]...)); err != nil {
			return err
		}
	}
	return nil
}

// weigh gives a lab's pods, as a whole, the processor's time of so many nodes. A cgroup's share is by default that of one process outside:
// on a busy machine all pods together would get no more than one compiler. Only cgroup v1 is so: in v2 the whole lab is in the cgroup.
func (h hierarchies) weigh(cgroup string, nodes int) error {
	for _, root := range h.legacy {
		file := filepath.Join(root, cgroup, "cpu.shares")
		if !exists(file) {
			continue
		}
		if err := os.WriteFile(file, []byte(strconv.Itoa(1024*nodes)), 0o644); err != nil {
			return fmt.Errorf("give cgroup %q its share: %w", cgroup, err)
		}
	}
	return nil
}

// delegate hands a v2 cgroup's controllers to its children. A controller that cannot be handed on is the kubelet's to complain of.
func delegate(path string) {
	for _, c := range []string{"cpu", "cpuset", "memory", "pids", "io", "hugetlb"} {
		_ = os.WriteFile(filepath.Join(path, "cgroup.subtree_control"), []byte("+"+c), 0o644)
	}
}

// fillCpuset copies a v1 parent's cpus and memory nodes: an empty cpuset takes no process.
func (h hierarchies) fillCpuset(parent, child string) error {
	for _, root := range h.legacy {
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			want, err := os.ReadFile(filepath.Join(root, parent, file))
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err == nil {
				err = os.WriteFile(filepath.Join(root, child, file), want, 0o644)
			}
			if err != nil {
				return fmt.Errorf("fill cpuset of cgroup %q: %w", child, err)
			}
		}
	}
	return nil
}

// procs lists the processes in the cgroup and below it, in the tracking hierarchy and, where it exists, the others.
func (h hierarchies) procs(cgroup string) []int {
	seen := map[int]bool{}
	for _, root := range h.all() {
		_ = filepath.WalkDir(filepath.Join(root, cgroup), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return nil // it went away while we looked
			}
			raw, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
			for _, f := range strings.Fields(string(raw)) {
				if pid, err := strconv.Atoi(f); err == nil && pid > 0 {
					seen[pid] = true
				}
			}
			return nil
		})
	}
	var out []int
	for pid := range seen {
		if !isZombie(pid) {
			out = append(out, pid)
		}
	}
	slices.Sort(out)
	return out
}

func (h hierarchies) populated(cgroup string) bool { return len(h.procs(cgroup)) > 0 }

// kill ends every process in the cgroup and below it, those born meanwhile too, and returns when none is left.
func (h hierarchies) kill(ctx context.Context, cgroup string) error {
	for {
		// The kernel's own switch misses no fork; kernels before 5.14 lack it.
		_ = os.WriteFile(filepath.Join(h.tracking, cgroup, "cgroup.kill"), []byte("1"), 0o644)
		left := h.procs(cgroup)
		if len(left) == 0 {
			return nil
		}
		for _, pid := range left {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return fmt.Errorf("end the processes of cgroup %q, %v are left: %w", cgroup, left, err)
		}
	}
}

// remove removes the cgroup and all below it from every hierarchy. Its processes must have ended.
func (h hierarchies) remove(ctx context.Context, cgroup string) error {
	for {
		err := h.removeOnce(cgroup)
		if err == nil {
			return nil
		}
		// A cgroup is busy until init has reaped its dead.
		if perr := pause(ctx, 50*time.Millisecond); perr != nil {
			return fmt.Errorf("remove cgroup %q: %w", cgroup, err)
		}
	}
}

func (h hierarchies) removeOnce(cgroup string) error {
	var errs []error
	for _, root := range h.all() {
		var dirs []string
		_ = filepath.WalkDir(filepath.Join(root, cgroup), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for _, dir := range slices.Backward(dirs) {
			if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

func isZombie(pid int) bool {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, after, ok := strings.Cut(string(raw), ") ")
	return ok && (after[0] == 'Z' || after[0] == 'X')
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
