package bubble

import (
	"testing"
	"testing/synctest"
	"time"
)

// With the race detector this test fails if Pass only sleeps.
func TestPassWaitsForWhoWakesAtTheSameTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		for range 10 {
			go func() {
				<-time.After(time.Second)
				n = 1
			}()
			Pass(time.Second)
			if n != 1 {
				t.Fatal("a goroutine that woke at the same time has not run")
			}
			n = 0
		}
	})
}
