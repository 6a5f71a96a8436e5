package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Inventory is all on a machine that a lab could leave behind: kind → sorted names.
type Inventory map[string][]string

// watched are the folders in which a lab, a kubelet, containerd or CNI would write if they were not kept apart.
var watched = []string{"/run", "/var/lib", "/var/log", "/etc", "/opt", "/usr/libexec", "/sys/fs/cgroup"}

// passing are folders in them that other programs change at any time.
var passing = []string{"/var/lib/apt", "/var/lib/dpkg", "/var/log/journal"}

// TakeInventory lists processes, links, addresses, routes, mounts, network namespaces, cgroups, files and kernel settings.
func TakeInventory() (Inventory, error) {
	inv := Inventory{}
	links, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		addrs, _ := l.Addrs()
		inv["link"] = append(inv["link"], fmt.Sprint(l.Name, " ", addrs))
	}
	for kind, file := range map[string]string{"mount": "/proc/self/mounts", "route": "/proc/net/route"} {
		raw, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("list what is in %s: %w", file, err)
		}
		inv[kind] = strings.Split(strings.TrimSpace(string(raw)), "\n")
	}
	inv["process"] = commands()
	for name := range fakeSettings {
		for _, dir := range []string{"vm", "kernel", "kernel/keys"} {
			if raw, err := os.ReadFile(filepath.Join("/proc/sys", dir, name)); err == nil {
				inv["setting"] = append(inv["setting"], dir+"/"+name+"="+strings.TrimSpace(string(raw)))
			}
		}
	}
	if raw, err := os.ReadFile(machineAllowance.setting); err == nil {
		inv["setting"] = append(inv["setting"], instancesSetting+"="+strings.TrimSpace(string(raw)))
	}
	for _, dir := range watched {
		files, err := filesBelow(dir)
		if err != nil {
			return nil, err
		}
		inv["file"] = append(inv["file"], files...)
	}
	for _, list := range inv {
		slices.Sort(list)
	}
	return inv, nil
}

// commands lists the command lines of all processes but the kernel's own and this one, those of a lab behind its name.
func commands() []string {
	entries, _ := os.ReadDir("/proc")
	var out []string
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil || len(raw) == 0 {
			continue
		}
		line := strings.ReplaceAll(strings.TrimRight(string(raw), "\x00"), "\x00", " ")
		if lab := labOf(pid); lab != "" {
			line = "[lab " + lab + "] " + line
		}
		out = append(out, line)
	}
	return out
}

// labOf returns the name of the lab that a process belongs to, by its cgroup or the marker in its environment.
func labOf(pid int) string {
	cgroups, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if _, after, ok := strings.Cut(string(cgroups), ":/"+cgroupPrefix); ok {
		name, _, _ := strings.Cut(after, "/")
		return strings.TrimSpace(name)
	}
	environ, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	for _, v := range strings.Split(string(environ), "\x00") {
		if name, ok := strings.CutPrefix(v, marker+"="); ok {
			return name
		}
	}
	return ""
}

// filesBelow lists folders and files; a cgroup's own files go without saying.
func filesBelow(root string) ([]string, error) {
	var out []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if d.IsDir() && slices.Contains(passing, path) {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasPrefix(path, cgroupMount) {
			out = append(out, path)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list files below %q: %w", root, err)
	}
	return out, nil
}

// Diff returns a line for each thing that only one of the two has.
func (inv Inventory) Diff(later Inventory) []string {
	var out []string
	kinds := map[string]bool{}
	for k := range inv {
		kinds[k] = true
	}
	for k := range later {
		kinds[k] = true
	}
	for _, kind := range sortedKeys(kinds) {
		out = append(out, only("gone", kind, inv[kind], later[kind])...)
		out = append(out, only("new", kind, later[kind], inv[kind])...)
	}
	return out
}

func only(word, kind string, a, b []string) []string {
	have := map[string]int{}
	for _, s := range b {
		have[s]++
	}
	var out []string
	for _, s := range a {
		if have[s]--; have[s] < 0 {
			out = append(out, word+" "+kind+": "+s)
		}
	}
	return out
}

// Save writes the inventory for LoadInventory.
func (inv Inventory) Save(path string) error {
	raw, err := json.Marshal(inv)
	if err != nil {
		return fmt.Errorf("encode the inventory: %w", err)
	}
	return writeFile(path, raw, 0o644)
}

// LoadInventory reads what Save wrote.
func LoadInventory(path string) (Inventory, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the inventory: %w", err)
	}
	var inv Inventory
	if err := json.Unmarshal(raw, &inv); err != nil {
		return nil, fmt.Errorf("parse the inventory: %w", err)
	}
	return inv, nil
}
