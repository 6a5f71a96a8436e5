package parallelism

import (
	"context"
	"sync/atomic"
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
		var percent atomic.Int64 // of one processor
		percent.Store(10)
		start := time.Now()
		used := func() time.Duration { return time.Since(start) * time.Duration(percent.Load()) / 100 }
		set := make(chan int, 3)
		go run(ctx, 4, used, func(n int) { set <- n })
		bubble.Pass(2*calmIntervals*interval + interval/2)
		if n := len(set); n != 2 || <-set != 2 || <-set != 1 {
			t.Errorf("idle: %d changes, want to 2 and to 1", n)
		}
		percent.Store(300)
		bubble.Pass(interval)
		if n := len(set); n != 1 || <-set != 2 {
			t.Errorf("busy: %d changes, want to 2", n)
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
