package mirror

import "time"

// downAfter is how long a source must be without ready endpoints before its
// mirror says so. Up is told at once.
const downAfter = 2 * time.Second

// damp decides whether a mirror shows ready. shown is what it shows now, ready
// what the source is, since when the source went down, zero if it was up at the
// last look. It returns what to show, the since to bring along next time, and if
// that is still undecided after how long to look again.
func damp(shown, ready bool, since, now time.Time) (bool, time.Time, time.Duration) {
	if ready {
		return true, time.Time{}, 0
	}
	if since.IsZero() {
		since = now
	}
	if left := downAfter - now.Sub(since); shown && left > 0 {
		return true, since, left
	}
	return false, since, 0
}
