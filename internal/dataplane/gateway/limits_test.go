package gateway

import (
	"testing"

	"github.com/causeway-mesh/causeway/internal/dataplane/budget"
)

func TestLimits(t *testing.T) {
	for _, tc := range []struct {
		why       string
		set, want Limits
		possible  int // by descriptors and memory
	}{
		{"values of 0 mean the default", Limits{}, Limits{50_000, 25_000}, 1 << 20},
		{"a link's share shrinks with the whole", Limits{}, Limits{4_000, 2_000}, 4_000},
		{"each value counts for itself", Limits{100_000, 70_000}, Limits{100_000, 70_000}, 1 << 20},
		{"memory bounds a link's share, too", Limits{100_000, 70_000}, Limits{4_000, 4_000}, 4_000},
	} {
		got := tc.set.resolve(func(most int, each budget.Cost) int {
			if each != connectionCost {
				t.Errorf("asked for connections of %+v", each)
			}
			return min(most, tc.possible)
		})
		if got != tc.want {
			t.Errorf("%s: %+v, want %+v", tc.why, got, tc.want)
		}
	}
}

// A link gets as many connections as an operator permits, and no more.
func TestSharesOfLimits(t *testing.T) {
	s := newShares(Limits{Connections: 100, ConnectionsPerLink: 70})
	n := 0
	for s.Acquire("u") {
		n++
	}
	if n != 70 {
		t.Errorf("a link gets %d connections of 100, want 70", n)
	}
}
