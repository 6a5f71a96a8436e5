// Package bubble lets the fake time of a testing/synctest bubble pass. Tests import it,
// the product does not.
package bubble

import (
	"testing/synctest"
	"time"
)

// Pass lets d of a bubble's fake time pass, and then waits until every other goroutine of
// the bubble is blocked. After it a test may read what they wrote. After time.Sleep alone
// it may not, since a goroutine that wakes at the same time may not have run yet. Only
// the goroutine of the test itself may call Pass.
func Pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}
