package transport

import (
	"testing"
	"time"
)

// A reset that no goroutine can see, because neither direction reads from that side, must
// not keep a pair for good.
func TestDeadWatchDetectsBrokenConnection(t *testing.T) {
	cases := map[string]struct {
		why     string
		between func(*proxyPair)
		failed  Side
	}{
		"nothing moves": {
			why:     "no goroutine reads from it",
			between: func(*proxyPair) {},
			failed:  First,
		},
		"bytes move": {
			why:     "what it sent before is still on its way to a slow reader",
			between: func(c *proxyPair) { c.sent.Add(1) },
		},
		"our FIN was sent": {
			why:     "it may have ended in good order",
			between: func(c *proxyPair) { c.finSent[First].Store(true) },
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			a, plainA := pair(t)
			_, plainB := pair(t)
			c := &proxyPair{first: plainA, second: plainB}
			w := &deadWatch{c: c}
			Reset(a)
			for end := time.Now().Add(testTimeout); !closed(plainA); {
				if time.Now().After(end) {
					t.Fatal("the reset does not arrive")
				}
			}
			w.check()
			if c.result.Side != Neither {
				t.Fatal("failed at the first look: its reader may only just have woken")
			}
			tc.between(c)
			w.check()
			if c.result.Side != tc.failed {
				t.Errorf("%s: side %v failed, want %v", tc.why, c.result.Side, tc.failed)
			}
			if tc.failed != Neither && c.result.Reason != WasReset {
				t.Errorf("%s: %v, want a reset", tc.why, c.result.Reason)
			}
		})
	}
}
