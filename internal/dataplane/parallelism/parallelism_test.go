package parallelism

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/causeway-mesh/causeway/internal/bubble"
)

func TestLevel(t *testing.T) {
	for name, tc := range map[string]struct {
		why       string
		most, now int
		busy      float64
		intervals int
		want      int
	}{
		"busy":              {"a handshake storm must not wait", 8, 1, 0.9, 1, 2},
		"busy for long":     {"it may use all processors", 8, 1, 8, 3, 8},
		"all in use":        {"there are no more", 6, 4, 6, 5, 6},
		"a pause":           {"the load may come back", 8, 4, 0.1, calmIntervals - 1, 4},
		"idle":              {"half of them suffice", 8, 4, 0.1, calmIntervals, 2},
		"idle for long":     {"one suffices", 8, 8, 0.1, 10 * calmIntervals, 1},
		"between":           {"the number must not alternate", 8, 2, 0.6, 10 * calmIntervals, 2},
		"an odd number":     {"half of three is two", 3, 3, 0.1, calmIntervals, 2},
		"moderate with one": {"one is not busy yet", 8, 1, 0.6, calmIntervals, 1},
	} {
		l := level{most: tc.most, now: tc.now}
		for range tc.intervals {
			l.next(tc.busy)
		}
		if l.now != tc.want {
			t.Errorf("%s: %d processors, want %d: %s", name, l.now, tc.want, tc.why)
		}
	}
}

func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancel(t.Context())
		var got []int
		start, share := time.Now(), 0.1
		used := func() time.Duration { return time.Duration(share * float64(time.Since(start))) }
		go run(ctx, 4, used, func(n int) { got = append(got, n) })
		bubble.Pass(2*calmIntervals*interval + interval/2)
		if want := []int{2, 1}; !slices.Equal(got, want) {
			t.Errorf("idle: %v, want %v", got, want)
		}
		share = 3
		bubble.Pass(interval)
		if want := []int{2, 1, 2}; !slices.Equal(got, want) {
			t.Errorf("busy: %v, want %v", got, want)
		}
		end()
		bubble.Pass(interval)
	})
}

func TestUsedCPU(t *testing.T) {
	before := usedCPU()
	for usedCPU() == before { // ends, because reading the time uses some
	}
}
