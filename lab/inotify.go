package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// A kubelet, an API server and a controller manager watch files. The kernel allows each user 128 inotify instances unless told otherwise, on the
// whole machine: a user namespace's own allowance comes out of its parent's. Seven clusters need more, and a kubelet that gets none ends.
const (
	instancesPerControlPlane = 11 // the API server 6, the controller manager 5
	instancesPerNode         = 8  // the kubelet 6, containerd 1, one while somebody reads a log
	instancesToSpare         = 16
	// manyInstances is what `up` asks for when there is too little: room for some fifty clusters.
	manyInstances = 1024

	instancesSetting = "fs.inotify.max_user_instances"
)

// allowance is the machine's number of inotify instances: the one kernel setting of the machine's own that a lab changes, and puts back.
type allowance struct {
	setting string // the kernel's file
	record  string // holds what it was and what it was made; gone after a reboot, as the change is
}

// machineAllowance is this machine's.
var machineAllowance = allowance{setting: "/proc/sys/fs/inotify/max_user_instances", record: "/run/causeway-lab.inotify"}

// wantInstances returns how many inotify instances the machine should allow: as many as it does, if there is room for what is about to start.
func wantInstances(allowed, used, controlPlanes, nodes int) int {
	need := used + instancesPerControlPlane*controlPlanes + instancesPerNode*nodes + instancesToSpare
	if need <= allowed {
		return allowed
	}
	return max(manyInstances, 2*need)
}

// makeRoom raises the machine's allowance if the clusters that are about to start need more. Where that is forbidden it says so and goes on: what
// ends for lack of it says so again. From then on until Down this lab counts as one that needs it.
func (l *Lab) makeRoom(ctx context.Context) error {
	unlock, err := lockSocket(ctx, inotifyLock)
	if err != nil {
		return err
	}
	defer unlock()
	if err := l.cgroups.ensure(l.names.prefix()); err != nil {
		return err
	}
	allowed, err := machineAllowance.read()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a kernel without the setting
	}
	if err != nil {
		return err
	}
	controlPlanes, nodes := l.toStart()
	used := inotifyInstances("/proc")
	want := wantInstances(allowed, used, controlPlanes, nodes)
	if want == allowed {
		return nil
	}
	if err := machineAllowance.raise(want); err != nil {
		l.progress(fmt.Sprintf("this machine allows %d inotify instances, %d are in use and more are needed, and the lab may not raise that (%v): run `sysctl -w %s=%d` where it may be",
			allowed, used, err, instancesSetting, want))
		return nil
	}
	l.progress(fmt.Sprintf("raised %s from %d to %d until no lab is left", instancesSetting, allowed, want))
	return nil
}

// toStart counts what of the plan does not run yet.
func (l *Lab) toStart() (controlPlanes, nodes int) {
	for _, c := range l.Clusters() {
		if !l.cgroups.populated(c.apiServer().cgroup) {
			controlPlanes++
		}
		for i := 1; i <= c.plan.Nodes; i++ {
			if !l.cgroups.populated(c.node(i).cgroup("kubelet")) {
				nodes++
			}
		}
	}
	return controlPlanes, nodes
}

// giveRoomBack puts the machine's allowance back after the last lab. This lab's cgroups must be gone.
func (l *Lab) giveRoomBack(ctx context.Context) error {
	unlock, err := lockSocket(ctx, inotifyLock)
	if err != nil {
		return err
	}
	defer unlock()
	others, err := filepath.Glob(filepath.Join(l.cgroups.tracking, cgroupPrefix+"*"))
	if err != nil || len(others) > 0 {
		return err
	}
	return machineAllowance.restore()
}

// inotifyLock is held by whoever asks which labs there are and changes the allowance by the answer. No lab's name has a slash.
const inotifyLock = "@causeway-lab/inotify"

func (a allowance) read() (int, error) {
	raw, err := os.ReadFile(a.setting)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", instancesSetting, err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", instancesSetting, err)
	}
	return n, nil
}

// raise writes down what the setting was, unless an earlier raise has, and then changes it.
func (a allowance) raise(want int) error {
	now, err := a.read()
	if err != nil {
		return err
	}
	was, made, ok := a.recorded()
	if !ok || made != now {
		was = now
	}
	if err := a.write(was, want); err != nil {
		return err
	}
	// In place: the kernel's files are written to, not replaced.
	if err := os.WriteFile(a.setting, fmt.Appendf(nil, "%d\n", want), 0o644); err != nil {
		return errors.Join(err, a.write(was, now))
	}
	return nil
}

// restore puts the setting back to what it was before the first raise, unless somebody else has changed it since.
func (a allowance) restore() error {
	was, made, ok := a.recorded()
	if !ok {
		return nil
	}
	if now, err := a.read(); err == nil && now == made {
		if err := os.WriteFile(a.setting, fmt.Appendf(nil, "%d\n", was), 0o644); err != nil {
			return fmt.Errorf("put %s back to %d: %w", instancesSetting, was, err)
		}
	}
	if err := os.Remove(a.record); err != nil {
		return fmt.Errorf("put %s back to %d: %w", instancesSetting, was, err)
	}
	return nil
}

func (a allowance) write(was, made int) error {
	return writeFile(a.record, fmt.Appendf(nil, "%d %d\n", was, made), 0o644)
}

func (a allowance) recorded() (was, made int, ok bool) {
	raw, err := os.ReadFile(a.record)
	if err != nil {
		return 0, 0, false
	}
	n, _ := fmt.Sscan(string(raw), &was, &made)
	return was, made, n == 2
}

// inotifyInstances counts those of all processes, by their open files. One that several processes share counts for each.
func inotifyInstances(proc string) int {
	files, _ := filepath.Glob(filepath.Join(proc, "[0-9]*", "fd", "*"))
	n := 0
	for _, f := range files {
		if to, err := os.Readlink(f); err == nil && to == "anon_inode:inotify" {
			n++
		}
	}
	return n
}

// shortage is what to add to the report of a process that ended or hangs, when the machine has no inotify instances left to give.
func shortage(allowed, used int) string {
	if allowed <= 0 || used+instancesPerNode < allowed {
		return ""
	}
	return fmt.Sprintf("\n%d of the %d inotify instances that this machine allows are in use: run `sysctl -w %s=%d` where it may be, and `lab up` again",
		used, allowed, instancesSetting, max(manyInstances, 2*allowed))
}

// shortageHere is shortage on this machine now.
func shortageHere() string {
	allowed, err := machineAllowance.read()
	if err != nil {
		return ""
	}
	return shortage(allowed, inotifyInstances("/proc"))
}
