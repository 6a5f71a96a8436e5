package budget

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
)

func alive() bool { return true }

func TestTurnsAreFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := NewTurns(1)
		if !turns.Take(t.Context(), "first", alive) {
			t.Fatal("a free turn was not taken")
		}
		served := make(chan string, 20)
		for _, key := range strings.Split("a a a a a a b b c", " ") {
			go func() {
				if turns.Take(t.Context(), key, alive) {
					served <- key
				}
			}()
			synctest.Wait()
		}
		order := ""
		for range 9 {
			turns.Give()
			order += <-served
		}
		if order != "abcabaaaa" {
			t.Errorf("served in the order %s: those who have little to do wait for the one with much", order)
		}
		turns.Give()
		if turns.free != 1 || len(turns.queues) != 0 || turns.order.Len() != 0 {
			t.Errorf("%d free, %d queues", turns.free, len(turns.queues))
		}
	})
}

// Whoever has gone meanwhile costs no turn.
func TestTurnsPassTheDeadOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := NewTurns(1)
		turns.Take(t.Context(), "first", alive)
		dead := make(chan bool, 100)
		for range 100 {
			go func() { dead <- turns.Take(t.Context(), "a", func() bool { return false }) }()
		}
		synctest.Wait()
		live := make(chan bool, 1)
		go func() { live <- turns.Take(t.Context(), "a", alive) }()
		synctest.Wait()
		turns.Give()
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

func TestTurnsEndWithTheirContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := NewTurns(1)
		turns.Take(t.Context(), "first", alive)
		ctx, cancel := context.WithCancel(t.Context())
		got := make(chan bool, 1)
		go func() { got <- turns.Take(ctx, "a", alive) }()
		synctest.Wait()
		cancel()
		if <-got {
			t.Error("a turn was taken after its context's end")
		}
		if len(turns.queues) != 0 {
			t.Error("its place is kept")
		}
		turns.Give()
		if !turns.Take(t.Context(), "b", alive) {
			t.Error("the turn was lost")
		}
	})
}

func TestTurnsResize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := NewTurns(2)
		for range 2 {
			turns.Take(t.Context(), "first", alive)
		}
		served := make(chan bool, 10)
		for range 4 {
			go func() { served <- turns.Take(t.Context(), "a", alive) }()
		}
		synctest.Wait()
		turns.Resize(4)
		synctest.Wait()
		if n := len(served); n != 2 {
			t.Errorf("%d were served when two turns were added, want 2", n)
		}
		turns.Resize(1)
		for range 3 {
			turns.Give()
		}
		synctest.Wait()
		if n := len(served); n != 2 {
			t.Errorf("%d were served while more turns are out than there are, want 2", n)
		}
		turns.Give()
		synctest.Wait()
		if n := len(served); n != 3 {
			t.Errorf("%d were served, want 3", n)
		}
		for range 2 {
			turns.Give()
		}
		if synctest.Wait(); len(served) != 4 || turns.free != 1 || turns.all != 1 {
			t.Errorf("%d were served, %d turns of %d are free", len(served), turns.free, turns.all)
		}
	})
}
