package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// netnsDir is where `ip netns` looks, so that a person can use it on the lab's namespaces.
const netnsDir = "/run/netns"

func netnsPath(name string) string { return filepath.Join(netnsDir, name) }

// ensureNetns makes a network namespace that lives as long as its file in netnsDir, with loopback up and these sysctls.
func ensureNetns(name string, sysctls map[string]string) error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return fmt.Errorf("make network namespace %q: %w", name, err)
	}
	if isNetns(netnsPath(name)) {
		return nil
	}
	// A file without a namespace on it is what a crash between the two steps leaves.
	if err := os.WriteFile(netnsPath(name), nil, 0o444); err != nil {
		return fmt.Errorf("make network namespace %q: %w", name, err)
	}
	err := onOwnThread(func() error {
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

// removeNetns drops the name; the namespace itself goes with its last process and socket.
func removeNetns(name string) error {
	path := netnsPath(name)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount network namespace %q: %w", name, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove network namespace %q: %w", name, err)
	}
	return nil
}

// ownNetns lists the network namespaces of this lab, whoever made them and when.
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

// inNetns runs f on a thread of its own inside the namespace; sockets that f opens stay in it.
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

// onOwnThread runs f on a thread that ends with it, so that what f changes about its thread reaches nobody else.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime then ends the thread
		done <- f()
	}()
	return <-done
}

// setSysctl writes a sysctl of the calling thread's network namespace. One that this kernel lacks is passed over.
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
