package proc

import (
	"os"
	"testing"
)

func TestParseProcessCPU(t *testing.T) {
	cases := map[string]struct {
		why, stat string
		want      float64
		fails     bool
	}{
		"plain": {
			why:  "fields 14 and 15 count, in ticks of 10 ms",
			stat: "7 (envoy) S 1 7 7 0 -1 4194560 900 0 1 0 250 50 9 9 20 0 3 0 100 1 1",
			want: 3,
		},
		"name with parentheses": {
			why:  "a process may name its main thread as it likes",
			stat: "7 (a) b) c) S 1 7 7 0 -1 4194560 900 0 1 0 1 2 9 9 20 0 3 0 100 1 1",
			want: 0.03,
		},
		"short": {why: "a line that was cut off has no figure", stat: "7 (envoy) S 1 7", fails: true},
		"empty": {why: "an empty file has no figure", fails: true},
		"not digits": {
			why:   "a word is not a figure",
			stat:  "7 (x) S 1 7 7 0 -1 4 9 0 1 0 one 2 9 9 20",
			fails: true,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := parseProcessCPU(c.stat)
			if got != c.want || (err != nil) != c.fails {
				t.Errorf("parseProcessCPU = %v, %v; want %v, error %v: %s", got, err, c.want, c.fails, c.why)
			}
		})
	}
}

func TestParseMachineCPU(t *testing.T) {
	const stat = "cpu  100 10 50 9000 700 1 4 35 20 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n"
	if got, err := parseMachineCPU(stat); got != 2 || err != nil {
		t.Errorf("parseMachineCPU = %v, %v; want 2: idle, iowait and guest time are not busy time", got, err)
	}
	for _, bad := range []string{"", "cpu0 1 2 3 4 5 6 7 8\n", "cpu 1 2 x 4 5 6 7 8\n"} {
		if got, err := parseMachineCPU(bad); err == nil {
			t.Errorf("parseMachineCPU(%q) = %v, want an error", bad, got)
		}
	}
}

func TestParseKernel(t *testing.T) {
	const (
		meminfo = "MemTotal: 9999 kB\nSlab:  100 kB\nSReclaimable: 60 kB\n" +
			"KernelStack:  20 kB\nPageTables:  3 kB\n"
		sockstat = "sockets: used 9\nTCP: inuse 4 orphan 0 tw 0 alloc 6 mem 5\nUDP: inuse 1 mem 77\n"
	)
	if got, err := parseKernel(meminfo, sockstat, 4096); got != 143 || err != nil {
		t.Errorf("parseKernel = %v, %v; want 143 KiB: three lines of meminfo and five pages of TCP", got, err)
	}
	if _, err := parseKernel("Slab: 1 kB\n", sockstat, 4096); err == nil {
		t.Error("parseKernel without KernelStack: want an error")
	}
	if _, err := parseKernel(meminfo, "UDP: inuse 1 mem 77\n", 4096); err == nil {
		t.Error("parseKernel without TCP: want an error")
	}
}

func TestParseKiB(t *testing.T) {
	const status = "Name:\tVmRSS: 1 kB\nVmRSSx:\t2 kB\nVmRSS:\t  5136 kB\nThreads:\t5\n"
	if got, err := parseKiB(status, "VmRSS"); got != 5136 || err != nil {
		t.Errorf("parseKiB = %v, %v; want 5136", got, err)
	}
	if _, err := parseKiB(status, "Threads"); err == nil {
		t.Error("parseKiB of a line without a unit: want an error")
	}
}

func TestParseCgroupCPU(t *testing.T) {
	if got, err := parseCgroupCPU("usage_usec 2500000\nuser_usec 1\n"); got != 2.5 || err != nil {
		t.Errorf("parseCgroupCPU = %v, %v; want 2.5", got, err)
	}
	if _, err := parseCgroupCPU("user_usec 1\n"); err == nil {
		t.Error("parseCgroupCPU without usage: want an error")
	}
	if got, err := CgroupCPU("no-such-cgroup"); got != 0 || err != nil {
		t.Errorf("CgroupCPU of a cgroup that does not exist = %v, %v; want 0", got, err)
	}
}

// The parsers must agree with the kernel that they run on.
func TestThisMachine(t *testing.T) {
	if cpu, err := CPU(os.Getpid()); err != nil || cpu < 0 {
		t.Errorf("CPU = %v, %v", cpu, err)
	}
	if cpu, err := MachineCPU(); err != nil || cpu <= 0 {
		t.Errorf("MachineCPU = %v, %v", cpu, err)
	}
	if kib, err := Resident(os.Getpid()); err != nil || kib <= 0 {
		t.Errorf("Resident = %v, %v", kib, err)
	}
	if kib, err := Kernel(); err != nil || kib <= 0 {
		t.Errorf("Kernel = %v, %v", kib, err)
	}
	if _, err := SoftIRQThreads(); err != nil {
		t.Errorf("SoftIRQThreads: %v", err)
	}
}
