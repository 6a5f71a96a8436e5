// Package balance chooses the endpoint that gets the next request. It opens no
// connections, starts no goroutines and reads no clock.
//
//	known endpoints ─▶ zone ─▶ not ejected ─▶ aperture ─▶ two random ones ─▶ the cheaper
//	                                ▲                                          │
//	                                └────── latency, outcome, outstanding ◀────┘
//
// What always holds:
//   - No endpoint is ejected if more than half of those known would be. If healthy ones
//     leave so that more than half are, all take requests.
//   - Endpoints of similar latency get equal shares, even if single responses are slow.
//   - An endpoint that answers with errors gets no more than its share, however fast the
//     errors are.
//   - An endpoint that has just been added gets its share at once, and not more.
//   - Memory is proportional to the number of known endpoints.
//
// docs/design/0025-balancing.md has the rules and the reasons for each constant.
package balance

import (
	"cmp"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/route"
)

// ErrNoEndpoint reports that the balancer knows no endpoint.
var ErrNoEndpoint = errors.New("no endpoint is known")

// ErrCircuitOpen reports that each endpoint has as many outstanding requests as
// Config.MaxOutstanding allows.
var ErrCircuitOpen = errors.New("every endpoint has too many outstanding requests")

// Endpoint is one endpoint that may take requests.
type Endpoint struct {
	ID route.EndpointID
	// Priority is 0 for the endpoints of the same zone, and higher for those farther
	// away. Only endpoints of the lowest priority get requests while at least 70 % of
	// them are healthy. If fewer are, those of the next priority take part too.
	Priority uint8
}

// Config configures a Balancer. The zero value is usable.
type Config struct {
	// Seed chooses which 16 of many endpoints this balancer uses. Different nodes
	// should have different seeds, and a node should keep its seed.
	Seed uint64
	// MaxOutstanding is the most outstanding requests of one endpoint. 0 means no limit.
	MaxOutstanding int
	// SlowStart is the time in which the share of a new endpoint grows from a tenth to
	// the whole. 0 gives a new endpoint its whole share at once. The endpoints of the
	// first Update that has any are not new.
	SlowStart time.Duration
	// Rand returns random bits. It is called with the balancer's lock held. Nil means
	// rand.Uint64 of math/rand/v2.
	Rand func() uint64
}

// Outcome is what became of a request, as far as it says something about the endpoint.
type Outcome uint8

const (
	// Success is a response. OutcomeOf says which statuses are one.
	Success Outcome = iota
	// Failure counts toward ejection: a refused or reset connection, a timeout, and the
	// statuses that EjectOn names.
	Failure
	// Neutral says nothing about the endpoint: the caller went away, or the session broke
	// on the way to the endpoint.
	Neutral
	// ServerError is an error that may come faster than the endpoint works. It does not
	// count toward ejection. As the outcome of a trial, it ends the ejection.
	ServerError
)

// EjectOn says which statuses count as failures. Failed connections always do.
type EjectOn uint8

const (
	// EjectOnGatewayErrors counts 502, 503 and 504.
	EjectOnGatewayErrors EjectOn = iota
	// EjectOnServerErrors counts 500 to 599.
	EjectOnServerErrors
)

const tooManyRequests = 429

// OutcomeOf returns the outcome of a response with an HTTP status.
func OutcomeOf(status int, on EjectOn) Outcome {
	switch {
	case status >= 502 && status <= 504, on == EjectOnServerErrors && status >= 500 && status <= 599:
		return Failure
	case status >= 500 && status <= 599, status == tooManyRequests:
		return ServerError
	}
	return Success
}

// Choice is a request that Pick has given to an endpoint. It counts as outstanding until
// Done or Finish. It is a small value without resources of its own.
type Choice struct {
	ID route.EndpointID
	// Trial reports that the endpoint is ejected and the outcome of this request may end
	// the ejection.
	Trial bool

	endpoint *endpoint
	seq      uint64 // of the pick, from 1
}

// Balancer balances the requests of one session key: one caller identity and one port of
// one mirrored Service. Make it with New. It is safe for concurrent use.
type Balancer struct {
	cfg     Config
	version atomic.Uint64

	mu     sync.Mutex // guards what follows, and the endpoints
	byID   map[route.EndpointID]*endpoint
	ranked []*endpoint // all known, in the order of preference of this seed
	active []*endpoint // those in the aperture: a prefix of the usable ones in ranked
	usable int         // endpoints that active could grow to without a change of health

	ejected   int
	nextTrial time.Time // the earliest end of an ejection without a trial; zero if there is none

	seq      uint64  // number of picks
	requests int     // picks since the last idle time; stops growing at the widest aperture
	recent   float64 // picks of about the last minute, decayed at recentAt
	recentAt time.Time
	lastPick time.Time

	median       float64 // latency of a typical active endpoint in ns; 0 if none is measured
	observations int     // since median was computed
	scratch      []float64
}

// New returns a Balancer that knows no endpoint.
func New(cfg Config) *Balancer {
	if cfg.Rand == nil {
		cfg.Rand = rand.Uint64
	}
	return &Balancer{cfg: cfg, byID: make(map[route.EndpointID]*endpoint)}
}

// Update replaces the known endpoints. Endpoints that stay keep their measurements.
// Choices of endpoints that have gone may still be finished. If an id comes twice, the
// first counts.
func (b *Balancer) Update(known []Endpoint, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	first := len(b.ranked) == 0
	changed := false
	seen := make(map[route.EndpointID]bool, len(known))
	for _, k := range known {
		if seen[k.ID] {
			continue
		}
		seen[k.ID] = true
		if e, ok := b.byID[k.ID]; ok {
			changed = changed || e.priority != k.Priority
			e.priority = k.Priority
			continue
		}
		changed = true
		e := &endpoint{id: k.ID, priority: k.Priority, rank: rank(b.cfg.Seed, k.ID)}
		if !first && b.cfg.SlowStart > 0 {
			e.added = now
		}
		b.byID[k.ID] = e
		b.ranked = append(b.ranked, e)
	}
	if len(seen) == len(b.ranked) && !changed {
		return
	}
	b.ranked = slices.DeleteFunc(b.ranked, func(e *endpoint) bool {
		if seen[e.id] {
			return false
		}
		delete(b.byID, e.id)
		return true
	})
	slices.SortFunc(b.ranked, func(x, y *endpoint) int {
		return cmp.Or(cmp.Compare(x.rank, y.rank), slices.Compare(x.id[:], y.id[:]))
	})
	b.recountEjected()
	b.rebuild(now)
}

// rank places an endpoint in the order of one seed. Orders of different seeds are
// unrelated, and an endpoint that comes or goes leaves the order of the others as it is.
func rank(seed uint64, id route.EndpointID) uint64 {
	return mix(mix(seed) ^ binary.LittleEndian.Uint64(id[:]))
}

// mix is the finalizer of SplitMix64.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// Pick chooses an endpoint for a request, and counts the request as outstanding there.
// The caller must call Done or Finish once. Pick avoids the excluded endpoints, which a
// retry has already tried, as long as there are others. The error is ErrNoEndpoint or
// ErrCircuitOpen.
//
// If the ejection of an endpoint has ended, Pick gives it one request as a trial. A
// request with excluded endpoints is not used for that.
func (b *Balancer) Pick(now time.Time, exclude ...route.EndpointID) (Choice, error) {
	return b.pick(now, exclude, len(exclude) == 0)
}

// PickAvoiding is Pick for a request that is not a retry and avoids endpoints for another
// reason. The request may be the trial of an endpoint that it does not avoid.
func (b *Balancer) PickAvoiding(now time.Time, avoid ...route.EndpointID) (Choice, error) {
	return b.pick(now, avoid, true)
}

func (b *Balancer) pick(now time.Time, exclude []route.EndpointID, trial bool) (Choice, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.ranked) == 0 {
		return Choice{}, ErrNoEndpoint
	}
	b.countRequest(now)
	if trial && b.hasDueTrial(now) {
		if e := b.trial(now, exclude); e != nil {
			return b.start(e), nil
		}
	}
	e := b.chooseTwo(now, exclude)
	if e == nil {
		e = b.chooseAny(exclude)
	}
	if e == nil {
		return Choice{}, ErrCircuitOpen
	}
	return b.start(e), nil
}

// PickID chooses the endpoint id, for session affinity, and counts the request as
// outstanding there. It returns false if the endpoint is unknown, ejected or full. The
// caller then calls Pick.
func (b *Balancer) PickID(id route.EndpointID, now time.Time) (Choice, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e, ok := b.byID[id]
	if !ok || e.isEjected() || b.full(e) {
		return Choice{}, false
	}
	b.countRequest(now)
	return b.start(e), true
}

// TakesPart reports whether an endpoint may get requests now. It is false for an unknown
// endpoint. If more than half of all endpoints are ejected, it is true for every known
// endpoint. Otherwise the endpoint must not be ejected, and its priority must take part.
func (b *Balancer) TakesPart(id route.EndpointID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	e, ok := b.byID[id]
	return ok && (b.inPanic() || !e.isEjected() && e.priority <= b.priorityLimit())
}

// Observe records the latency and the outcome of a request. The latency is the time from
// the head of the request to the head of the response, without the time for making a
// session. If it is 0, only the outcome counts; use that for streams whose response
// begins when the application has news. Call Observe at most once for each Choice, when
// the response begins. It reports whether the endpoint was ejected because of this
// outcome.
func (b *Balancer) Observe(c Choice, latency time.Duration, o Outcome, now time.Time) (ejected bool) {
	if c.endpoint == nil {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.observe(c, latency, o, now)
}

// Done ends a request: it is no longer outstanding. Call it once for each Choice, after
// Observe.
func (b *Balancer) Done(c Choice) {
	if c.endpoint == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.done(c.endpoint, c.seq)
}

// Finish is Observe and Done in one call.
func (b *Balancer) Finish(c Choice, latency time.Duration, o Outcome, now time.Time) (ejected bool) {
	if c.endpoint == nil {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	ejected = b.observe(c, latency, o, now)
	b.done(c.endpoint, c.seq)
	return ejected
}

// Aperture returns the endpoints to which sessions should exist: those that Pick chooses
// from now.
func (b *Balancer) Aperture(now time.Time) []route.EndpointID {
	b.mu.Lock()
	defer b.mu.Unlock()
	if want := b.width(now); want != len(b.active) {
		b.rebuild(now)
	}
	ids := make([]route.EndpointID, len(b.active))
	for i, e := range b.active {
		ids[i] = e.id
	}
	return ids
}

// DueTrials returns the endpoints whose ejection time has passed and that wait for a
// trial. The caller should keep sessions with these, too.
func (b *Balancer) DueTrials(now time.Time) (ids []route.EndpointID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.hasDueTrial(now) {
		return nil
	}
	for _, e := range b.ranked {
		if e.isDueTrial(now) {
			ids = append(ids, e.id)
		}
	}
	return ids
}

// Version changes whenever the result of Aperture does. It is cheap.
func (b *Balancer) Version() uint64 { return b.version.Load() }
