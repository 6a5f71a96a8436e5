package balance

import (
	"math"
	"slices"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/route"
)

// docs/design/0025-balancing.md has the reasons for these.
const (
	// decayTime is the time constant with which a latency that is not measured again
	// approaches that of a typical endpoint.
	decayTime = 10 * time.Second
	// maxRise is the factor by which one response can raise the latency of an endpoint.
	maxRise = 1.15
	// fallWeight is the weight of a response that is faster than the endpoint's latency.
	// One rise and one fall cancel out, so that the latency follows the median response.
	fallWeight = 1.0 / 8
	// similar is the factor up to which latencies count as equal.
	similar = 2.0
	// medianEvery is the number of observations after which the median is computed again.
	medianEvery = 32

	// minEarly is the decayed number of early errors below which it counts as 0.
	minEarly = 0.01

	// unmeasured is how long an early error counts before any endpoint is measured.
	unmeasured = time.Second

	slowStartFloor = 0.1

	failuresToEject = 5
	minEjection     = time.Second
	maxEjection     = 5 * time.Minute
	ejectionJitter  = 0.2 // an ejection is shorter by up to this share
	// minRecovery is the least time without failures after which an ejection counts as
	// the first one again.
	minRecovery = 30 * time.Second
)

// trialNext marks an endpoint whose next pick is its trial. It is never a pick's number.
const trialNext = math.MaxUint64

// endpoint is what the balancer knows about an endpoint. The balancer's lock guards it.
type endpoint struct {
	id       route.EndpointID
	priority uint8
	rank     uint64
	added    time.Time // start of its slow start; zero if it has none

	latency     float64 // in ns; 0 until it is measured
	latencyAt   time.Time
	outstanding int
	lastPick    uint64 // number of the pick
	failing     bool   // the last outcome was an error
	// early is the number of requests that failed early, decayed until earlyAt.
	early   float64
	earlyAt time.Time

	failures     int    // consecutive
	failureSeq   uint64 // picks up to this one do not count another failure
	ejections    int    // consecutive; doubles the time
	ejectedUntil time.Time
	lastEjection time.Duration
	recoveredAt  time.Time
	trial        uint64 // number of the pick that is its trial; 0 if there is none
}

// isEjected reports whether the endpoint is out of rotation. It is until a trial
// succeeds.
func (e *endpoint) isEjected() bool { return !e.ejectedUntil.IsZero() }

// done ends the pick seq of an endpoint.
func (b *Balancer) done(e *endpoint, seq uint64) {
	e.outstanding--
	if e.trial == seq { // the trial has no outcome, so another one is due
		e.trial = 0
		b.recountEjected()
	}
}

// latencyNow returns the latency for a comparison. If the last outcome of the endpoint
// was an error, it is at least the median.
func (b *Balancer) latencyNow(e *endpoint, now time.Time) float64 {
	if e.latency == 0 {
		return b.median
	}
	latency := e.latency
	if dt := now.Sub(e.latencyAt); dt >= decayTime/100 {
		latency = b.median + (e.latency-b.median)*math.Exp(-float64(dt)/float64(decayTime))
	}
	if e.failing {
		return max(latency, b.median)
	}
	return latency
}

// load returns the number of outstanding requests of an endpoint for a comparison. A
// request that failed early counts for about as long as a response takes. Otherwise an
// endpoint that fails fast would seem idle and get nearly all requests.
func (b *Balancer) load(e *endpoint, now time.Time) int {
	if e.early == 0 {
		return e.outstanding
	}
	b.decayEarly(e, now)
	return e.outstanding + int(e.early+0.5)
}

// decayEarly reduces early to its value at now. It does nothing if early is from a later
// time, because goroutines may call it in another order than they have read the clock.
func (b *Balancer) decayEarly(e *endpoint, now time.Time) {
	if now.Before(e.earlyAt) {
		return
	}
	e.early *= math.Exp(-float64(now.Sub(e.earlyAt)) / b.typicalLatency(e, now))
	if e.earlyAt = now; e.early < minEarly {
		e.early = 0
	}
}

// typicalLatency is latencyNow, or unmeasured if no endpoint is measured.
func (b *Balancer) typicalLatency(e *endpoint, now time.Time) float64 {
	if latency := b.latencyNow(e, now); latency > 0 {
		return latency
	}
	return float64(unmeasured)
}

// failEarly records a failed request for load. It adds the fraction of a typical
// response's time by which the failure came early.
func (b *Balancer) failEarly(e *endpoint, latency time.Duration, now time.Time) {
	b.decayEarly(e, now)
	e.early += max(0, 1-float64(latency)/b.typicalLatency(e, now))
}

// cheaper compares two endpoints. If their latencies are similar, the one with fewer
// outstanding requests is cheaper, and then the one that was picked longer ago. Otherwise
// it is the one with the smaller product of latency and load, but the other one gets some
// requests too, fewer the more it costs.
func (b *Balancer) cheaper(x, y *endpoint, now time.Time) *endpoint {
	lx, ly := b.latencyNow(x, now), b.latencyNow(y, now)
	if lx > similar*ly || ly > similar*lx {
		cx, cy := lx*float64(b.load(x, now)+1), ly*float64(b.load(y, now)+1)
		if lx < ly {
			x, y, cx, cy = y, x, cy, cx
		}
		// Now x is the slower one.
		if cx <= cy || b.random()*(cx+cy) < cy {
			return x
		}
		return y
	}
	if nx, ny := b.load(x, now), b.load(y, now); nx < ny || nx == ny && x.lastPick < y.lastPick {
		return x
	}
	return y
}

// defers reports whether an endpoint in slow start leaves a request to the other choice.
func (b *Balancer) defers(e *endpoint, now time.Time) bool {
	if e.added.IsZero() {
		return false
	}
	age := now.Sub(e.added)
	if age >= b.cfg.SlowStart {
		e.added = time.Time{}
		return false
	}
	share := max(slowStartFloor, float64(age)/float64(b.cfg.SlowStart))
	if b.random() < share {
		return false
	}
	e.lastPick = b.seq // or it would be preferred next time
	return true
}

// random returns a number in [0, 1).
func (b *Balancer) random() float64 { return float64(b.cfg.Rand()>>11) / (1 << 53) }

func (b *Balancer) observe(c Choice, latency time.Duration, o Outcome, now time.Time) (ejected bool) {
	e := c.endpoint
	if o == Neutral {
		return false
	}
	if failing := o != Success; e.failing != failing {
		e.failing = failing
		b.computeMedian()
	}
	if latency > 0 {
		b.measure(e, float64(latency), o, now)
	}
	if o != Success {
		b.failEarly(e, latency, now)
	}
	if o == Failure {
		return b.fail(e, c.seq, now)
	}
	b.succeed(e, c.seq, o, now)
	return false
}

// measure updates the latency. An error never makes an endpoint cheaper, because a dead
// or broken one fails fast.
func (b *Balancer) measure(e *endpoint, latency float64, o Outcome, now time.Time) {
	current := b.latencyNow(e, now)
	switch {
	case o != Success && latency <= current || o != Success && current == 0:
		return
	case current == 0: // the first measurement of all
		current = latency
	case latency > current:
		current = min(latency, maxRise*current)
	default:
		current += fallWeight * (latency - current)
	}
	first := e.latency == 0
	e.latency, e.latencyAt = current, now
	if b.observations++; b.observations >= medianEvery || first && b.median == 0 {
		b.computeMedian()
	}
}

// computeMedian computes the median latency of the endpoints in the aperture that do not
// fail. If all of them fail, it changes nothing.
func (b *Balancer) computeMedian() {
	b.observations = 0
	b.scratch = b.scratch[:0]
	for _, e := range b.active {
		if e.latency > 0 && !e.failing {
			b.scratch = append(b.scratch, e.latency)
		}
	}
	if len(b.scratch) == 0 {
		return
	}
	slices.Sort(b.scratch)
	b.median = b.scratch[(len(b.scratch)-1)/2]
}

// succeed records that the pick seq did not fail. A pick that began before an ejection
// does not end it. A ServerError does not end a series of failures.
func (b *Balancer) succeed(e *endpoint, seq uint64, o Outcome, now time.Time) {
	if seq <= e.failureSeq {
		return
	}
	if o == Success {
		e.failures = 0
	}
	if !e.isEjected() {
		return
	}
	e.ejectedUntil, e.recoveredAt, e.trial = time.Time{}, now, 0
	b.recountEjected()
	b.rebuild(now)
}

// fail records a failure of the pick seq. Requests that were outstanding together fail
// together, for example when a pod is killed. They count as one failure.
func (b *Balancer) fail(e *endpoint, seq uint64, now time.Time) (ejected bool) {
	if seq <= e.failureSeq || b.byID[e.id] != e {
		return false
	}
	e.failureSeq = b.seq
	e.failures++
	switch {
	case e.isEjected():
		if e.trial != seq {
			return false // all are ejected, and it was used nevertheless
		}
	case e.failures < failuresToEject || b.ejected+1 > len(b.ranked)/2:
		return false
	case now.Sub(e.recoveredAt) > max(minRecovery, 2*e.lastEjection):
		e.ejections = 0
	}
	e.trial = 0
	e.lastEjection = b.ejection(e.ejections)
	e.ejections++
	e.ejectedUntil = now.Add(e.lastEjection)
	b.recountEjected()
	b.rebuild(now)
	return true
}

// ejection returns the duration of an ejection after n others.
func (b *Balancer) ejection(n int) time.Duration {
	d := maxEjection
	if n < 9 { // 1 s << 9 is more than 5 min
		d = minEjection << n
	}
	return time.Duration(float64(d) * (1 - ejectionJitter*b.random()))
}

// recountEjected computes ejected and nextTrial.
func (b *Balancer) recountEjected() {
	b.ejected, b.nextTrial = 0, time.Time{}
	for _, e := range b.ranked {
		if !e.isEjected() {
			continue
		}
		b.ejected++
		if e.trial == 0 && (b.nextTrial.IsZero() || e.ejectedUntil.Before(b.nextTrial)) {
			b.nextTrial = e.ejectedUntil
		}
	}
}

// hasDueTrial reports whether an endpoint waits for a trial.
func (b *Balancer) hasDueTrial(now time.Time) bool {
	return !b.nextTrial.IsZero() && !now.Before(b.nextTrial)
}

// isDueTrial reports whether the time of an endpoint's ejection has passed and it has no
// trial yet.
func (e *endpoint) isDueTrial(now time.Time) bool {
	return e.isEjected() && e.trial == 0 && !now.Before(e.ejectedUntil)
}

// trial returns an endpoint that waits for a trial and is not excluded. The next pick of
// it is the trial.
func (b *Balancer) trial(now time.Time, exclude []route.EndpointID) *endpoint {
	for _, e := range b.ranked {
		if e.isDueTrial(now) && !b.skipped(e, exclude) {
			e.trial = trialNext
			b.recountEjected()
			return e
		}
	}
	return nil
}
