package throttle

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"
)

func TestRate(t *testing.T) {
	start := time.Unix(1767225600, 0)
	at := func(d time.Duration) time.Time { return start.Add(d) }
	cases := map[string]struct {
		why      string
		overload []time.Duration
		after    time.Duration
		want     float64
	}{
		"no 429":         {why: "the configured rate holds", after: time.Minute, want: 800},
		"one 429":        {why: "the rate is halved", overload: []time.Duration{0}, want: 400},
		"many at once":   {why: "requests in flight say nothing new", overload: []time.Duration{0, 1, time.Second - 1}, after: time.Second - 1, want: 400},
		"two":            {why: "each second with a 429 halves it again", overload: []time.Duration{0, time.Second}, after: time.Second, want: 220},
		"recovering":     {why: "the recovery is additive", overload: []time.Duration{0}, after: 5 * time.Second, want: 600},
		"recovered":      {why: "the rate never exceeds the configured one", overload: []time.Duration{0}, after: time.Minute, want: 800},
		"long overload":  {why: "some progress is always made", overload: seconds(100), after: 99 * time.Second, want: 40},
		"not yet a step": {why: "recovery comes in steps of a second", overload: []time.Duration{0}, after: time.Second - 1, want: 400},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			calls := 0
			l := New(800, func() { calls++ })
			for _, d := range c.overload {
				l.Overloaded(at(d))
			}
			got := l.Rate(at(c.after))
			if got < c.want*0.99 || got > c.want*1.01 {
				t.Errorf("%s: rate is %v, want %v", c.why, got, c.want)
			}
			if calls != len(c.overload) {
				t.Errorf("every 429 is counted: %d of %d", calls, len(c.overload))
			}
		})
	}
}

func seconds(n int) []time.Duration {
	out := make([]time.Duration, n)
	for i := range out {
		out[i] = time.Duration(i) * time.Second
	}
	return out
}

func TestTakeGoesIntoDebt(t *testing.T) {
	now := time.Unix(1767225600, 0)
	l := New(10, nil)
	for range 12 {
		l.Take(now)
	}
	if got := l.Wait(now); got < 299*time.Millisecond || got > 301*time.Millisecond {
		t.Errorf("two tokens of debt and one to come take 300 ms at 10 per second: %v", got)
	}
	if got := l.Wait(now.Add(301 * time.Millisecond)); got != 0 {
		t.Errorf("then a request may start: %v", got)
	}
}

func TestUntilIsNeverZeroWithoutToken(t *testing.T) {
	now := time.Unix(1767225600, 0)
	b := rate.NewLimiter(1e9, 1)
	b.ReserveN(now, 1)
	if Until(b, now) <= 0 {
		t.Error("a caller that waits for 0 would spin")
	}
}

type answer int

func (a answer) RoundTrip(*http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: int(a), Body: http.NoBody}, nil
}

func TestRoundTripper(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(800, nil)
		for _, code := range []answer{http.StatusOK, http.StatusServiceUnavailable} {
			if _, err := l.RoundTripper(code).RoundTrip(nil); err != nil || l.Rate(time.Now()) != 800 {
				t.Errorf("an answer of %d is no reason to slow down: %v", code, err)
			}
		}
		if _, err := l.RoundTripper(answer(http.StatusTooManyRequests)).RoundTrip(nil); err != nil || l.Rate(time.Now()) != 400 {
			t.Errorf("429 halves the rate: %v, %v", l.Rate(time.Now()), err)
		}
	})
}
