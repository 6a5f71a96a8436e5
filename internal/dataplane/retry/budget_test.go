package retry

import (
	"sync"
	"testing"
	"time"
)

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// withdrawAll returns how many retries the budget allows at once.
func withdrawAll(b *Budget, now time.Time) int {
	n := 0
	for b.Withdraw(now) {
		n++
	}
	return n
}

func TestBudget(t *testing.T) {
	type step struct {
		at       time.Duration
		requests int
		want     int // retries that are allowed then
	}
	s := time.Second
	cases := map[string]struct {
		why   string
		steps []step
	}{
		"no requests": {
			why:   "the floor is 10/s over 10 s",
			steps: []step{{0, 0, 100}},
		},
		"1000 requests": {
			why:   "a fifth of them, and the floor",
			steps: []step{{0, 1000, 300}, {0, 0, 0}},
		},
		"rounded down": {
			why:   "4 requests do not allow another one",
			steps: []step{{0, 4, 100}, {0, 1, 1}},
		},
		"used in the window": {
			why:   "the retries of 9 s ago still count",
			steps: []step{{0, 0, 100}, {9 * s, 0, 0}},
		},
		"used before the window": {
			why:   "they count for 10 s",
			steps: []step{{0, 0, 100}, {10 * s, 0, 100}},
		},
		"requests leave the window": {
			why:   "1000 requests of 10 s ago allow nothing",
			steps: []step{{0, 1000, 300}, {5 * s, 0, 0}, {10 * s, 0, 100}},
		},
		"long idle": {
			why:   "nothing adds up",
			steps: []step{{0, 1000, 300}, {24 * time.Hour, 0, 100}},
		},
		"clock goes backward": {
			why:   "the requests count in the newest second",
			steps: []step{{10 * s, 10, 102}, {0, 10, 2}, {11 * s, 0, 0}},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			var b Budget
			for i, st := range tc.steps {
				now := noon.Add(st.at)
				for range st.requests {
					b.Request(now)
				}
				if got := withdrawAll(&b, now); got != st.want {
					t.Errorf("%s: step %d: %d retries are allowed, want %d", tc.why, i, got, st.want)
				}
			}
		})
	}
}

// TestBudgetOverTime lets every request of 200 in a second fail, for a minute.
func TestBudgetOverTime(t *testing.T) {
	var b Budget
	retries := 0
	for ms := range 60_000 {
		now := noon.Add(time.Duration(ms) * time.Millisecond)
		if ms%5 == 0 {
			b.Request(now)
			for range 2 {
				if b.Withdraw(now) {
					retries++
				}
			}
		}
	}
	if want := 60 * (40 + 10); retries < want*85/100 || retries > want*115/100 {
		t.Errorf("got %d retries in a minute, want about %d", retries, want)
	}
}

func TestBudgetIsSafeForConcurrentUse(t *testing.T) {
	var b Budget
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 1000 {
				b.Request(noon)
			}
		})
	}
	wg.Wait()
	if got := withdrawAll(&b, noon); got != 900 {
		t.Errorf("got %d retries, want 900", got)
	}
}

func BenchmarkBudget(b *testing.B) {
	var bud Budget
	now := noon
	b.ReportAllocs()
	for b.Loop() {
		now = now.Add(time.Millisecond)
		bud.Request(now)
		bud.Withdraw(now)
	}
}
