package balance

import (
	"container/heap"
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// simulation runs requests through a balancer in fake time.
type simulation struct {
	b   *Balancer
	rnd *rand.Rand
	now time.Time
	// latency returns the time that endpoint n needs for a request.
	latency func(n int, rnd *rand.Rand) time.Duration
	// outcome is Success if it is nil.
	outcome func(n int) Outcome
	running requests

	picks map[int]int
}

func newSimulation(known []Endpoint, cfg Config, seed uint64) *simulation {
	rnd := rand.New(rand.NewPCG(seed, 9))
	cfg.Seed, cfg.Rand = seed, rnd.Uint64
	s := &simulation{b: New(cfg), rnd: rnd, now: noon, picks: map[int]int{}}
	s.b.Update(known, s.now)
	return s
}

// request is one that ends at end.
type request struct {
	end     time.Time
	latency time.Duration
	choice  Choice
}

type requests []request

func (r requests) Len() int           { return len(r) }
func (r requests) Less(i, j int) bool { return r[i].end.Before(r[j].end) }
func (r requests) Swap(i, j int)      { r[i], r[j] = r[j], r[i] }
func (r *requests) Push(x any)        { *r = append(*r, x.(request)) }
func (r *requests) Pop() any {
	old := *r
	x := old[len(old)-1]
	*r = old[:len(old)-1]
	return x
}

func number(c Choice) int { return int(c.ID[0])<<8 | int(c.ID[1]) }

func (s *simulation) start(t *testing.T) {
	t.Helper()
	c, err := s.b.Pick(s.now)
	if err != nil {
		t.Fatal(err)
	}
	n := number(c)
	s.picks[n]++
	d := s.latency(n, s.rnd)
	heap.Push(&s.running, request{end: s.now.Add(d), latency: d, choice: c})
}

func (s *simulation) finish() {
	r := heap.Pop(&s.running).(request)
	if r.end.After(s.now) {
		s.now = r.end
	}
	o := Success
	if s.outcome != nil {
		o = s.outcome(number(r.choice))
	}
	s.b.Finish(r.choice, r.latency, o, s.now)
}

// closed makes n requests from clients that each wait for one response at a time.
func (s *simulation) closed(t *testing.T, n, clients int) {
	t.Helper()
	for range n {
		if len(s.running) == clients {
			s.finish()
		}
		s.start(t)
	}
	for len(s.running) > 0 {
		s.finish()
	}
}

// open makes requests for a time, evenly spaced at a rate per second.
func (s *simulation) open(t *testing.T, rate int, d time.Duration) {
	t.Helper()
	gap := time.Second / time.Duration(rate)
	for end := s.now.Add(d); s.now.Before(end); {
		next := s.now.Add(gap)
		s.start(t)
		for len(s.running) > 0 && s.running[0].end.Before(next) {
			s.finish()
		}
		s.now = next
	}
}

// variation is the coefficient of variation of the picks of endpoints 0 to n-1.
func (s *simulation) variation(n int) float64 {
	var sum, squares float64
	for i := range n {
		sum += float64(s.picks[i])
	}
	mean := sum / float64(n)
	for i := range n {
		d := float64(s.picks[i]) - mean
		squares += d * d
	}
	return math.Sqrt(squares/float64(n)) / mean
}

// noisy is a latency with a lognormal distribution around base. One in a hundred is up to
// 40 times as long, as on a busy machine.
func noisy(base time.Duration) func(int, *rand.Rand) time.Duration {
	return func(_ int, rnd *rand.Rand) time.Duration {
		d := time.Duration(float64(base) * math.Exp(0.4*rnd.NormFloat64()))
		if rnd.IntN(100) == 0 {
			d += time.Duration(rnd.Int64N(int64(40 * base)))
		}
		return d
	}
}

// mixed is the latency of an application that answers one request in n slowly, 50 times
// as long as the others.
func mixed(base time.Duration, n int) func(int, *rand.Rand) time.Duration {
	return func(_ int, rnd *rand.Rand) time.Duration {
		d := time.Duration(float64(base) * math.Exp(0.2*rnd.NormFloat64()))
		if rnd.IntN(n) == 0 {
			d *= 50
		}
		return d
	}
}

func constant(d time.Duration) func(int, *rand.Rand) time.Duration {
	return func(int, *rand.Rand) time.Duration { return d }
}

// TestEqualEndpointsGetEqualShares is the promise for 10,000 requests to 10 pods.
func TestEqualEndpointsGetEqualShares(t *testing.T) {
	cases := map[string]struct {
		latency func(int, *rand.Rand) time.Duration
		clients int
	}{
		"one client, equal latency":  {constant(time.Millisecond), 1},
		"one client, 0.3 ms, noise":  {noisy(300 * time.Microsecond), 1},
		"one client, 5 ms, noise":    {noisy(5 * time.Millisecond), 1},
		"one client, 80 ms, noise":   {noisy(80 * time.Millisecond), 1},
		"32 clients, equal latency":  {constant(time.Millisecond), 32},
		"32 clients, 0.3 ms, noise":  {noisy(300 * time.Microsecond), 32},
		"256 clients, 0.3 ms, noise": {noisy(300 * time.Microsecond), 256},
		"32 clients, 80 ms, noise":   {noisy(80 * time.Millisecond), 32},
		"one client, 1 in 2 slow":    {mixed(time.Millisecond, 2), 1},
		"one client, 1 in 5 slow":    {mixed(time.Millisecond, 5), 1},
		"one client, 1 in 3 slow":    {mixed(time.Millisecond, 3), 1},
		"32 clients, 1 in 3 slow":    {mixed(time.Millisecond, 3), 32},
		"32 clients, 1 in 4 slow":    {mixed(time.Millisecond, 4), 32},
		"one client, 1 in 10 slow":   {mixed(time.Millisecond, 10), 1},
		"one client, 1 in 20 slow":   {mixed(time.Millisecond, 20), 1},
		"32 clients, 1 in 5 slow":    {mixed(time.Millisecond, 5), 32},
		"32 clients, 1 in 10 slow":   {mixed(time.Millisecond, 10), 32},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			worst := 0.0
			for seed := range uint64(10) {
				s := newSimulation(endpoints(0, 10), Config{}, seed)
				s.latency = tc.latency
				s.closed(t, 10_000, tc.clients)
				worst = max(worst, s.variation(10))
			}
			t.Logf("worst of 10 runs: %.3f", worst)
			if worst >= 0.10 {
				t.Errorf("coefficient of variation is %.3f, want less than 0.10", worst)
			}
		})
	}
}

func TestSlowEndpointGetsLess(t *testing.T) {
	for _, clients := range []int{1, 8, 64} {
		worst := 0
		for seed := range uint64(10) {
			s := newSimulation(endpoints(0, 10), Config{}, seed)
			fast := noisy(time.Millisecond)
			s.latency = func(n int, rnd *rand.Rand) time.Duration {
				if n == 3 {
					return 10 * fast(n, rnd)
				}
				return fast(n, rnd)
			}
			s.closed(t, 10_000, clients)
			worst = max(worst, s.picks[3])
		}
		t.Logf("%d clients: at most %d of 10,000", clients, worst)
		if worst >= 500 {
			t.Errorf("%d clients: the slow endpoint got %d of 10,000 requests, want less than 500", clients,
				worst)
		}
	}
}

// TestHangingEndpointGetsFewRequests checks that requests without a response count.
func TestHangingEndpointGetsFewRequests(t *testing.T) {
	s := newSimulation(endpoints(0, 10), Config{}, 1)
	s.latency = func(n int, _ *rand.Rand) time.Duration {
		if n == 3 {
			return time.Hour
		}
		return time.Millisecond
	}
	s.open(t, 1000, 10*time.Second)
	if got := s.picks[3]; got > 5 {
		t.Errorf("got %d of 10,000 requests at an endpoint that does not respond", got)
	}
}

// TestRecoveredEndpointGetsItsShareAgain makes an endpoint slow for some time.
func TestRecoveredEndpointGetsItsShareAgain(t *testing.T) {
	s := newSimulation(endpoints(0, 4), Config{}, 1)
	slow := true
	s.latency = func(n int, _ *rand.Rand) time.Duration {
		if n == 0 && slow {
			return 100 * time.Millisecond
		}
		return time.Millisecond
	}
	s.open(t, 200, 20*time.Second)
	slow = false
	s.open(t, 200, 60*time.Second)
	s.picks = map[int]int{}
	s.open(t, 200, 10*time.Second)
	if got := s.variation(4); got > 0.1 {
		t.Errorf("a minute after it is fast again: variation %.3f, picks %v", got, s.picks)
	}
}

// TestScaleUp adds seven endpoints to three, under a steady load.
func TestScaleUp(t *testing.T) {
	for _, rate := range []int{20, 200, 2000} {
		s := newSimulation(endpoints(0, 3), Config{}, 1)
		s.latency = noisy(2 * time.Millisecond)
		s.open(t, rate, 20*time.Second)
		s.b.Update(endpoints(0, 10), s.now)

		s.picks = map[int]int{}
		s.open(t, rate, time.Second)
		for n := 3; n < 10; n++ {
			if got, most := s.picks[n], max(rate/5, 10); got > most {
				t.Errorf("%d/s: new endpoint %d got %d requests in the first second, want at most %d", rate,
					n, got, most)
			}
		}
		s.picks = map[int]int{}
		s.open(t, rate, 4*time.Second)
		for n := range 10 {
			if got, fair := s.picks[n], rate*4/10; got < fair/2 || got > 2*fair {
				t.Errorf("%d/s: within 5 s endpoint %d got %d requests, want about %d", rate, n, got, fair)
			}
		}
		if got := s.variation(10); got > 0.25 {
			t.Errorf("%d/s: variation within 5 s is %.3f, want at most 0.25", rate, got)
		}
	}
}

func TestSlowStart(t *testing.T) {
	s := newSimulation(endpoints(0, 4), Config{SlowStart: 10 * time.Second}, 1)
	s.latency = constant(time.Millisecond)
	s.open(t, 1000, time.Second)
	if got := s.variation(4); got > 0.05 {
		t.Errorf("the first endpoints are not new: variation %.3f", got)
	}
	s.b.Update(endpoints(0, 5), s.now)
	for second, want := range []float64{0.12, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95, 1, 1} {
		s.picks = map[int]int{}
		s.open(t, 1000, time.Second)
		got := float64(s.picks[4]) / 200
		if math.Abs(got-want) > 0.12 {
			t.Errorf("second %d: the share is %.2f of a whole one, want about %.2f", second, got, want)
		}
	}
}

// TestStreamsCountAsLoad holds streams of one endpoint open while others end.
func TestStreamsCountAsLoad(t *testing.T) {
	b := newTest(Config{}, endpoints(0, 4))
	now := warm(t, b, 100, noon)
	var open []Choice
	for range 10 {
		c, _ := b.PickID(id(0), now)
		b.Observe(c, 0, Success, now)
		open = append(open, c)
	}
	got := map[int]int{}
	for range 30 {
		c, _ := b.Pick(now)
		got[number(c)]++
		open = append(open, c)
	}
	if got[0] > 1 {
		t.Errorf("an endpoint with 10 streams got %d of 30 new ones", got[0])
	}
	for _, c := range open {
		b.Done(c)
	}
}

// TestDeadEndpointIsEjectedQuickly kills one of ten endpoints for a minute.
func TestDeadEndpointIsEjectedQuickly(t *testing.T) {
	s := newSimulation(endpoints(0, 10), Config{}, 1)
	dead := false
	s.latency = func(n int, rnd *rand.Rand) time.Duration {
		if n == 3 && dead {
			return 100 * time.Microsecond // refused at once
		}
		return noisy(2*time.Millisecond)(n, rnd)
	}
	s.outcome = func(n int) Outcome {
		if n == 3 && dead {
			return Failure
		}
		return Success
	}
	s.open(t, 200, 5*time.Second)
	s.picks, dead = map[int]int{}, true
	s.open(t, 200, time.Minute)
	if got := s.picks[3]; got > 5+7 { // trials after 1, 3, 7, 15, 31 and 63 s
		t.Errorf("a dead endpoint got %d of 12,000 requests", got)
	}
	dead = false
	s.open(t, 200, 70*time.Second)
	s.picks = map[int]int{}
	s.open(t, 200, 10*time.Second)
	if got := s.picks[3]; got < 150 {
		t.Errorf("after its recovery it got %d of 2,000 requests, want about 200", got)
	}
}

// TestFastErrorsAttractNoRequests lets one endpoint answer with an error in 0.5 ms while
// the others work.
func TestFastErrorsAttractNoRequests(t *testing.T) {
	const quick, total = time.Millisecond / 2, 4000
	around := func(d time.Duration, rnd *rand.Rand) time.Duration {
		return time.Duration(float64(d) * (0.8 + 0.4*rnd.Float64()))
	}
	loads := map[string]func(*testing.T, *simulation){
		"1 client":   func(t *testing.T, s *simulation) { s.closed(t, total, 1) },
		"32 clients": func(t *testing.T, s *simulation) { s.closed(t, total, 32) },
		"200/s":      func(t *testing.T, s *simulation) { s.open(t, 200, total/200*time.Second) },
	}
	always := func(o Outcome) func(int) Outcome { return func(int) Outcome { return o } }
	inTurns := func(os ...Outcome) func(int) Outcome { return func(n int) Outcome { return os[n%len(os)] } }
	cases := map[string]struct {
		worked, workedFast bool // before
		outcome            func(n int) Outcome
		limit              float64 // of what the endpoint gets, as a multiple of its fair share
	}{
		"500 from the start":   {outcome: always(ServerError), limit: 1.1},
		"500 later":            {worked: true, outcome: always(ServerError), limit: 1.1},
		"500 after fast work":  {workedFast: true, outcome: always(ServerError), limit: 1.1},
		"500 every other time": {worked: true, outcome: inTurns(ServerError, Success), limit: 1.15},
		"503 from the start":   {outcome: always(Failure), limit: 0.1},
		"503 later":            {worked: true, outcome: always(Failure), limit: 0.1},
		"503 every other time": {worked: true, outcome: inTurns(Failure, Success), limit: 1.15},
		"503 and 500 in turns": {worked: true, outcome: inTurns(Failure, ServerError), limit: 0.5},
	}
	for name, tc := range cases {
		for _, pods := range []int{2, 3, 10} {
			for _, work := range []time.Duration{10 * time.Millisecond, 50 * time.Millisecond} {
				for load, run := range loads {
					s := newSimulation(endpoints(0, pods), Config{}, 3)
					broken, answers := !tc.worked && !tc.workedFast, 0
					s.latency = func(n int, rnd *rand.Rand) time.Duration {
						switch {
						case n != 0:
							return around(work, rnd)
						case tc.workedFast, broken && tc.outcome(answers) != Success:
							return around(quick, rnd)
						}
						return around(work, rnd)
					}
					s.outcome = func(n int) Outcome {
						if n != 0 || !broken {
							return Success
						}
						answers++
						return tc.outcome(answers - 1)
					}
					if !broken {
						s.open(t, 200, 10*time.Second)
						for len(s.running) > 0 {
							s.finish()
						}
						s.picks, broken = map[int]int{}, true
					}
					run(t, s)
					share := float64(s.picks[0]) / total * float64(pods)
					if share > tc.limit {
						t.Errorf("%s, %d pods, %v, %s: got %.2f of a fair share, want at most %.2f",
							name, pods, work, load, share, tc.limit)
					}
				}
			}
		}
	}
}
