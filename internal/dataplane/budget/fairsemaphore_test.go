package budget

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
)

func alive() bool { return true }

func TestFairSemaphoreServesKeysInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		semaphore := NewFairSemaphore(1)
		if !semaphore.Acquire(t.Context(), "first", alive) {
			t.Fatal("a free turn was not taken")
		}
		served := make(chan string, 20)
		for _, key := range strings.Split("a a a a a a b b c", " ") {
			go func() {
				if semaphore.Acquire(t.Context(), key, alive) {
					served <- key
				}
			}()
			synctest.Wait()
		}
		order := ""
		for range 9 {
			semaphore.Release()
			order += <-served
		}
		if order != "abcabaaaa" {
			t.Errorf("served in the order %s: those who have little to do wait for the one with much", order)
		}
		semaphore.Release()
		if semaphore.free != 1 || len(semaphore.queues) != 0 || semaphore.order.Len() != 0 {
			t.Errorf("%d free, %d queues", semaphore.free, len(semaphore.queues))
		}
	})
}

// Whoever has gone meanwhile costs no turn.
func TestFairSemaphoreSkipsDeadWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		semaphore := NewFairSemaphore(1)
		semaphore.Acquire(t.Context(), "first", alive)
		dead := make(chan bool, 100)
		for range 100 {
			go func() { dead <- semaphore.Acquire(t.Context(), "a", func() bool { return false }) }()
		}
		synctest.Wait()
		live := make(chan bool, 1)
		go func() { live <- semaphore.Acquire(t.Context(), "a", alive) }()
		synctest.Wait()
		semaphore.Release()
		if !<-live {
			t.Error("one that lives has got no turn")
		}
		for range 100 {
			if <-dead {
				t.Error("a dead one has got a turn")
			}
		}
	})
}

func TestFairSemaphoreEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		semaphore := NewFairSemaphore(1)
		semaphore.Acquire(t.Context(), "first", alive)
		ctx, cancel := context.WithCancel(t.Context())
		got := make(chan bool, 1)
		go func() { got <- semaphore.Acquire(ctx, "a", alive) }()
		synctest.Wait()
		cancel()
		if <-got {
			t.Error("a turn was taken after its context's end")
		}
		if len(semaphore.queues) != 0 {
			t.Error("its place is kept")
		}
		semaphore.Release()
		if !semaphore.Acquire(t.Context(), "b", alive) {
			t.Error("the turn was lost")
		}
	})
}

func TestFairSemaphoreResize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		semaphore := NewFairSemaphore(2)
		for range 2 {
			semaphore.Acquire(t.Context(), "first", alive)
		}
		served := make(chan bool, 10)
		for range 4 {
			go func() { served <- semaphore.Acquire(t.Context(), "a", alive) }()
		}
		synctest.Wait()
		semaphore.Resize(4)
		synctest.Wait()
		if n := len(served); n != 2 {
			t.Errorf("%d were served when two turns were added, want 2", n)
		}
		semaphore.Resize(1)
		for range 3 {
			semaphore.Release()
		}
		synctest.Wait()
		if n := len(served); n != 2 {
			t.Errorf("%d were served while more turns are out than there are, want 2", n)
		}
		semaphore.Release()
		synctest.Wait()
		if n := len(served); n != 3 {
			t.Errorf("%d were served, want 3", n)
		}
		for range 2 {
			semaphore.Release()
		}
		if synctest.Wait(); len(served) != 4 || semaphore.free != 1 || semaphore.all != 1 {
			t.Errorf("%d were served, %d turns of %d are free", len(served), semaphore.free, semaphore.all)
		}
	})
}
