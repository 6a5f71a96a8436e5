// Package bubble advances the fake time of a testing/synctest bubble. Only tests import
// it.
package bubble

import (
	"testing/synctest"
	"time"
)

// Pass advances the fake time of a bubble by d. It then waits until every other goroutine
// of the bubble is blocked, so the test may read what these goroutines wrote. After
// time.Sleep alone it may not, because a goroutine that wakes at the same time may not
// have run yet. Only the test's own goroutine may call Pass.
func Pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}
