// Package parallelism lets a process run Go code on no more processors than its load
// needs.
//
//	CPU time of the process ──┐
//	goroutines that wait ─────┼─▶ level ─▶ runtime.GOMAXPROCS
//	Go's own default ─────────┘
//
// If a goroutine becomes ready while the scheduler has an idle processor, Go wakes a thread
// for it. In a proxy that thread mostly finds nothing, because the goroutine that made
// the other one ready waits at once, and its own thread goes on with the other. Waking and
// waiting then cost more CPU time than the work. With one processor there is no idle one.
//
// What always holds:
//   - A process that uses most of what it has gets twice as much within 100 ms, up to what
//     Go would use without this package.
//   - So does a process whose goroutines wait to run. On a busy node a process can get too
//     little CPU time to seem busy.
//   - A changed CPU limit of the container has effect within a minute.
//   - The environment variable GOMAXPROCS turns this package off.
package parallelism

import (
	"context"
	"os"
	"runtime"
	"runtime/metrics"
	"sync/atomic"
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
	// mostIntervals is after how many intervals Go's default is read again.
	mostIntervals = int(time.Minute / interval)

	// lateAfter is the wait, in seconds, after which a goroutine that is ready is late.
	lateAfter = 1e-3
	// lateShare is the share of late goroutines that makes the process get more.
	lateShare = 0.1
	// minLate is the least number of late goroutines that count. Go measures one of
	// eight waits, so a few late ones of an idle process say nothing.
	minLate = 3
)

// Run adapts GOMAXPROCS until ctx ends. Then it restores Go's default.
func Run(ctx context.Context) {
	if os.Getenv("GOMAXPROCS") != "" {
		return
	}
	defer runtime.SetDefaultGOMAXPROCS()
	var l latencies
	run(ctx, process{
		used:  usedCPU,
		waits: l.read,
		most: func() int {
			runtime.SetDefaultGOMAXPROCS()
			return runtime.GOMAXPROCS(0)
		},
		set: func(n int) { runtime.GOMAXPROCS(n) },
	})
}

// overloaded is what Overloaded returns.
var overloaded atomic.Bool

// Overloaded reports whether goroutines of the process waited for a processor in the last
// interval, although the process could run on as many processors as Go would use. It is
// false unless Run is running.
func Overloaded() bool { return overloaded.Load() }

// process is what run measures and changes.
type process struct {
	// used returns the CPU time so far.
	used func() time.Duration
	// waits returns how many waits of goroutines were measured so far.
	waits func() waits
	// most returns how many processors Go would use. It may change the number, so set
	// must follow.
	most func() int
	// set sets the number of processors.
	set func(int)
}

// run is Run for a process.
func run(ctx context.Context, p process) {
	defer overloaded.Store(false)
	most := p.most()
	l := level{most: most, now: most}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	at, used, waited := time.Now(), p.used(), p.waits()
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now, usedNow, waitedNow := time.Now(), p.used(), p.waits()
		busy := float64(usedNow-used) / float64(now.Sub(at))
		late := waits{late: waitedNow.late - waited.late, all: waitedNow.all - waited.all}.isLate()
		overloaded.Store(late && l.now == l.most)
		at, used, waited = now, usedNow, waitedNow
		old := l.now
		reread := n%mostIntervals == 0
		if reread {
			l.setMost(p.most())
		}
		if l.next(busy, late) != old || reread {
			p.set(l.now)
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

// waits counts waits of goroutines that were ready to run.
type waits struct{ late, all uint64 }

// isLate reports whether goroutines wait for a processor.
func (w waits) isLate() bool { return w.late >= minLate && float64(w.late) > lateShare*float64(w.all) }

// latencies reads the waits of the process's goroutines. It reuses its memory. The zero
// value is ready to use.
type latencies struct{ sample [1]metrics.Sample }

func (l *latencies) read() (w waits) {
	l.sample[0].Name = "/sched/latencies:seconds"
	metrics.Read(l.sample[:])
	if l.sample[0].Value.Kind() != metrics.KindFloat64Histogram {
		return waits{} // Go no longer has this metric
	}
	h := l.sample[0].Value.Float64Histogram()
	for i, n := range h.Counts {
		w.all += n
		if h.Buckets[i] >= lateAfter {
			w.late += n
		}
	}
	return w
}

// A level is how many processors a process has.
type level struct {
	most, now int
	calm      int // intervals in a row for which half of now would have sufficed
}

// setMost sets the greatest level.
func (l *level) setMost(most int) {
	l.most = most
	l.now = min(l.now, most)
}

// next returns how many processors the process gets, after an interval in which it has
// used busy processors on average. late is whether its goroutines have waited for one.
func (l *level) next(busy float64, late bool) int {
	half := (l.now + 1) / 2
	switch {
	case late, busy > growAbove*float64(l.now):
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
