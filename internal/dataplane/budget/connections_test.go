package budget

import (
	"math"
	"testing"
)

func TestConnections(t *testing.T) {
	cost := Cost{Descriptors: 4, Memory: 64 << 10}
	for _, tc := range []struct {
		why           string
		files, memory uint64
		want          int
	}{
		{"the usual limit of a container", 1 << 20, 16 << 30, 20_000},
		{"no limit", math.MaxUint64, math.MaxUint64, 20_000},
		{"just enough", 81_024, 20_000 * 128 << 10, 20_000},
		{"few files", 20_000, 16 << 30, 4_744},
		{"few files and little memory", 20_000, 256 << 20, 2_048},
		{"little memory", 1 << 20, 512 << 20, 4_096},
		{"90 % of 256 Mi", 1 << 20, 241_591_910, 1_843},
		{"nearly no files", 1_024, 16 << 30, 1},
		{"nothing", 0, 0, 1},
	} {
		if got := connections(tc.files, tc.memory, 20_000, cost); got != tc.want {
			t.Errorf("%s: %d, want %d", tc.why, got, tc.want)
		}
	}
	if got := Connections(10, cost); got < 1 || got > 10 {
		t.Errorf("this process may have %d of 10 connections", got)
	}
}
