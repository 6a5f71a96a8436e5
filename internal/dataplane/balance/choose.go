package balance

import (
	"math"
	"slices"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/route"
)

// docs/design/0025-balancing.md has the reasons for these.
const (
	maxAperture         = 16
	minAperture         = 2
	requestsPerEndpoint = 7 // by which the aperture grows: 2 + 98/7 = 16 within 100 requests
	// recentPeriod is the time in which each endpoint of the aperture should get a
	// request. It is less than the idle time after which a session ends.
	recentPeriod = 60 * time.Second

	// healthyShare is the share of healthy endpoints below which farther ones take part.
	healthyShare = 0.7
)

// countRequest counts a pick and widens the aperture.
func (b *Balancer) countRequest(now time.Time) {
	if b.lastPick.IsZero() || now.Sub(b.lastPick) > recentPeriod {
		b.requests = 0
	}
	b.lastPick = now
	b.decayRecent(now)
	b.recent++
	if b.requests < maxAperture*requestsPerEndpoint {
		b.requests++
	}
	if len(b.active) != b.width(now) {
		b.rebuild(now)
	}
}

// decayRecent skips short intervals, because exp costs as much as the rest of Pick.
func (b *Balancer) decayRecent(now time.Time) {
	if dt := now.Sub(b.recentAt); dt > recentPeriod/100 {
		b.recent *= math.Exp(-float64(dt) / float64(recentPeriod))
		b.recentAt = now
	}
}

// width returns how many endpoints should be in the aperture. There are no more than
// recent requests, so that each session is used again before it ends for being idle.
func (b *Balancer) width(now time.Time) int {
	b.decayRecent(now)
	w := min(minAperture+b.requests/requestsPerEndpoint, max(minAperture, int(b.recent)), maxAperture)
	return min(w, b.usable)
}

// rebuild chooses the endpoints of the aperture.
func (b *Balancer) rebuild(now time.Time) {
	limit := b.priorityLimit()
	usable := func(e *endpoint) bool { return e.priority <= limit && !e.isEjected() }
	if b.inPanic() {
		usable = func(*endpoint) bool { return true }
	}
	b.usable = count(b.ranked, usable)
	width := b.width(now)
	i, changed := 0, false
	for _, e := range b.ranked {
		if i == width {
			break
		}
		if !usable(e) {
			continue
		}
		switch {
		case i == len(b.active):
			b.active = append(b.active, e)
			changed = true
		case b.active[i] != e:
			b.active[i] = e
			changed = true
		}
		i++
	}
	if i < len(b.active) {
		clear(b.active[i:])
		b.active = b.active[:i]
		changed = true
	}
	if changed {
		b.version.Add(1)
		b.computeMedian()
	}
}

// inPanic reports whether more than half of the endpoints are ejected, which happens when
// healthy ones leave. Ejection then says more about the path than about the endpoints,
// and the few that are left could not take all requests.
func (b *Balancer) inPanic() bool { return b.ejected > len(b.ranked)/2 }

// priorityLimit returns the highest priority of endpoints that take requests.
func (b *Balancer) priorityLimit() uint8 {
	for limit, ok := b.nextPriority(-1); ok; limit, ok = b.nextPriority(int(limit)) {
		all := count(b.ranked, func(e *endpoint) bool { return e.priority <= limit })
		healthy := count(b.ranked, func(e *endpoint) bool { return e.priority <= limit && !e.isEjected() })
		if float64(healthy) >= healthyShare*float64(all) {
			return limit
		}
	}
	return math.MaxUint8
}

// nextPriority returns the lowest priority above after.
func (b *Balancer) nextPriority(after int) (next uint8, ok bool) {
	for _, e := range b.ranked {
		if int(e.priority) > after && (!ok || e.priority < next) {
			next, ok = e.priority, true
		}
	}
	return next, ok
}

func count(es []*endpoint, match func(*endpoint) bool) int {
	n := 0
	for _, e := range es {
		if match(e) {
			n++
		}
	}
	return n
}

// chooseTwo returns the cheaper of two random endpoints of the aperture. It returns nil
// if neither can be used.
func (b *Balancer) chooseTwo(now time.Time, exclude []route.EndpointID) *endpoint {
	n := uint64(len(b.active))
	if n == 0 {
		return nil
	}
	bits := b.cfg.Rand()
	i := (bits & math.MaxUint32) * n >> 32
	x := b.active[i]
	if n == 1 {
		if b.skipped(x, exclude) {
			return nil
		}
		return x
	}
	j := (bits >> 32) * (n - 1) >> 32
	if j >= i {
		j++
	}
	y := b.active[j]
	switch skipX, skipY := b.skipped(x, exclude), b.skipped(y, exclude); {
	case skipX && skipY:
		return nil
	case skipX:
		return y
	case skipY:
		return x
	}
	if b.cfg.SlowStart > 0 {
		if b.defers(x, now) {
			return y
		}
		if b.defers(y, now) {
			return x
		}
	}
	return b.cheaper(x, y, now)
}

func (b *Balancer) skipped(e *endpoint, exclude []route.EndpointID) bool {
	return b.full(e) || len(exclude) > 0 && slices.Contains(exclude, e.id)
}

func (b *Balancer) full(e *endpoint) bool {
	return b.cfg.MaxOutstanding > 0 && e.outstanding >= b.cfg.MaxOutstanding
}

// chooseAny looks for an endpoint when two random ones were not usable. It prefers those
// in the aperture, then all that are not ejected, then the excluded ones, and at last
// those that are ejected. Among equals it takes the one with the fewest outstanding
// requests.
func (b *Balancer) chooseAny(exclude []route.EndpointID) *endpoint {
	var best *endpoint
	least := func(es []*endpoint, match func(*endpoint) bool) {
		for _, e := range es {
			if !b.full(e) && match(e) && (best == nil || e.outstanding < best.outstanding ||
				e.outstanding == best.outstanding && e.lastPick < best.lastPick) {
				best = e
			}
		}
	}
	fresh := func(e *endpoint) bool { return !slices.Contains(exclude, e.id) }
	least(b.active, fresh)
	if best == nil {
		least(b.ranked, func(e *endpoint) bool { return fresh(e) && !e.isEjected() })
	}
	if best == nil {
		least(b.ranked, func(e *endpoint) bool { return !e.isEjected() })
	}
	if best == nil && b.inPanic() {
		least(b.ranked, func(*endpoint) bool { return true })
	}
	return best
}

// start counts a request as outstanding.
func (b *Balancer) start(e *endpoint) Choice {
	b.seq++
	e.outstanding++
	e.lastPick = b.seq
	if e.trial == trialNext {
		e.trial = b.seq
	}
	return Choice{ID: e.id, Trial: e.trial == b.seq, endpoint: e, seq: b.seq}
}
