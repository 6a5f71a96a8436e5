// Package proc reads from /proc what a benchmark charges to processes and to the machine:
// CPU time and memory.
//
// Linux counts CPU time in ticks of 10 ms, so a window in which a process uses 300 ms is
// known to 3 %.
package proc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// ticksPerSecond is 100 on every architecture that Go supports.
const ticksPerSecond = 100

// CPU returns the seconds that all threads of a process have used, in user and kernel
// mode.
func CPU(pid int) (float64, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return parseProcessCPU(string(raw))
}

// parseProcessCPU reads utime and stime, fields 14 and 15 of /proc/PID/stat. Field 2 is a
// name in parentheses, which may itself contain spaces and parentheses.
func parseProcessCPU(stat string) (float64, error) {
	_, rest, ok := cutLast(stat, ") ")
	f := strings.Fields(rest)
	if !ok || len(f) < 13 {
		return 0, fmt.Errorf("parse /proc/PID/stat: unexpected content %q", stat)
	}
	user, uerr := strconv.ParseFloat(f[11], 64)
	system, serr := strconv.ParseFloat(f[12], 64)
	if err := errors.Join(uerr, serr); err != nil {
		return 0, fmt.Errorf("parse /proc/PID/stat: %w", err)
	}
	return (user + system) / ticksPerSecond, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// MachineCPU returns the seconds that all processors together were not idle. Time that a
// hypervisor took from this machine is included, because no program here could use it.
func MachineCPU() (float64, error) {
	raw, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	return parseMachineCPU(string(raw))
}

// parseMachineCPU adds user, nice, system, irq, softirq and steal. It leaves out idle and
// iowait, and guest time, which is part of user time.
func parseMachineCPU(stat string) (float64, error) {
	line, _, _ := strings.Cut(stat, "\n")
	f := strings.Fields(line)
	if len(f) < 9 || f[0] != "cpu" {
		return 0, fmt.Errorf("parse /proc/stat: unexpected first line %q", line)
	}
	var sum float64
	for _, i := range []int{1, 2, 3, 6, 7, 8} {
		n, err := strconv.ParseFloat(f[i], 64)
		if err != nil {
			return 0, fmt.Errorf("parse /proc/stat: %w", err)
		}
		sum += n
	}
	return sum / ticksPerSecond, nil
}

// CgroupCPU returns the seconds that all processes of a top-level cgroup and of those below
// it have used. It is 0 if there is no such cgroup.
func CgroupCPU(name string) (float64, error) {
	// With cgroup v1 each controller has a hierarchy of its own.
	raw, err := os.ReadFile(filepath.Join("/sys/fs/cgroup/cpuacct", name, "cpuacct.usage"))
	if err == nil {
		ns, err := strconv.ParseFloat(strings.TrimSpace(string(raw)), 64)
		return ns / 1e9, err
	}
	raw, err = os.ReadFile(filepath.Join("/sys/fs/cgroup", name, "cpu.stat"))
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return parseCgroupCPU(string(raw))
}

// parseCgroupCPU finds a line such as "usage_usec 1234".
func parseCgroupCPU(stat string) (float64, error) {
	for line := range strings.Lines(stat) {
		if value, ok := strings.CutPrefix(line, "usage_usec "); ok {
			us, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			return us / 1e6, err
		}
	}
	return 0, errors.New("parse cpu.stat: no usage")
}

// SoftIRQThreads returns the ids of the kernel's threads that process packets when a
// processor has many of them. Their work belongs to the program that sends the packets.
func SoftIRQThreads() ([]int, error) {
	files, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return nil, err
	}
	var out []int
	for _, file := range files {
		name, err := os.ReadFile(file)
		if err != nil || !strings.HasPrefix(string(name), "ksoftirqd/") {
			continue // a process that has ended in the meantime is not one of them
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			return nil, err
		}
		out = append(out, pid)
	}
	return out, nil
}

// Resident returns the resident memory of a process in KiB.
func Resident(pid int) (float64, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	return parseKiB(string(raw), "VmRSS")
}

// Kernel returns the KiB that the kernel of this machine uses for what connections
// consist of: slabs, stacks, page tables, and the buffers of TCP sockets.
func Kernel() (float64, error) {
	meminfo, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	sockstat, err := os.ReadFile("/proc/net/sockstat")
	if err != nil {
		return 0, err
	}
	return parseKernel(string(meminfo), string(sockstat), os.Getpagesize())
}

func parseKernel(meminfo, sockstat string, pageSize int) (float64, error) {
	var sum float64
	for _, key := range []string{"Slab", "KernelStack", "PageTables"} {
		kib, err := parseKiB(meminfo, key)
		if err != nil {
			return 0, err
		}
		sum += kib
	}
	pages, err := parseTCPPages(sockstat)
	return sum + pages*float64(pageSize)/1024, err
}

// parseKiB finds a line such as "VmRSS:  1234 kB".
func parseKiB(content, key string) (float64, error) {
	for line := range strings.Lines(content) {
		name, value, _ := strings.Cut(line, ":")
		if name != key {
			continue
		}
		number, isKB := strings.CutSuffix(strings.TrimSpace(value), " kB")
		if !isKB {
			return 0, fmt.Errorf("parse %s: %q is not in kB", key, strings.TrimSpace(value))
		}
		return strconv.ParseFloat(number, 64)
	}
	return 0, fmt.Errorf("parse %s: no such line", key)
}

// parseTCPPages finds "mem N" in the line "TCP: inuse 4 orphan 0 tw 0 alloc 6 mem 1". The
// kernel counts these pages for all network namespaces together.
func parseTCPPages(sockstat string) (float64, error) {
	for line := range strings.Lines(sockstat) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] != "TCP:" {
			continue
		}
		for i := 1; i+1 < len(f); i += 2 {
			if f[i] == "mem" {
				return strconv.ParseFloat(f[i+1], 64)
			}
		}
	}
	return 0, errors.New("parse /proc/net/sockstat: no memory of TCP")
}
