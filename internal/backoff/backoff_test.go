package backoff

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestNext(t *testing.T) {
	b := Backoff{Min: 100 * time.Millisecond, Max: 5 * time.Second}
	bounds := []time.Duration{100, 200, 400, 800, 1600, 3200, 5000, 5000}
	largest := make([]time.Duration, len(bounds))
	for range 2000 {
		b.Reset()
		for i, bound := range bounds {
			d := b.Next()
			if d < 0 || d > bound*time.Millisecond {
				t.Fatalf("wait %d is %v, past its bound of %v", i, d, bound*time.Millisecond)
			}
			largest[i] = max(largest[i], d)
		}
	}
	for i, bound := range bounds {
		if largest[i] < bound*time.Millisecond*9/10 {
			t.Errorf("wait %d was never past %v in 2000 draws: full jitter reaches to %v", i, largest[i], bound*time.Millisecond)
		}
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if Sleep(ctx, time.Hour) || time.Since(start) != time.Second {
			t.Errorf("a wait that outlives its context holds up the shutdown: %v", time.Since(start))
		}
		if !Sleep(t.Context(), time.Hour) || time.Since(start) != time.Second+time.Hour {
			t.Errorf("waited %v, want a second and an hour", time.Since(start))
		}
	})
}
