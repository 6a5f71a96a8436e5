// Package parallelism lets a process run Go code on no more processors than its load
// needs.
//
//	CPU time of the process ─▶ level ─▶ runtime.GOMAXPROCS
//
// If a goroutine becomes ready while the scheduler has an idle processor, Go wakes a thread
// for it. In a proxy that thread mostly finds nothing, because the goroutine that made
// the other one ready waits at once, and its own thread goes on with the other. Waking and
// waiting then cost more CPU time than the work. With one processor there is no idle one.
//
// What always holds:
//   - A process that uses most of what it has gets twice as much within 100 ms, up to what
//     Go would use without this package.
//   - The environment variable GOMAXPROCS turns this package off.
package parallelism

import (
	"context"
	"os"
	"runtime"
	"syscall"
	"time"
)

const (
	// interval is the time between two measurements.
	interval = 100 * time.Millisecond
	// growAbove is the share of the processors' time that makes the process get more.
	growAbove = 0.7
	// shrinkBelow is the share of half of the processors' time below which half of them
	// suffice. It is smaller than growAbove, so that the number does not alternate.
	shrinkBelow = 0.5
	// calmIntervals is for how many intervals in a row half must have sufficed.
	calmIntervals = 20
)

// Run adapts GOMAXPROCS until ctx ends. Then it restores what it has found.
func Run(ctx context.Context) {
	most := runtime.GOMAXPROCS(0)
	if os.Getenv("GOMAXPROCS") != "" || most == 1 {
		return
	}
	defer runtime.GOMAXPROCS(most)
	run(ctx, most, usedCPU, func(n int) { runtime.GOMAXPROCS(n) })
}

// run is Run with its environment: used returns the CPU time of the process so far, and
// set sets the number of processors.
func run(ctx context.Context, most int, used func() time.Duration, set func(int)) {
	l := level{most: most, now: most}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	at, before := time.Now(), used()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now, after := time.Now(), used()
		busy := float64(after-before) / float64(now.Sub(at))
		at, before = now, after
		if old := l.now; l.next(busy) != old {
			set(l.now)
		}
	}
}

// usedCPU returns the CPU time of the process.
func usedCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0 // it cannot fail with these arguments
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// A level is how many processors a process has.
type level struct {
	most, now int
	calm      int // intervals in a row for which half of now would have sufficed
}

// next returns how many processors the process gets, after an interval in which it has
// used busy processors on average.
func (l *level) next(busy float64) int {
	half := (l.now + 1) / 2
	switch {
	case busy > growAbove*float64(l.now):
		l.now, l.calm = min(2*l.now, l.most), 0
	case half == l.now || busy >= shrinkBelow*float64(half):
		l.calm = 0
	case l.calm+1 < calmIntervals:
		l.calm++
	default:
		l.now, l.calm = half, 0
	}
	return l.now
}
