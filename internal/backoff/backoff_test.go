package backoff

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestNextHasFullJitter(t *testing.T) {
	b := Backoff{Min: 100 * time.Millisecond, Max: 5 * time.Second}
	bounds := []time.Duration{100, 200, 400, 800, 1600, 3200, 5000, 5000}
	largest := make([]time.Duration, len(bounds))
	for range 2000 {
		b.Reset()
		for i, bound := range bounds {
			d := b.Next()
			if d < 0 || d > bound*time.Millisecond {
				t.Fatalf("delay %d is %v, want at most %v", i, d, bound*time.Millisecond)
			}
			largest[i] = max(largest[i], d)
		}
	}
	for i, bound := range bounds {
		if largest[i] < bound*time.Millisecond*9/10 {
			t.Errorf("longest of 2000 delays %d is %v, want nearly %v", i, largest[i], bound*time.Millisecond)
		}
	}
}

func TestSleepEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if Sleep(ctx, time.Hour) || time.Since(start) != time.Second {
			t.Errorf("Sleep returned after %v, want 1s, when its context is done", time.Since(start))
		}
		if !Sleep(t.Context(), time.Hour) || time.Since(start) != time.Second+time.Hour {
			t.Errorf("slept until %v, want 1h0m1s", time.Since(start))
		}
	})
}
