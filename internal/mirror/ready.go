package mirror

import "time"

const (
	// downAfter is how long a source must be without ready endpoints before its
	// mirror says so.
	downAfter = 2 * time.Second
	// holdFirst is for how long a source that went down twice within calm must be
	// ready before its mirror says so. Each further time it doubles, to holdMost.
	holdFirst = 2 * time.Second
	holdMost  = 5 * time.Minute
	// calm is how long a restless source must have stayed as it is to be forgiven.
	calm = 5 * time.Minute
	// flapping is the hold from which on it is a problem.
	flapping = 4 * holdFirst
)

// flap is how restless a source has been. The zero value is calm. A first change
// is told fast; who changes again and again is held down, as routers hold down a
// flapping route, because each change is a write in every cluster that mirrors it.
type flap struct {
	since time.Time     // since when the source has differed from what is shown; zero: it does not
	moved time.Time     // when it, or what is shown, last changed; zero: long ago
	hold  time.Duration // how long it must be ready before that is shown
}

// settle decides what a mirror shows, which shows shown now, of a source that is
// ready or not. It returns what to show, what to remember, and if that may change
// by itself after how long to look again, 0 if it may not.
func (f flap) settle(shown, ready bool, now time.Time) (bool, flap, time.Duration) {
	if shown == ready {
		if f.moved.IsZero() {
			return shown, flap{}, 0
		}
		if !f.since.IsZero() {
			f.since, f.moved = time.Time{}, now
		}
		if left := calm - now.Sub(f.moved); left > 0 {
			return shown, f, left
		}
		return shown, flap{}, 0
	}
	if f.since.IsZero() {
		f.since = now
	}
	wait := downAfter
	if ready {
		wait = f.hold
	}
	if left := wait - now.Sub(f.since); left > 0 {
		return shown, f, left
	}
	if !ready {
		f.hold = f.next(now)
	}
	f.since, f.moved = time.Time{}, now
	return ready, f, calm
}

// next is the hold of a mirror that turns down now.
func (f flap) next(now time.Time) time.Duration {
	if f.moved.IsZero() || now.Sub(f.moved) >= calm {
		return 0
	}
	return min(max(2*f.hold, holdFirst), holdMost)
}
