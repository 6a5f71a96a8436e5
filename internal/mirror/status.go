package mirror

import (
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/causeway-mesh/causeway/internal/catalog"
)

const (
	// maxProblems bounds the problems of a LinkStatus.
	maxProblems = 64
	// statusInterval is the shortest time between two calls of OnStatus for a Link.
	statusInterval = 100 * time.Millisecond
)

// LinkStatus is how far the mirrors of a Link are.
type LinkStatus struct {
	// Wanted is the number of mirrors that should stand.
	Wanted int
	// Mirrors is the number of them that stand.
	Mirrors int
	// Pending is the number of mirrors for which something is still to be written or
	// deleted.
	Pending int
	// Blocked is the number of mirrors that a user must unblock.
	Blocked int
	// Problems are sorted, and at most 64. LeftOut is the number of further problems.
	Problems []Problem
	LeftOut  int
}

// Status returns the status of a Link; the zero LinkStatus if the Link is not known.
func (w *Writer) Status(link string) LinkStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.links[link]
	if l == nil {
		return LinkStatus{}
	}
	r := &l.report
	out := LinkStatus{Wanted: r.wanted, Mirrors: r.standing, Pending: r.pending, Blocked: r.blocked}
	if l.scope.Complete {
		out.Pending += r.excess
	}
	if l.adopting {
		out.Pending++
	}
	for m := range r.troubled {
		out.Problems = append(out.Problems, m.problems...)
	}
	catalog.SortProblems(out.Problems)
	out.Problems = slices.Compact(out.Problems)
	if n := len(out.Problems) - maxProblems; n > 0 {
		out.Problems, out.LeftOut = slices.Clip(out.Problems[:maxProblems]), n
	}
	return out
}

// report is the status of a Link, kept up to date with every mirror that changes.
type report struct {
	wanted, standing, pending, blocked int
	// excess is the number of mirrors that stand and are not wanted.
	excess   int
	troubled map[*mirrorState]bool // mirrors with problems
	reasons  map[string]int        // problems by reason
	queued   prometheus.Gauge      // nil: not shown
	last     time.Time             // when OnStatus was last called
}

func newReport(queued prometheus.Gauge) report {
	return report{queued: queued, troubled: make(map[*mirrorState]bool), reasons: make(map[string]int)}
}

func (r *report) showQueue(length int) {
	if r.queued != nil {
		r.queued.Set(float64(length))
	}
}

// account adds m to the report (sign +1) or takes it out (-1). Callers take a mirror out
// before they change it, and add it again afterwards.
func (l *linkState) account(m *mirrorState, sign int) {
	r := &l.report
	switch {
	case m.want == nil && m.standing:
		r.excess += sign
	case m.want != nil:
		r.wanted += sign
		r.standing += sign * number(m.standing)
		r.pending += sign * number(m.pending)
	}
	r.blocked += sign * number(m.blocked)
	if len(m.problems) > 0 {
		if sign > 0 {
			r.troubled[m] = true
		} else {
			delete(r.troubled, m)
		}
		for _, p := range m.problems {
			r.reasons[p.Reason] += sign
		}
	}
	l.pace()
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

// pace decides whether deletions are paced: if more than 10 mirrors and more than a fifth
// of those that stand are going to be deleted.
func (l *linkState) pace() {
	r := &l.report
	l.mass = l.scope != nil && l.scope.Complete && r.excess > 10 && r.excess*5 > r.standing+r.excess
}

// changed notes that the status of a Link may be another.
func (w *Writer) changed(l *linkState) {
	if !w.unreported[l] {
		w.unreported[l] = true
		w.signal()
	}
}

// notify calls OnStatus for Links whose status has changed. It returns after how long to
// call it again; 0: no need.
func (w *Writer) notify(now time.Time) time.Duration {
	var due []string
	var wait time.Duration
	w.mu.Lock()
	for l := range w.unreported {
		left := statusInterval - now.Sub(l.report.last)
		if left > 0 {
			wait = sooner(wait, left)
			continue
		}
		l.report.last = now
		delete(w.unreported, l)
		if !l.removed {
			due = append(due, l.name)
			w.Metrics.show(l.name, l.report.reasons)
		}
	}
	w.mu.Unlock()
	slices.Sort(due)
	for _, name := range due {
		w.OnStatus(name)
	}
	return wait
}
