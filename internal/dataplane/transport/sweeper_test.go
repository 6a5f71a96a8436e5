package transport

import (
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/causeway-mesh/causeway/internal/bubble"
)

// Every function is called once in each interval, and not all at the same time.
func TestSweeper(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const entries = 3 * sweepSlots
		var s sweeper
		calls := make([]atomic.Int64, entries)
		total := func() (n int) {
			for i := range calls {
				n += int(calls[i].Load())
			}
			return n
		}
		added := make([]*sweepEntry, entries)
		for i := range entries {
			added[i] = s.add(func() { calls[i].Add(1) })
		}
		for tick := range sweepSlots {
			bubble.Pass(sweepInterval / sweepSlots)
			if got, want := total(), (tick+1)*entries/sweepSlots; got != want {
				t.Fatalf("%d calls after %d ticks, want %d", got, tick+1, want)
			}
		}
		for i := range calls {
			if n := calls[i].Load(); n != 1 {
				t.Errorf("function %d was called %d times in an interval", i, n)
			}
		}
		for _, e := range added[1:] {
			s.remove(e)
		}
		bubble.Pass(2 * sweepInterval)
		if calls[0].Load() != 3 || total() != entries+2 {
			t.Errorf("%d calls of the one that is left, %d in all", calls[0].Load(), total())
		}
		s.remove(added[0])
		bubble.Pass(2 * sweepInterval)
		if calls[0].Load() != 3 || s.timer.Stop() {
			t.Error("the timer is set although nothing is left")
		}
		added[0] = s.add(func() { calls[0].Add(1) })
		bubble.Pass(sweepInterval)
		if calls[0].Load() != 4 {
			t.Errorf("the first after a pause was called %d times", calls[0].Load()-3)
		}
		s.remove(added[0])
	})
}

// The owner of a function may free what it uses once remove has returned.
func TestSweeperRemoveWaitsForRunningCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s sweeper
		begun, end := make(chan struct{}), make(chan struct{})
		returned := false
		e := s.add(func() {
			close(begun)
			<-end
			returned = true
		})
		<-begun
		go close(end)
		s.remove(e)
		if !returned {
			t.Error("remove returned while the function ran")
		}
	})
}
