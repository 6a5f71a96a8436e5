package parallelism

import (
	"context"
	"runtime"
	"sync"
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
		late      bool
		intervals int
		want      int
	}{
		"busy":              {"a handshake storm must not wait", 8, 1, 0.9, false, 1, 2},
		"busy for long":     {"it may use all processors", 8, 1, 8, false, 3, 8},
		"all in use":        {"there are no more", 6, 4, 6, false, 5, 6},
		"starved":           {"the node gives its one thread half a core", 8, 1, 0.5, true, 1, 2},
		"starved for long":  {"more threads get more of the node", 8, 1, 0.5, true, 3, 8},
		"starved and calm":  {"half of them does not suffice", 8, 4, 0.1, true, calmIntervals, 8},
		"a pause":           {"the load may come back", 8, 4, 0.1, false, calmIntervals - 1, 4},
		"idle":              {"half of them suffice", 8, 4, 0.1, false, calmIntervals, 2},
		"idle for long":     {"one suffices", 8, 8, 0.1, false, 10 * calmIntervals, 1},
		"between":           {"the number must not alternate", 8, 2, 0.6, false, 10 * calmIntervals, 2},
		"an odd number":     {"half of three is two", 3, 3, 0.1, false, calmIntervals, 2},
		"moderate with one": {"one is not busy yet", 8, 1, 0.6, false, 1, 1},
		"only one":          {"there are no more", 1, 1, 1, true, 3, 1},
	} {
		l := level{most: tc.most, now: tc.now}
		for range tc.intervals {
			l.next(tc.busy, tc.late)
		}
		if l.now != tc.want {
			t.Errorf("%s: %d processors, want %d: %s", name, l.now, tc.want, tc.why)
		}
	}
}

func TestIsLate(t *testing.T) {
	for name, tc := range map[string]struct {
		late, all uint64
		want      bool
	}{
		"none":           {0, 0, false},
		"few":            {minLate - 1, minLate, false},
		"enough":         {minLate, minLate, true},
		"a small share":  {100, 1000, false},
		"a larger share": {101, 1000, true},
	} {
		if got := (waits{late: tc.late, all: tc.all}).isLate(); got != tc.want {
			t.Errorf("%s: %d of %d: %v, want %v", name, tc.late, tc.all, got, tc.want)
		}
	}
}

// fakeProcess is a process with a settable load.
type fakeProcess struct {
	percent atomic.Int64 // used of one processor
	late    atomic.Int64 // waits in each interval
	most    atomic.Int64
	set     chan int
}

func (f *fakeProcess) start(ctx context.Context) {
	start := time.Now()
	var all waits
	go run(ctx, process{
		used: func() time.Duration { return time.Since(start) * time.Duration(f.percent.Load()) / 100 },
		waits: func() waits {
			n := uint64(f.late.Load())
			all.late, all.all = all.late+n, all.all+n+1
			return all
		},
		most: func() int { return int(f.most.Load()) },
		set:  func(n int) { f.set <- n },
	})
}

// expect fails the test unless the process was set to numbers.
func (f *fakeProcess) expect(t *testing.T, why string, numbers ...int) {
	t.Helper()
	for _, want := range numbers {
		select {
		case got := <-f.set:
			if got != want {
				t.Errorf("%s: %d processors, want %d", why, got, want)
			}
		default:
			t.Errorf("%s: no change, want %d processors", why, want)
		}
	}
	if n := len(f.set); n > 0 {
		t.Fatalf("%s: %d more changes, first to %d", why, n, <-f.set)
	}
}

func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancel(t.Context())
		f := &fakeProcess{set: make(chan int, 10)}
		f.percent.Store(10)
		f.most.Store(4)
		f.start(ctx)
		bubble.Pass(2*calmIntervals*interval + interval/2)
		f.expect(t, "idle", 2, 1)
		f.late.Store(10)
		bubble.Pass(interval)
		f.expect(t, "starved", 2)
		f.late.Store(0)
		f.percent.Store(300)
		bubble.Pass(interval)
		f.expect(t, "busy", 4)
		end()
		bubble.Pass(interval)
	})
}

// TestRunFollowsLimit: the container's CPU limit can change in place.
func TestRunFollowsLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancel(t.Context())
		f := &fakeProcess{set: make(chan int, 10)}
		f.percent.Store(100_000)
		f.most.Store(2)
		f.start(ctx)
		bubble.Pass(time.Minute - interval/2)
		f.expect(t, "before it is read again")
		f.most.Store(4)
		bubble.Pass(interval)
		f.expect(t, "a greater limit", 4)
		f.most.Store(1)
		bubble.Pass(time.Minute)
		f.expect(t, "a smaller limit", 1)
		end()
		bubble.Pass(interval)
	})
}

// TestOverloaded: goroutines of an overloaded process wait although it has all processors.
func TestOverloaded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancel(t.Context())
		f := &fakeProcess{set: make(chan int, 10)}
		f.percent.Store(10)
		f.most.Store(2)
		f.start(ctx)
		want := func(why string, want bool) {
			t.Helper()
			if got := Overloaded(); got != want {
				t.Errorf("%s: overloaded: %v, want %v", why, got, want)
			}
		}
		bubble.Pass(2*calmIntervals*interval + interval/2)
		f.expect(t, "idle", 1)
		f.late.Store(10)
		bubble.Pass(interval)
		f.expect(t, "starved", 2)
		want("it gets another processor", false)
		bubble.Pass(interval)
		want("it has all", true)
		f.late.Store(0)
		bubble.Pass(interval)
		want("nothing waits", false)
		f.late.Store(10)
		bubble.Pass(interval)
		want("something waits again", true)
		end()
		bubble.Pass(interval)
		want("nothing is measured", false)
	})
}

func TestUsedCPU(t *testing.T) {
	before := usedCPU()
	for usedCPU() == before { // ends, because reading the time uses some
	}
}

// TestLatencies: goroutines that are ready and wait for the only processor are late.
func TestLatencies(t *testing.T) {
	runtime.GOMAXPROCS(1)
	defer runtime.SetDefaultGOMAXPROCS()
	var l latencies
	before := l.read()
	for deadline := time.Now().Add(10 * time.Second); ; {
		var all sync.WaitGroup
		for range 100 {
			all.Go(func() {
				for end := usedCPU() + 200*time.Microsecond; usedCPU() < end; {
				}
			})
		}
		all.Wait()
		after := l.read()
		if (waits{late: after.late - before.late, all: after.all - before.all}).isLate() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%+v, and before %+v", after, before)
		}
	}
}

func BenchmarkLatencies(b *testing.B) {
	var l latencies
	b.ReportAllocs()
	for b.Loop() {
		l.read()
	}
}
