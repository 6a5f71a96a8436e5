package agent

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestAwaitAnswer(t *testing.T) {
	errNotYet := errors.New("not yet")
	cases := map[string]struct {
		why   string
		good  time.Duration // from when on there is an answer; 0: never
		tells []time.Duration
		final bool
		again bool
		ends  time.Duration // of the context; 0: never
		after time.Duration
		err   error
	}{
		"never":          {why: "callers are told within 2 s", after: answerTimeout, err: errNotYet},
		"at once":        {why: "what is known is not waited for", good: -1, after: 0},
		"with news":      {why: "the state was on its way", good: time.Second, tells: []time.Duration{time.Second}, after: time.Second},
		"with late news": {why: "other news is not the answer", good: time.Second, tells: []time.Duration{500 * time.Millisecond, 1500 * time.Millisecond}, after: 1500 * time.Millisecond},
		"too late":       {why: "patience is bounded", good: time.Second, tells: []time.Duration{3 * time.Second}, after: answerTimeout, err: errNotYet},
		"final":          {why: "no news would change it", final: true, after: 0, err: errNotYet},
		"with time":      {why: "no event says that the kernel has found a pod", good: 250 * time.Millisecond, again: true, after: 3 * answerRetryInterval},
		"not with time":  {why: "asking costs", good: 250 * time.Millisecond, tells: []time.Duration{time.Second}, after: time.Second},
		"never in time":  {why: "patience is bounded", again: true, after: answerTimeout, err: errNotYet},
		"context":        {why: "the process stops", ends: time.Second, after: time.Second, err: errNotYet},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var n broadcast
				start := time.Now()
				for _, d := range tc.tells {
					defer time.AfterFunc(d, n.notifyAll).Stop()
				}
				ctx := t.Context()
				if tc.ends > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, tc.ends)
					defer cancel()
				}
				_, err := awaitAnswer(ctx, &n, func() (int, error) {
					if tc.good != 0 && time.Since(start) >= tc.good {
						return 1, nil
					}
					return 0, &refusal{final: tc.final, retry: tc.again, err: errNotYet}
				})
				if took := time.Since(start); took != tc.after || !errors.Is(err, tc.err) {
					t.Errorf("%s: after %v: %v, want after %v: %v", tc.why, took, err, tc.after, tc.err)
				}
			})
		})
	}
}
