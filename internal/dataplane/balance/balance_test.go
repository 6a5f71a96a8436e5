package balance

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-mesh/causeway/internal/dataplane/route"
)

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// id returns the id of the endpoint n.
func id(n int) route.EndpointID { return route.EndpointID{byte(n >> 8), byte(n), 7} }

// endpoints returns the endpoints from to to-1 in one zone.
func endpoints(from, to int) []Endpoint {
	var es []Endpoint
	for n := from; n < to; n++ {
		es = append(es, Endpoint{ID: id(n)})
	}
	return es
}

// newTest returns a balancer with a fixed sequence of random bits.
func newTest(cfg Config, known []Endpoint) *Balancer {
	cfg.Rand = rand.New(rand.NewPCG(1, cfg.Seed)).Uint64
	b := New(cfg)
	b.Update(known, noon)
	return b
}

// warm makes n requests of 1 ms, one after the other, and returns the time of the end.
func warm(t *testing.T, b *Balancer, n int, now time.Time) time.Time {
	t.Helper()
	for range n {
		c, err := b.Pick(now)
		if err != nil {
			t.Fatal(err)
		}
		now = now.Add(time.Millisecond)
		b.Finish(c, time.Millisecond, Success, now)
	}
	return now
}

func TestPickErrors(t *testing.T) {
	cases := map[string]struct {
		why     string
		cfg     Config
		known   []Endpoint
		started int
		exclude []route.EndpointID
		want    error
	}{
		"none known": {
			why:  "there is nothing to choose",
			want: ErrNoEndpoint,
		},
		"one of one": {
			why:   "no limit is set",
			known: endpoints(0, 1), started: 1000,
		},
		"excluded but alone": {
			why:   "a retry at the same endpoint is better than none",
			known: endpoints(0, 1), exclude: []route.EndpointID{id(0)},
		},
		"all excluded": {
			why:   "as above",
			known: endpoints(0, 2), exclude: []route.EndpointID{id(0), id(1)},
		},
		"below the limit": {
			why: "9 of 3 × 3 places are used",
			cfg: Config{MaxOutstanding: 3}, known: endpoints(0, 3), started: 8,
		},
		"at the limit": {
			why: "9 of 3 × 3 places are used",
			cfg: Config{MaxOutstanding: 3}, known: endpoints(0, 3), started: 9,
			want: ErrCircuitOpen,
		},
		"only the excluded one has room": {
			why: "the limit matters more than the exclusion",
			cfg: Config{MaxOutstanding: 1}, known: endpoints(0, 1), exclude: []route.EndpointID{id(0)},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			b := newTest(tc.cfg, tc.known)
			for range tc.started {
				if _, err := b.Pick(noon); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := b.Pick(noon, tc.exclude...); !errors.Is(err, tc.want) {
				t.Errorf("%s: got %v, want %v", tc.why, err, tc.want)
			}
		})
	}
}

func TestPickAvoidsExcludedEndpoints(t *testing.T) {
	b := newTest(Config{}, endpoints(0, 3))
	now := warm(t, b, 100, noon)
	for range 1000 {
		c, err := b.Pick(now, id(0), id(2))
		if err != nil || c.ID != id(1) {
			t.Fatalf("got %v, %v, want %v", c.ID, err, id(1))
		}
		b.Done(c)
	}
}

func TestPickID(t *testing.T) {
	b := newTest(Config{MaxOutstanding: 1}, endpoints(0, 3))
	c, ok := b.PickID(id(1), noon)
	if !ok || c.ID != id(1) {
		t.Fatalf("got %v, %v, want the known endpoint", c.ID, ok)
	}
	if _, ok := b.PickID(id(1), noon); ok {
		t.Error("got an endpoint that is full")
	}
	if _, ok := b.PickID(id(9), noon); ok {
		t.Error("got an unknown endpoint")
	}
	b.Done(c)
	now := failUntilEjected(t, b, id(1), noon)
	if _, ok := b.PickID(id(1), now); ok {
		t.Error("got an ejected endpoint")
	}
}

// TestDoneOfRemovedEndpoint finishes a request whose endpoint has gone and come back.
func TestDoneOfRemovedEndpoint(t *testing.T) {
	b := newTest(Config{MaxOutstanding: 1}, endpoints(0, 1))
	c, err := b.Pick(noon)
	if err != nil {
		t.Fatal(err)
	}
	b.Update(nil, noon)
	if _, err := b.Pick(noon); !errors.Is(err, ErrNoEndpoint) {
		t.Errorf("after the removal: got %v, want %v", err, ErrNoEndpoint)
	}
	b.Update(endpoints(0, 1), noon)
	next, err := b.Pick(noon)
	if err != nil {
		t.Fatal(err)
	}
	b.Finish(c, time.Millisecond, Success, noon)
	if _, err := b.Pick(noon); !errors.Is(err, ErrCircuitOpen) {
		t.Errorf("got %v, want %v: the old request is not one of the new endpoint", err, ErrCircuitOpen)
	}
	b.Done(next)
	b.Done(Choice{})
	b.Finish(Choice{}, 0, Success, noon)
	b.Observe(Choice{}, 0, Success, noon)
}

func TestAperture(t *testing.T) {
	cases := map[string]struct {
		why      string
		known    int
		requests int
		pause    time.Duration // between requests
		want     int
	}{
		"start": {
			why:   "one request needs one choice of two",
			known: 10, requests: 1, want: 2,
		},
		"2 known": {
			why:   "there are no more",
			known: 2, requests: 100, want: 2,
		},
		"7 requests": {
			why:   "it grows by one for 7 requests",
			known: 10, requests: 7, want: 3,
		},
		"10 of 10": {
			why:   "2 + 56/7",
			known: 10, requests: 56, want: 10,
		},
		"16 of 16": {
			why:   "all 16 are covered within 100 requests",
			known: 16, requests: 98, want: 16,
		},
		"16 of 40": {
			why:   "there is a limit",
			known: 40, requests: 1000, want: 16,
		},
		"one a minute": {
			why:   "more sessions would end before they are used",
			known: 10, requests: 100, pause: time.Minute, want: 2,
		},
		"one in 10 s": {
			why:   "each of 6 is used once a minute",
			known: 10, requests: 100, pause: 10 * time.Second, want: 6,
		},
		"one in 2 s": {
			why:   "each of 10 is used three times a minute",
			known: 10, requests: 100, pause: 2 * time.Second, want: 10,
		},
		"none in 2 minutes": {
			why:   "it starts again",
			known: 10, requests: 100, pause: 2 * time.Minute, want: 2,
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			b := newTest(Config{}, endpoints(0, tc.known))
			now := noon
			for range tc.requests {
				now = warm(t, b, 1, now.Add(tc.pause))
			}
			if got := len(b.Aperture(now)); got != tc.want {
				t.Errorf("%s: got %d endpoints, want %d", tc.why, got, tc.want)
			}
		})
	}
}

// TestAperturesOfNodesDiffer checks that 100 nodes together use 64 endpoints evenly.
func TestAperturesOfNodesDiffer(t *testing.T) {
	uses := map[route.EndpointID]int{}
	for seed := range uint64(100) {
		b := newTest(Config{Seed: seed}, endpoints(0, 64))
		for _, id := range b.Aperture(warm(t, b, 200, noon)) {
			uses[id]++
		}
	}
	for n := range 64 { // 25 on average, with a standard deviation of 4.3
		if got := uses[id(n)]; got < 10 || got > 40 {
			t.Errorf("endpoint %d is in the apertures of %d of 100 nodes, want about 25", n, got)
		}
	}
}

func TestApertureIsStable(t *testing.T) {
	b := newTest(Config{Seed: 5}, endpoints(0, 40))
	now := warm(t, b, 200, noon)
	before := b.Aperture(now)
	version := b.Version()

	again := endpoints(0, 40)
	slices.Reverse(again)
	b.Update(append(again, again[0]), now)
	if diff := cmp.Diff(before, b.Aperture(now)); diff != "" || b.Version() != version {
		t.Errorf("after an update with the same endpoints, version %d → %d (-before +after):\n%s", version,
			b.Version(), diff)
	}

	left := slices.DeleteFunc(endpoints(0, 40), func(e Endpoint) bool { return e.ID == before[3] })
	b.Update(left, now)
	after := b.Aperture(now)
	if want := slices.Delete(slices.Clone(before), 3, 4); !cmp.Equal(want, after[:15]) || len(after) != 16 {
		t.Errorf("after %v left: got %v, want %v and another one", before[3], after, want)
	}
	if b.Version() == version {
		t.Error("the version is the same after a change of the aperture")
	}
}

func TestZonePreference(t *testing.T) {
	inZone := func(priority uint8, from, to int) []Endpoint {
		es := endpoints(from, to)
		for i := range es {
			es[i].Priority = priority
		}
		return es
	}
	cases := map[string]struct {
		why    string
		known  []Endpoint
		failed []int
		want   []int
	}{
		"all healthy": {
			why:   "the same zone can take all requests",
			known: slices.Concat(inZone(0, 0, 4), inZone(1, 4, 8)),
			want:  []int{0, 1, 2, 3},
		},
		"three quarters healthy": {
			why:    "that is at least 70 %",
			known:  slices.Concat(inZone(0, 0, 4), inZone(1, 4, 8)),
			failed: []int{2},
			want:   []int{0, 1, 3},
		},
		"half healthy": {
			why:    "that is less than 70 %",
			known:  slices.Concat(inZone(0, 0, 4), inZone(1, 4, 8)),
			failed: []int{1, 2},
			want:   []int{0, 3, 4, 5, 6, 7},
		},
		"two zones healthy enough": {
			why:    "6 of 8 endpoints of the nearest two zones are healthy",
			known:  slices.Concat(inZone(0, 0, 4), inZone(1, 4, 8), inZone(9, 8, 12)),
			failed: []int{1, 2},
			want:   []int{0, 3, 4, 5, 6, 7},
		},
		"none in the zone": {
			why:   "the nearest others take all",
			known: slices.Concat(inZone(3, 0, 2), inZone(4, 2, 4)),
			want:  []int{0, 1},
		},
		"one in the zone fails": {
			why:    "the others take over",
			known:  slices.Concat(inZone(0, 0, 1), inZone(1, 1, 4)),
			failed: []int{0},
			want:   []int{1, 2, 3},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			b := newTest(Config{}, tc.known)
			now := warm(t, b, 200, noon)
			for _, n := range tc.failed {
				b.mu.Lock()
				b.byID[id(n)].ejectedUntil = now.Add(time.Hour)
				b.recountEjected()
				b.rebuild(now)
				b.mu.Unlock()
			}
			got := b.Aperture(now)
			var want []route.EndpointID
			for _, n := range tc.want {
				want = append(want, id(n))
			}
			compare := func(x, y route.EndpointID) int { return slices.Compare(x[:], y[:]) }
			slices.SortFunc(got, compare)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tc.why, diff)
			}
		})
	}
}

// Endpoints of another zone take part only if too many endpoints of the zone are ejected.
func TestTakesPart(t *testing.T) {
	known := endpoints(0, 4)
	known[2].Priority, known[3].Priority = 1, 1
	b := newTest(Config{}, known)
	now := warm(t, b, 100, noon)
	want := func(why string, parts ...bool) {
		t.Helper()
		for n, part := range parts {
			if got := b.TakesPart(id(n)); got != part {
				t.Errorf("%s: endpoint %d takes part: %v", why, n, got)
			}
		}
	}
	want("the zone suffices", true, true, false, false, false)
	now = failUntilEjected(t, b, id(1), now)
	want("half of the zone is ejected", true, false, true, true, false)
	b.Update(known[1:2], now)
	want("all that are left are ejected", false, true, false, false, false)
}

// A request that avoids endpoints without a session can be the trial of another one.
func TestTrialOfRequestThatAvoids(t *testing.T) {
	b := newTest(Config{}, endpoints(0, 4))
	now := failUntilEjected(t, b, id(1), warm(t, b, 100, noon))
	if due := b.DueTrials(now); len(due) > 0 {
		t.Errorf("%v wait for a trial at once", due)
	}
	now = now.Add(time.Minute)
	if diff := cmp.Diff([]route.EndpointID{id(1)}, b.DueTrials(now)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	pick := func(c Choice, err error) Choice {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for why, c := range map[string]Choice{
		"it avoids the endpoint": pick(b.PickAvoiding(now, id(1))),
		"it is a retry":          pick(b.Pick(now, id(0))),
	} {
		if c.ID == id(1) || c.Trial {
			t.Errorf("%s, and is a trial: %+v", why, c)
		}
		b.Done(c)
	}
	c := pick(b.PickAvoiding(now, id(0)))
	if c.ID != id(1) || !c.Trial {
		t.Fatalf("%v is chosen, trial %v", c.ID, c.Trial)
	}
	if due := b.DueTrials(now); len(due) > 0 {
		t.Errorf("%v wait for another trial", due)
	}
	b.Finish(c, time.Millisecond, Success, now)
	if !b.TakesPart(id(1)) {
		t.Error("the endpoint is ejected after its trial")
	}
}

func TestPriorityChanges(t *testing.T) {
	known := endpoints(0, 4)
	b := newTest(Config{}, known)
	now := warm(t, b, 100, noon)
	known[1].Priority, known[2].Priority, known[3].Priority = 1, 1, 1
	b.Update(known, now)
	if diff := cmp.Diff([]route.EndpointID{id(0)}, b.Aperture(now)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// failUntilEjected makes requests to one endpoint fail until it is ejected.
func failUntilEjected(t *testing.T, b *Balancer, e route.EndpointID, now time.Time) time.Time {
	t.Helper()
	for range failuresToEject {
		now = now.Add(time.Millisecond)
		c, ok := b.PickID(e, now)
		if !ok {
			t.Fatalf("endpoint %v is not usable", e)
		}
		if b.Finish(c, time.Millisecond, Failure, now) {
			return now
		}
	}
	t.Fatalf("endpoint %v was not ejected after %d failures", e, failuresToEject)
	return now
}

// pickTrial makes requests until one goes to e. It returns false if none of 100 does.
func pickTrial(t *testing.T, b *Balancer, e route.EndpointID, now time.Time) (Choice, bool) {
	t.Helper()
	for range 100 {
		c, err := b.Pick(now)
		if err != nil {
			t.Fatal(err)
		}
		if c.ID == e {
			return c, true
		}
		b.Finish(c, time.Millisecond, Success, now)
	}
	return Choice{}, false
}

func TestEjection(t *testing.T) {
	ok, fail, neutral := Success, Failure, Neutral
	cases := map[string]struct {
		why      string
		known    int
		outcomes []Outcome
		want     bool
	}{
		"five failures": {
			why:      "five in a row",
			known:    3,
			outcomes: []Outcome{fail, fail, fail, fail, fail},
			want:     true,
		},
		"four failures": {
			why:      "one is missing",
			known:    3,
			outcomes: []Outcome{fail, fail, fail, fail},
			want:     false,
		},
		"not in a row": {
			why:      "a success starts the count again",
			known:    3,
			outcomes: []Outcome{fail, fail, fail, fail, ok, fail, fail, fail, fail},
			want:     false,
		},
		"neutral in between": {
			why:      "it says nothing",
			known:    3,
			outcomes: []Outcome{fail, fail, fail, neutral, fail, fail},
			want:     true,
		},
		"alone": {
			why:      "half of one is none",
			known:    1,
			outcomes: []Outcome{fail, fail, fail, fail, fail, fail, fail},
			want:     false,
		},
		"one of two": {
			why:      "half of two is one",
			known:    2,
			outcomes: []Outcome{fail, fail, fail, fail, fail},
			want:     true,
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			b := newTest(Config{}, endpoints(0, tc.known))
			got := false
			for _, o := range tc.outcomes {
				c, usable := b.PickID(id(0), noon)
				if !usable {
					t.Fatal("ejected too early")
				}
				got = b.Finish(c, time.Millisecond, o, noon)
			}
			if got != tc.want {
				t.Errorf("%s: ejected is %v, want %v", tc.why, got, tc.want)
			}
		})
	}
}

// TestEjectionTimeline follows an endpoint that stays dead, then recovers, then dies
// again.
func TestEjectionTimeline(t *testing.T) {
	b := newTest(Config{}, endpoints(0, 4))
	now := warm(t, b, 100, noon)
	now = failUntilEjected(t, b, id(0), now)
	for n, full := range []time.Duration{1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300} {
		full *= time.Second
		shortest := time.Duration(float64(full) * (1 - ejectionJitter))
		if _, got := pickTrial(t, b, id(0), now.Add(shortest-time.Millisecond)); got {
			t.Fatalf("ejection %d: a request came before %v", n, shortest)
		}
		now = now.Add(full)
		trial, got := pickTrial(t, b, id(0), now)
		if !got {
			t.Fatalf("ejection %d: no trial after %v", n, full)
		}
		if _, got := pickTrial(t, b, id(0), now); got {
			t.Fatalf("ejection %d: a second request came during the trial", n)
		}
		if !b.Finish(trial, time.Millisecond, Failure, now) {
			t.Fatalf("ejection %d: the failed trial does not eject", n)
		}
	}

	now = now.Add(maxEjection)
	trial, got := pickTrial(t, b, id(0), now)
	if !got {
		t.Fatal("no trial")
	}
	b.Finish(trial, time.Millisecond, Success, now)
	c, ok := b.PickID(id(0), now)
	if !ok {
		t.Fatal("after a successful trial: the endpoint is still ejected")
	}
	b.Done(c)

	now = failUntilEjected(t, b, id(0), now.Add(time.Second))
	if _, got := pickTrial(t, b, id(0), now.Add(4*time.Minute)); got {
		t.Error("a failure just after the recovery: the ejection is shorter than before")
	}
	now = now.Add(maxEjection)
	trial, _ = pickTrial(t, b, id(0), now)
	b.Finish(trial, time.Millisecond, Success, now)
	now = failUntilEjected(t, b, id(0), now.Add(3*maxEjection))
	if _, got := pickTrial(t, b, id(0), now.Add(time.Second)); !got {
		t.Error("a failure long after the recovery: the ejection is longer than 1 s")
	}
}

func TestTrialWithoutOutcomeIsRepeated(t *testing.T) {
	b := newTest(Config{}, endpoints(0, 4))
	now := failUntilEjected(t, b, id(0), noon).Add(time.Second)
	for range 3 {
		trial, ok := pickTrial(t, b, id(0), now)
		if !ok {
			t.Fatal("no trial")
		}
		b.Finish(trial, time.Millisecond, Neutral, now)
	}
}

func TestRetryIsNoTrial(t *testing.T) {
	b := newTest(Config{}, endpoints(0, 4))
	now := failUntilEjected(t, b, id(0), noon).Add(time.Second)
	for range 100 {
		if c, err := b.Pick(now, id(1)); err != nil || c.ID == id(0) || c.ID == id(1) {
			t.Fatalf("got %v, %v, want one of the others", c.ID, err)
		}
	}
}

// TestStreamAsTrial checks that a stream ends an ejection when its response begins.
func TestStreamAsTrial(t *testing.T) {
	b := newTest(Config{}, endpoints(0, 4))
	now := failUntilEjected(t, b, id(0), noon).Add(time.Second)
	stream, ok := pickTrial(t, b, id(0), now)
	if !ok {
		t.Fatal("no trial")
	}
	b.Observe(stream, time.Millisecond, Success, now)
	if _, ok := b.PickID(id(0), now); !ok {
		t.Error("the endpoint is still ejected")
	}
	b.Done(stream)
}

func TestFailuresOfOneEventCountOnce(t *testing.T) {
	b := newTest(Config{}, endpoints(0, 4))
	var together []Choice
	for range 50 {
		c, _ := b.PickID(id(0), noon)
		together = append(together, c)
	}
	for _, c := range together {
		if b.Finish(c, time.Millisecond, Failure, noon) {
			t.Fatal("requests that failed together ejected the endpoint")
		}
	}
	for n := range 4 {
		c, ok := b.PickID(id(0), noon)
		if !ok {
			t.Fatal("ejected too early")
		}
		if got, want := b.Finish(c, time.Millisecond, Failure, noon), n == 3; got != want {
			t.Errorf("failure %d after it: ejected is %v, want %v", n+1, got, want)
		}
	}
}

func TestAtMostHalfAreEjected(t *testing.T) {
	for known := 1; known <= 9; known++ {
		b := newTest(Config{}, endpoints(0, known))
		now, ejections := noon, 0
		for range 1000 { // less than 1 s
			now = now.Add(100 * time.Microsecond)
			c, err := b.Pick(now)
			if err != nil {
				t.Fatal(err)
			}
			if b.Finish(c, time.Millisecond, Failure, now) {
				ejections++
			}
		}
		if ejections != known/2 {
			t.Errorf("%d endpoints: %d are ejected, want half", known, ejections)
		}
	}
}

// TestPanic removes healthy endpoints until more than half are ejected.
func TestPanic(t *testing.T) {
	for _, left := range []int{2, 3} { // the first two are ejected
		b := newTest(Config{}, endpoints(0, 4))
		now := failUntilEjected(t, b, id(0), noon)
		now = failUntilEjected(t, b, id(1), now)
		b.Update(endpoints(0, left), now)
		got := make([]int, left)
		for range 50 * left {
			c, err := b.Pick(now)
			if err != nil {
				t.Fatal(err)
			}
			got[c.ID[1]]++
			b.Finish(c, time.Millisecond, Failure, now)
		}
		if slices.Min(got) < 40 {
			t.Errorf("%d endpoints, two ejected: got %v requests, want about 50 each", left, got)
		}
	}
}

// TestSuccessInPanicEndsEjection finishes a request to one of two ejected endpoints.
func TestSuccessInPanicEndsEjection(t *testing.T) {
	b := newTest(Config{}, endpoints(0, 4))
	now := failUntilEjected(t, b, id(0), noon)
	now = failUntilEjected(t, b, id(1), now)
	b.Update(endpoints(0, 2), now)
	c, err := b.Pick(now)
	if err != nil {
		t.Fatal(err)
	}
	b.Finish(c, time.Millisecond, Success, now)
	if diff := cmp.Diff([]route.EndpointID{c.ID}, b.Aperture(now)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// TestInvariants does random things and looks at the state.
func TestInvariants(t *testing.T) {
	for seed := range uint64(10) {
		rnd := rand.New(rand.NewPCG(seed, 3))
		b := newTest(Config{
			Seed:           seed,
			MaxOutstanding: rnd.IntN(4),
			SlowStart:      time.Duration(rnd.IntN(2)) * time.Second,
		}, nil)
		now := noon
		var open []Choice
		for range 2000 {
			now = now.Add(time.Duration(rnd.ExpFloat64() * float64(20*time.Millisecond)))
			switch rnd.IntN(20) {
			case 0:
				var known []Endpoint
				for range rnd.IntN(30) {
					known = append(known, Endpoint{ID: id(rnd.IntN(30)), Priority: uint8(rnd.IntN(3))})
				}
				b.Update(known, now)
			case 1, 2, 3, 4, 5, 6, 7, 8, 9:
				if len(open) > 0 {
					i := rnd.IntN(len(open))
					o := []Outcome{Success, Failure, Failure, Neutral, ServerError}[rnd.IntN(5)]
					b.Finish(open[i], time.Duration(rnd.IntN(1e7)), o, now)
					open = slices.Delete(open, i, i+1)
				}
			default:
				if c, err := b.Pick(now, id(rnd.IntN(30))); err == nil {
					open = append(open, c)
				}
				if c, err := b.Pick(now); err == nil {
					open = append(open, c)
				}
			}
			checkInvariants(t, b, open)
		}
	}
}

// Two goroutines that read the clock one after the other may come in the other order.
func TestTimeOfEarlyErrorsGoesBack(t *testing.T) {
	b := newTest(Config{}, endpoints(0, 2))
	now := warm(t, b, 10, noon)
	for _, at := range []time.Time{now.Add(time.Hour), now, now.Add(time.Hour)} {
		c, err := b.Pick(at)
		if err != nil {
			t.Fatal(err)
		}
		b.Finish(c, time.Microsecond, ServerError, at)
	}
	for _, e := range b.ranked {
		if n := b.load(e, now); n < 0 || n > 3 {
			t.Errorf("the load of an endpoint is %d after 3 requests", n)
		}
	}
}

func checkInvariants(t *testing.T, b *Balancer, open []Choice) {
	t.Helper()
	outstanding := map[*endpoint]int{}
	for _, c := range open {
		outstanding[c.endpoint]++
	}
	ejected := 0
	for _, e := range b.ranked {
		if e.outstanding != outstanding[e] {
			t.Fatalf("endpoint %v has %d outstanding requests, want %d", e.id, e.outstanding, outstanding[e])
		}
		if m := b.cfg.MaxOutstanding; m > 0 && e.outstanding > m {
			t.Fatalf("endpoint %v has %d outstanding requests, want at most %d", e.id, e.outstanding, m)
		}
		if e.isEjected() {
			ejected++
		}
	}
	if b.ejected != ejected || len(b.byID) != len(b.ranked) {
		t.Fatalf("counted %d ejected and %d known, want %d and %d", b.ejected, len(b.byID), ejected,
			len(b.ranked))
	}
	if (len(b.active) == 0) != (len(b.ranked) == 0) || len(b.active) > maxAperture {
		t.Fatalf("the aperture has %d of %d endpoints", len(b.active), len(b.ranked))
	}
	for _, e := range b.active {
		if b.byID[e.id] != e || e.isEjected() && !b.inPanic() {
			t.Fatalf("endpoint %v is in the aperture; ejected %v", e.id, e.isEjected())
		}
	}
}

func TestOutcomeOf(t *testing.T) {
	cases := []struct {
		status int
		on     EjectOn
		want   Outcome
	}{
		{200, EjectOnServerErrors, Success},
		{404, EjectOnServerErrors, Success},
		{429, EjectOnServerErrors, ServerError},
		{500, EjectOnGatewayErrors, ServerError},
		{501, EjectOnGatewayErrors, ServerError},
		{502, EjectOnGatewayErrors, Failure},
		{504, EjectOnGatewayErrors, Failure},
		{505, EjectOnGatewayErrors, ServerError},
		{500, EjectOnServerErrors, Failure},
		{599, EjectOnServerErrors, Failure},
		{600, EjectOnServerErrors, Success},
	}
	for _, tc := range cases {
		if got := OutcomeOf(tc.status, tc.on); got != tc.want {
			t.Errorf("OutcomeOf(%d, %d) = %v, want %v", tc.status, tc.on, got, tc.want)
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	b := New(Config{MaxOutstanding: 100, SlowStart: time.Second})
	b.Update(endpoints(0, 8), noon)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for n := range 2000 {
				now := noon.Add(time.Duration(n) * time.Millisecond)
				c, err := b.Pick(now)
				if err != nil {
					t.Error(err)
					return
				}
				b.Finish(c, time.Millisecond, Outcome(n*w%4), now)
				if n%100 == 0 {
					b.Update(endpoints(n/100, n/100+8), now)
					b.Aperture(now)
				}
			}
		})
	}
	wg.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range b.ranked {
		if e.outstanding != 0 {
			t.Errorf("endpoint %v has %d outstanding requests at the end", e.id, e.outstanding)
		}
	}
}

func BenchmarkPickFinish(b *testing.B) {
	for _, n := range []int{1, 2, 16, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			bal := New(Config{MaxOutstanding: 1000})
			bal.Update(endpoints(0, n), noon)
			now := noon
			for range 200 {
				c, _ := bal.Pick(now)
				bal.Finish(c, time.Millisecond, Success, now)
			}
			b.ReportAllocs()
			for b.Loop() {
				now = now.Add(50 * time.Microsecond)
				c, _ := bal.Pick(now)
				bal.Finish(c, time.Millisecond, Success, now)
			}
		})
	}
	b.Run("parallel-16", func(b *testing.B) {
		bal := New(Config{})
		bal.Update(endpoints(0, 16), noon)
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			now := noon
			for pb.Next() {
				now = now.Add(50 * time.Microsecond)
				c, _ := bal.Pick(now)
				bal.Finish(c, time.Millisecond, Success, now)
			}
		})
	})
}

func TestPickAllocatesNothing(t *testing.T) {
	b := newTest(Config{}, endpoints(0, 16))
	now := warm(t, b, 200, noon)
	got := testing.AllocsPerRun(1000, func() {
		now = now.Add(time.Millisecond)
		c, _ := b.Pick(now, id(3))
		b.Finish(c, time.Millisecond, Success, now)
	})
	if got != 0 {
		t.Errorf("got %v allocations for each request, want none", got)
	}
}
