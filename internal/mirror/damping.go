package mirror

import (
	"slices"
	"time"
)

const (
	// downAfter is how long a source must be without ready endpoints before its mirror
	// shows that.
	downAfter = 2 * time.Second
	// flapCount is how many times within flapWindow a mirror must have been shown down
	// for its source to be flapping.
	flapCount  = 3
	flapWindow = time.Minute
	// holdDown is how long the mirror of a flapping source is shown down at least.
	holdDown = 5 * time.Second
	// contentBurst is how many changes of its content a mirror shows without a delay.
	// After these it shows at most one per contentInterval.
	contentBurst    = 4
	contentInterval = 5 * time.Second
)

// damper decides when a mirror shows a change of its source's readiness. Each change is a
// write in every cluster that mirrors the source. The zero value has seen no change.
//
// A mirror is shown down after downAfter without ready endpoints, and up at once. While
// its source flaps it stays down for holdDown at least. Damping therefore costs callers
// no more than the source's own outages and holdDown each time, and a mirror that flaps
// is written twice (down and up) per holdDown+downAfter at most.
type damper struct {
	// downs are the times at which the mirror was last shown down, oldest first.
	downs [flapCount]time.Time
	// since is when the source lost its last ready endpoint; zero: it is ready.
	since time.Time
}

// decide returns what to show of a source that is ready or not, if the mirror shows
// shown, and after how long that may change though nothing happens; 0: never.
func (d *damper) decide(shown, ready bool, now time.Time) (show bool, again time.Duration) {
	if ready {
		d.since = time.Time{}
		if shown || d.downs[0].IsZero() || d.last().Sub(d.downs[0]) >= flapWindow {
			return true, 0
		}
		left := holdDown - now.Sub(d.last())
		return left <= 0, max(left, 0)
	}
	if d.since.IsZero() {
		d.since = now
	}
	if !shown {
		return false, 0
	}
	left := downAfter - now.Sub(d.since)
	return left > 0, max(left, 0)
}

// wentDown records that the mirror has been shown down.
func (d *damper) wentDown(now time.Time) {
	copy(d.downs[:], d.downs[1:])
	d.downs[flapCount-1] = now
}

// last is when the mirror was last shown down.
func (d *damper) last() time.Time { return d.downs[flapCount-1] }

// calmAfter returns how long the source still counts as flapping; 0: it does not flap.
func (d *damper) calmAfter(now time.Time) time.Duration {
	if d.downs[0].IsZero() {
		return 0
	}
	return max(flapWindow-now.Sub(d.downs[0]), 0)
}

// contentLimit is a token bucket for the changes of one mirror's content: its ports,
// labels and annotations. Each change costs writes in every cluster that mirrors the
// source. A change that is held is written later, unless a newer one replaces it. The
// zero value is a full bucket.
type contentLimit struct {
	// full is the time at which the bucket is full again.
	full time.Time
	// held means that a change was held since the bucket was last full.
	held bool
}

// hold returns the changes to make now, and after how long the others may be made. The
// duration is 0 if no change is held. If one of the changes is urgent, hold returns all
// of them, because the objects of a mirror must be consistent.
func (l *contentLimit) hold(changes []Change, now time.Time) ([]Change, time.Duration) {
	wait := max(l.full.Sub(now), 0) - (contentBurst-1)*contentInterval
	if wait <= 0 || !slices.ContainsFunc(changes, Change.isContent) ||
		slices.ContainsFunc(changes, Change.isUrgent) {
		return changes, 0
	}
	l.held = true
	return slices.DeleteFunc(changes, Change.isContent), wait
}

// wrote records the changes that were made. If one of them changed content, it takes a
// token from the bucket, unless the bucket is empty.
func (l *contentLimit) wrote(made []Change, now time.Time) {
	if !slices.ContainsFunc(made, Change.isContent) {
		return
	}
	if l.full.Before(now) {
		l.full = now
	}
	l.full = l.full.Add(contentInterval)
	if empty := now.Add(contentBurst * contentInterval); l.full.After(empty) {
		l.full = empty
	}
}

// heldFor returns how long the mirror is still reported as ChangesTooOften, and 0 if it
// is not. It is reported from the first change that is held until the bucket is full.
func (l *contentLimit) heldFor(now time.Time) time.Duration {
	left := max(l.full.Sub(now), 0)
	l.held = l.held && left > 0
	if !l.held {
		return 0
	}
	return left
}

// sooner returns the shorter of two waits, of which 0 is none.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}
