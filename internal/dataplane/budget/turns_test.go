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
