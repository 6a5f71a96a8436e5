package clusterinfo_test

import (
	"testing"

	"github.com/causeway-mesh/causeway/internal/clusterinfo"
	"github.com/causeway-mesh/causeway/internal/vipguard"
)

// TestVIPGuardUsesTheSamePorts compares numbers that vip-guard repeats, because it may
// not import any other package of the module.
func TestVIPGuardUsesTheSamePorts(t *testing.T) {
	got := []int{vipguard.HopPort, vipguard.FirstPort, vipguard.LastPort}
	want := []int{
		clusterinfo.AgentPort,
		clusterinfo.FirstListenerPort,
		clusterinfo.FirstListenerPort + clusterinfo.ListenerPorts - 1,
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("vip-guard's port is %d, want %d", got[i], want[i])
		}
	}
}
