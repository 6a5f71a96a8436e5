package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// ProcessStatus is one process that a cluster should have.
type ProcessStatus struct {
	Name    string // like "west/cp/etcd" or "west/west-1/kubelet"; pods of a node are one line
	Running bool
	PIDs    []int
	RSS     uint64 // bytes, shared pages counted in each process
	PSS     uint64 // bytes, shared pages divided among those that share them
}

// Processes says what of the lab runs, in a steady order.
func (l *Lab) Processes() []ProcessStatus {
	var out []ProcessStatus
	for _, c := range l.Clusters() {
		for _, d := range []daemon{c.etcd(), c.apiServer(), c.controllerManager(), c.scheduler(), c.cloud()} {
			out = append(out, l.processStatus(d.cgroup))
		}
		for i := 1; i <= c.plan.Nodes; i++ {
			for _, name := range []string{"holder", "containerd", "kubelet", "kube-proxy", "pods"} {
				out = append(out, l.processStatus(c.node(i).cgroup(name)))
			}
		}
	}
	return out
}

func (l *Lab) processStatus(cgroup string) ProcessStatus {
	name, _ := filepath.Rel(l.names.prefix(), cgroup)
	s := ProcessStatus{Name: name, PIDs: l.cgroups.procs(cgroup)}
	s.Running = len(s.PIDs) > 0
	for _, pid := range s.PIDs {
		s.RSS += memory(pid, "Rss:")
		s.PSS += memory(pid, "Pss:")
	}
	return s
}

// memory reads one line of a process's smaps_rollup; 0 for a process that has ended.
func memory(pid int, key string) uint64 {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0
	}
	for _, line := range strings.Split(string(raw), "\n") {
		f := strings.Fields(line)
		if len(f) == 3 && f[0] == key {
			kb, _ := strconv.ParseUint(f[1], 10, 64)
			return kb * 1024
		}
	}
	return 0
}
