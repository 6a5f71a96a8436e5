package budget

import (
	"math"
	"testing"
)

func TestConnections(t *testing.T) {
	for _, tc := range []struct {
		why        string
		files      uint64
		most, each int
		want       int
	}{
		{"the usual limit of a container", 1 << 20, 20_000, 4, 20_000},
		{"no limit", math.MaxUint64, 20_000, 4, 20_000},
		{"just enough", 81_024, 20_000, 4, 20_000},
		{"a low limit", 20_000, 20_000, 4, 4_744},
		{"nearly nothing", 1_024, 20_000, 4, 1},
		{"nothing", 0, 20_000, 4, 1},
	} {
		if got := connections(tc.files, tc.most, tc.each); got != tc.want {
			t.Errorf("%s: %d, want %d", tc.why, got, tc.want)
		}
	}
	if got := Connections(10, 2); got < 1 || got > 10 {
		t.Errorf("this process may have %d of 10 connections", got)
	}
}
