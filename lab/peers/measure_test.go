package main

import (
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-mesh/causeway/lab/peers/traffic"
)

func TestOthers(t *testing.T) {
	r := traffic.Result{
		Seconds: 2,
		Machine: 4,
		LoadCPU: 0.5,
		Cgroup:  1,
		CPU:     map[int]float64{7: 1, 8: 0.5, 9: 0.25},
	}
	if got := others(r, []int{7, 8}, 2); got != 0.25 {
		t.Errorf("others = %v, want 0.25: one second of four was used by others", got)
	}
	r.Machine = 1.9 // ticks are coarse
	if got := others(r, []int{7, 8}, 2); got != 0 {
		t.Errorf("others = %v, want 0", got)
	}
}

func TestWindowFigures(t *testing.T) {
	w := window{
		Result: traffic.Result{Seconds: 2, Operations: 100, Bytes: 5e9},
		CPU:    map[string]float64{roleA: 1, roleGateway: 0.5, roleB: 2},
		Memory: &memory{Resident: map[string]float64{roleA: 10, roleB: 20}},
	}
	for what, c := range map[string]struct{ got, want float64 }{
		"connections per second": {w.rate(), 50},
		"Gbit/s":                 {w.gbits(), 20},
		"µs for each operation":  {w.cpuPerOperation(), 35000},
		"seconds for each GB":    {w.cpuPerGB(roleA, roleGateway, roleB), 0.7},
		"of the gateway":         {w.cpuPerGB(roleGateway), 0.1},
		"resident":               {w.residentKiB(roleA, roleGateway, roleB), 30},
	} {
		if math.Abs(c.got-c.want) > 1e-9 {
			t.Errorf("%s: %v, want %v", what, c.got, c.want)
		}
	}
	var direct window
	direct.Memory = &memory{}
	for what, v := range map[string]float64{
		"operation":  direct.cpuPerOperation(),
		"GB":         direct.cpuPerGB(roleA),
		"connection": direct.residentKiB(roleA),
	} {
		if !math.IsNaN(v) {
			t.Errorf("a chain without proxies costs %v for each %s, want NaN", v, what)
		}
	}
}

func TestMemorySince(t *testing.T) {
	before := memory{Resident: map[string]float64{roleA: 100, roleB: 50}, Kernel: 1000}
	after := memory{Resident: map[string]float64{roleA: 300, roleB: 50}, Kernel: 1400}
	want := memory{Resident: map[string]float64{roleA: 20, roleB: 0}, Kernel: 40}
	if diff := cmp.Diff(want, after.since(before, 10)); diff != "" {
		t.Errorf("since (-want +got):\n%s", diff)
	}
}

func TestJoinInts(t *testing.T) {
	if got := joinInts([]int{30, 4, 30}); got != "4,30" {
		t.Errorf("joinInts = %q, want each process once", got)
	}
}
