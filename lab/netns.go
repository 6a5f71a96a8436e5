package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// netnsDir is the directory that `ip netns` uses, so that a person can use it on the
// lab's network namespaces.
const netnsDir = "/run/netns"

func netnsPath(name string) string { return filepath.Join(netnsDir, name) }

// ensureNetns makes a network namespace that lives as long as its file in netnsDir, with
// loopback up and these sysctls. It does nothing if the namespace exists.
func ensureNetns(name string, sysctls map[string]string) error {
	unlock, err := lockNetnsDir()
	if err != nil {
		return fmt.Errorf("make network namespace %q: %w", name, err)
	}
	defer unlock()
	if err := shareNetnsDir(); err != nil {
		return fmt.Errorf("make network namespace %q: %w", name, err)
	}
	if isNetns(netnsPath(name)) {
		return nil
	}
	// A crash between this step and the mount leaves a file without a namespace on it.
	if err := os.WriteFile(netnsPath(name), nil, 0o444); err != nil {
		return fmt.Errorf("make network namespace %q: %w", name, err)
	}
	err = onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		for key, value := range sysctls {
			if err := setSysctl(key, value); err != nil {
				return err
			}
		}
		self := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
		if err := unix.Mount(self, netnsPath(name), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount: %w", err)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("make network namespace %q: %w", name, err)
	}
	return nil
}

// lockNetnsDir makes netnsDir if it does not exist and locks it as iproute2 does. It
// waits while another program holds the lock.
func lockNetnsDir() (unlock func(), err error) {
	for {
		if err := os.MkdirAll(netnsDir, 0o755); err != nil {
			return nil, err
		}
		dir, err := os.Open(netnsDir)
		if errors.Is(err, os.ErrNotExist) {
			continue // tidyNetnsDir of another lab has just removed it
		}
		if err != nil {
			return nil, err
		}
		if err := flock(dir); err != nil {
			_ = dir.Close()
			return nil, fmt.Errorf("lock %q: %w", netnsDir, err)
		}
		locked, err := dir.Stat()
		if err != nil {
			_ = dir.Close()
			return nil, err
		}
		if now, err := os.Stat(netnsDir); err == nil && os.SameFile(locked, now) {
			return func() { _ = dir.Close() }, nil
		}
		_ = dir.Close() // the directory was removed while we waited
	}
}

func flock(f *os.File) error {
	for {
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// shareNetnsDir makes netnsDir a shared mount of itself, as `ip netns add` does before it
// makes its first namespace. If the lab did not do it first, iproute2 would do it later
// and copy every mount of the lab into the new mount. A namespace that is mounted twice
// cannot be removed by unmounting its path. The caller holds the lock.
func shareNetnsDir() error {
	for bound := false; ; bound = true {
		err := unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EINVAL) || bound { // EINVAL: it is not a mount point
			return fmt.Errorf("share mount %q: %w", netnsDir, err)
		}
		if err := unix.Mount(netnsDir, netnsDir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("bind %q to itself: %w", netnsDir, err)
		}
	}
}

// removeNetns removes the name. The namespace itself ends with its last process and
// socket. It does nothing if the name does not exist.
func removeNetns(name string) error {
	path := netnsPath(name)
	err := unlinkMountPoint(path)
	if errors.Is(err, unix.EBUSY) {
		err = onOwnThread(func() error { return unlinkHidden(path) })
	}
	if err != nil {
		return fmt.Errorf("remove network namespace %q: %w", name, err)
	}
	if exists(path) {
		return fmt.Errorf("remove network namespace %q: its file is still there", name)
	}
	return nil
}

// unlinkMountPoint unmounts everything that is reachable at path and removes the file.
func unlinkMountPoint(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break // nothing is mounted there
		}
		if err != nil {
			return fmt.Errorf("unmount: %w", err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// unlinkHidden removes a file in netnsDir that has a mount below a later mount of
// netnsDir, where no path leads. It changes the calling thread's mount namespace. In a
// private copy of the machine's mounts it uncovers the hidden mount and removes the file.
// The kernel then detaches what is mounted on that file in every mount namespace, and
// other programs' network namespaces stay mounted.
func unlinkHidden(path string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare mounts: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for {
		err := unlinkMountPoint(path)
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		if unix.Unmount(netnsDir, unix.MNT_DETACH) != nil {
			return err
		}
	}
}

// tidyNetnsDir removes netnsDir, and mounts of it on itself, if it is empty.
func tidyNetnsDir() error {
	unlock, err := lockNetnsDir()
	if err != nil {
		return fmt.Errorf("tidy %q: %w", netnsDir, err)
	}
	defer unlock()
	for {
		if entries, err := os.ReadDir(netnsDir); err != nil || len(entries) > 0 {
			return err
		}
		bound, err := isBoundToItself(netnsDir)
		if err != nil {
			return err
		}
		if !bound {
			break
		}
		if err := unix.Unmount(netnsDir, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %q: %w", netnsDir, err)
		}
	}
	_ = os.Remove(netnsDir) // fails if it is a mount point of its own, or no longer empty
	return nil
}

// isBoundToItself reports whether the topmost mount at dir shows the directory that it
// covers, as opposed to another file system.
func isBoundToItself(dir string) (bool, error) {
	all, err := mounts()
	if err != nil {
		return false, err
	}
	for _, top := range slices.Backward(all) {
		if top.point != dir {
			continue
		}
		i := slices.IndexFunc(all, func(m mount) bool { return m.id == top.parent })
		if i < 0 {
			return false, nil
		}
		below, err := filepath.Rel(all[i].point, dir)
		return err == nil && all[i].device == top.device && filepath.Join(all[i].root, below) == top.root, nil
	}
	return false, nil
}

// ownNetns lists the network namespaces of this lab, those of earlier runs included.
func (n names) ownNetns() ([]string, error) {
	entries, err := os.ReadDir(netnsDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	var out []string
	for _, e := range entries {
		if n.ownsNetns(e.Name()) {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

func isNetns(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// inNetns runs f on its own thread inside the namespace. Sockets that f opens stay in it.
func inNetns(name string, f func() error) error {
	return onOwnThread(func() error {
		fd, err := unix.Open(netnsPath(name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open network namespace %q: %w", name, err)
		}
		defer unix.Close(fd)
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %q: %w", name, err)
		}
		return f()
	})
}

// onOwnThread runs f on a thread that ends with f. Changes that f makes to its thread,
// such as the namespaces that it enters, affect no other code.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The runtime never ends the main thread, and /proc/self shows its
			// namespaces. While it is locked here, f runs on another thread.
			defer runtime.UnlockOSThread()
			done <- onOwnThread(f)
			return
		}
		done <- f() // not unlocked, so the runtime ends the thread
	}()
	return <-done
}

// setSysctl writes a sysctl of the calling thread's network namespace. It ignores a
// sysctl that this kernel lacks.
func setSysctl(key, value string) error {
	path := "/proc/sys/" + strings.ReplaceAll(key, ".", "/")
	if !exists(path) {
		return nil
	}
	if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
		return fmt.Errorf("set sysctl %s=%s: %w", key, value, err)
	}
	return nil
}
