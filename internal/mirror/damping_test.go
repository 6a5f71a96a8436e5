package mirror

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

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

// When the bucket of a mirror is empty, changes of its content wait, but other changes do
// not.
func TestHeldChanges(t *testing.T) {
	now := time.Unix(1767225600, 0)
	endpoints := func(ready bool) []discoveryv1.Endpoint {
		return []discoveryv1.Endpoint{target{ready: ready}.endpoint()}
	}
	owned := func(by ...string) *corev1.Service {
		svc := &corev1.Service{}
		for _, uid := range by {
			svc.OwnerReferences = append(svc.OwnerReferences, metav1.OwnerReference{UID: types.UID(uid)})
		}
		return svc
	}
	service := Change{Op: Update, Service: owned("a"), Was: owned("a")}
	slice := Change{
		Op:    Update,
		Slice: &discoveryv1.EndpointSlice{Endpoints: endpoints(true)},
		Was:   &discoveryv1.EndpointSlice{Endpoints: endpoints(true)},
	}
	unready := Change{
		Op:    Update,
		Slice: &discoveryv1.EndpointSlice{Endpoints: endpoints(false)},
		Was:   &discoveryv1.EndpointSlice{Endpoints: endpoints(true)},
	}
	emptied := Change{
		Op:    Update,
		Slice: &discoveryv1.EndpointSlice{},
		Was:   &discoveryv1.EndpointSlice{Endpoints: endpoints(true)},
	}
	stray := Change{Op: Delete, Slice: &discoveryv1.EndpointSlice{}}
	missing := Change{Op: Create, Slice: &discoveryv1.EndpointSlice{}}
	for name, c := range map[string]struct {
		why     string
		changes []Change
		made    int
	}{
		"nothing":        {"there is nothing to hold", nil, 0},
		"content":        {"the peer changes what callers do not depend on", []Change{service, slice}, 0},
		"not ready":      {"callers must not wait for a Service that is gone", []Change{unready}, 1},
		"an endpoint":    {"a named pod that is gone must not be called", []Change{emptied}, 1},
		"both":           {"the objects of a mirror must be consistent", []Change{service, unready}, 2},
		"a deletion":     {"a slice of another Service would take its calls", []Change{stray, service}, 1},
		"a lost slice":   {"without it nothing can be called", []Change{service, missing}, 1},
		"a lost Service": {"its slices go with it", []Change{{Op: Create, Service: owned("a")}, slice}, 2},
		"a withdrawal":   {"it is not content", []Change{{Op: Delete, Service: owned("a")}}, 1},
		"a second owner": {
			"the mirror survives the deletion of the older Link",
			[]Change{{Op: Update, Service: owned("a", "b"), Was: owned("a")}},
			1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			var l contentLimit
			for range contentBurst {
				l.wrote([]Change{service}, now)
			}
			made, wait := l.hold(slices.Clone(c.changes), now)
			if len(made) != c.made {
				t.Errorf("%s: %v are made of %v", c.why, made, c.changes)
			}
			held := len(made) < len(c.changes)
			if held != (wait == contentInterval) || held != l.held {
				t.Errorf("%s: wait %v, held is %v", c.why, wait, l.held)
			}
			if made, wait := l.hold(slices.Clone(c.changes), now.Add(contentInterval)); wait != 0 ||
				len(made) != len(c.changes) {
				t.Errorf("%s: a token later %v are made, and others wait %v", c.why, made, wait)
			}
		})
	}
}

// For any sequence of changes, a mirror is written four times without a delay and then at
// most once every 5 s. The last change is written at most 5 s later.
func TestContentBounds(t *testing.T) {
	const step, steps = 100 * time.Millisecond, 6000
	update := []Change{{Op: Update, Service: &corev1.Service{}, Was: &corev1.Service{}}}
	for seed := range uint64(100) {
		random := rand.New(rand.NewPCG(seed, 0))
		var l contentLimit
		var writes []int
		differs, since := false, 0
		for s := range steps {
			now := time.Unix(1767225600, 0).Add(time.Duration(s) * step)
			if s < steps-int(contentInterval/step)-1 && random.IntN(1+int(seed)) == 0 && !differs {
				differs, since = true, s
			}
			if !differs {
				continue
			}
			if made, _ := l.hold(slices.Clone(update), now); len(made) > 0 {
				l.wrote(made, now)
				differs = false
				writes = append(writes, s)
			}
			if waited := time.Duration(s-since) * step; waited > contentInterval {
				t.Fatalf("seed %d: a change waited for %v", seed, waited)
			}
		}
		if differs {
			t.Errorf("seed %d: the last change was not written", seed)
		}
		for i := range writes {
			for n := i + contentBurst; n < len(writes); n++ {
				took := time.Duration(writes[n]-writes[i]) * step
				if most := contentBurst + int(took/contentInterval); n-i+1 > most {
					t.Fatalf("seed %d: %d writes in %v, want at most %d", seed, n-i+1, took, most)
				}
			}
		}
	}
}

// A peer changes the content of a Service ten times a second.
func TestFlippingContent(t *testing.T) {
	inCluster(t, shop, func(c *cluster) {
		bar := func(n int, ready bool) *Want {
			w := wanted("bar", "240.0.0.2")
			w.Entry.Ports[0].AppProtocol, w.Ready = fmt.Sprintf("example.org/p%d", n), ready
			return w
		}
		shown := func() string { return *c.bar().Spec.Ports[0].AppProtocol }
		n := 0
		flip := func(d time.Duration, ready bool) (services, slices int) {
			c.wrote()
			for range d / (100 * time.Millisecond) {
				n++
				c.set(bar(n, ready))
				bubble.Pass(100 * time.Millisecond)
			}
			for _, w := range c.wrote() {
				if strings.Contains(w, "*v1.Service ") {
					services++
				} else {
					slices++
				}
			}
			return services, slices
		}
		c.set(bar(0, true))
		c.wrote()
		services, slices := flip(time.Minute, true)
		if most := contentBurst + int(time.Minute/contentInterval); services > most || slices > most ||
			services < most-1 {
			t.Errorf("%d flips wrote the Service %d times and its slice %d times, want %d", n, services,
				slices, most)
		}
		c.status("it keeps changing", 1, 0, ChangesTooOften)

		bubble.Pass(contentInterval)
		if got, want := shown(), fmt.Sprintf("example.org/p%d", n); got != want {
			t.Errorf("the mirror shows %s, want the last content %s", got, want)
		}
		c.wrote()
		bubble.Pass(contentBurst * contentInterval)
		c.status("and is calm again", 1, 0)
		c.expect("nothing changes any more")

		flip(contentInterval, true) // the bucket is empty again
		if flip(downAfter+100*time.Millisecond, false); c.ready() {
			t.Error("an outage of the source waits for the limit of its content")
		}
		c.set(bar(n, true))
		if !c.ready() {
			t.Error("the end of an outage waits for the limit of the content")
		}
		c.wrote()
		c.Set("east", barKey, nil)
		c.expect("a withdrawal does not wait", "delete *v1.Service shop/bar-east")
		c.collect()
		bubble.Pass(expectFor)
		if len(c.links["east"].mirrors) > 0 {
			t.Error("the limit of a mirror that is gone is remembered")
		}
	})
}
