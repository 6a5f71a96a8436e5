package mirror

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/causeway-mesh/causeway/internal/bubble"
)

// damped runs a source through a damper, one step per second, and returns when the mirror
// was shown down, in seconds, and for how long in all. ready says whether the source is.
func damped(seconds int, ready func(second int) bool) (downs []int, shownDown int) {
	var d damper
	shown, start := true, time.Unix(1767225600, 0)
	for s := range seconds {
		now := start.Add(time.Duration(s) * time.Second)
		show, _ := d.decide(shown, ready(s), now)
		if shown && !show {
			d.wentDown(now)
			downs = append(downs, s)
		}
		if shown = show; !shown {
			shownDown++
		}
	}
	return downs, shownDown
}

func TestDamping(t *testing.T) {
	cases := map[string]struct {
		why     string
		ready   func(s int) bool
		downs   []int // within two minutes
		seconds int
	}{
		"ready": {why: "nothing to decide", ready: func(int) bool { return true }},
		"one short gap": {
			why:   "a rollout may have a ready pod again in a moment",
			ready: func(s int) bool { return s != 10 },
		},
		"one outage": {
			why:     "callers see it after 2 s, and at once that it is over",
			ready:   func(s int) bool { return s < 10 || s >= 20 },
			downs:   []int{12},
			seconds: 8,
		},
		"two outages": {
			why:     "twice is no flapping",
			ready:   func(s int) bool { return s%30 >= 5 || s >= 60 },
			downs:   []int{2, 32},
			seconds: 6,
		},
		"six outages": {
			why: "the selector is taken away and given back six times: no outage costs more than the " +
				"one before",
			ready:   func(s int) bool { return s%20 >= 10 || s >= 120 },
			downs:   []int{2, 22, 42, 62, 82, 102},
			seconds: 6 * 8,
		},
		"short outages, often": {
			why:     "the first two cost what they last, the others 5 s",
			ready:   func(s int) bool { return s%20 >= 3 },
			downs:   []int{2, 22, 42, 62, 82, 102},
			seconds: 1 + 1 + 4*5,
		},
		"down for good": {
			why:     "it stays so",
			ready:   func(s int) bool { return s < 10 },
			downs:   []int{12},
			seconds: 108,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			downs, seconds := damped(120, c.ready)
			if len(downs) != len(c.downs) || seconds != c.seconds {
				t.Fatalf("%s: shown down at %v for %d s, want %v for %d s", c.why, downs, seconds, c.downs,
					c.seconds)
			}
			for i := range downs {
				if downs[i] != c.downs[i] {
					t.Errorf("%s: shown down at %v, want %v", c.why, downs, c.downs)
				}
			}
		})
	}
}

// For any sequence of changes of a source, damping costs no more than its own outages and
// 5 s each, and a mirror that flaps is written (down and up) once per 7 s at most.
func TestDampingBounds(t *testing.T) {
	const seconds = 3600
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 0))
		source, left := make([]bool, seconds), 0
		ready := true
		sourceDown := 0
		for s := range source {
			if left--; left < 0 {
				ready, left = !ready, random.IntN(1+int(seed%12))
			}
			source[s] = ready
			if !ready {
				sourceDown++
			}
		}
		downs, shownDown := damped(seconds, func(s int) bool { return source[s] })
		if most := sourceDown + len(downs)*int(holdDown/time.Second); shownDown > most {
			t.Errorf("seed %d: shown down for %d s, and the source was for %d s, %d times", seed, shownDown,
				sourceDown, len(downs))
		}
		for i := flapCount; i < len(downs); i++ {
			if apart := downs[i] - downs[i-1]; apart < 7 && downs[i-1]-downs[i-flapCount] < 60 {
				t.Errorf("seed %d: shown down at %v, %d s apart", seed, downs[i-flapCount:i+1], apart)
			}
		}
		for i := range downs { // the bound that follows for any minute: 3, and then one per 7 s
			n := 0
			for _, d := range downs[i:] {
				if d < downs[i]+60 {
					n++
				}
			}
			if n > 3+60/7 {
				t.Errorf("seed %d: shown down %d times in a minute", seed, n)
			}
		}
	}
}

func TestFlappingIsReported(t *testing.T) {
	inCluster(t, shop, func(c *cluster) {
		bar := wanted("bar", "240.0.0.2")
		c.set(bar)
		for i := range flapCount {
			c.status("not yet", 1, 0)
			c.set(down(bar))
			bubble.Pass(downAfter)
			c.wrote()
			c.set(bar)
			if i < flapCount-1 && !c.ready() {
				t.Fatal("the first outages end at once")
			}
		}
		c.status("it flaps from now on", 1, 0, Flapping)
		bubble.Pass(holdDown - 1)
		if c.ready() {
			t.Error("it is held down")
		}
		bubble.Pass(time.Nanosecond)
		if !c.ready() {
			t.Error("for 5 s and no longer")
		}
		bubble.Pass(flapWindow)
		c.status("and forgiven a minute later", 1, 0)
	})
}
