package mirror

import (
	"testing"
	"time"

	"github.com/causeway-mesh/causeway/internal/bubble"
)

// TestQueueAge tests that the age is that of the mirror which has waited longest.
func TestQueueAge(t *testing.T) {
	inCluster(t, shop, func(c *cluster) {
		wants := many(200)
		c.set(wants...)
		bubble.Pass(time.Minute)
		age := func() time.Duration { return c.queueAges(time.Now())["east"] }
		if got := age(); got != 0 {
			t.Errorf("with all mirrors written the age is %v", got)
		}
		c.unset(wants...) // deletions are paced
		bubble.Pass(3 * time.Second)
		if got := age(); got < 3*time.Second || got > 5*time.Second {
			t.Errorf("the oldest of the paced deletions has waited for %v, want 3 seconds", got)
		}
		bubble.Pass(time.Minute)
		if got := age(); got != 0 {
			t.Errorf("with all mirrors deleted the age is %v", got)
		}
	})
}
