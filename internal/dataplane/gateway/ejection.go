package gateway

import (
	"iter"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/budget"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
)

const (
	// failuresToEject is how many consecutive failures eject a backend.
	failuresToEject = 2
	// An ejection lasts minEjection, and twice as long each time a trial fails.
	minEjection = 5 * time.Second
	maxEjection = time.Minute
	// trialTime is how long one connection may take to try an ejected backend.
	trialTime = 2 * dialTimeout
	// maxFailing bounds the backends that are tracked.
	maxFailing = 4096
)

// ejections tracks the backends that recently failed, over any route. It decides only
// on the order in which endpoints are tried: an ejected backend comes last. When its
// ejection is over, one connection tries it. It is safe for concurrent use.
type ejections struct {
	mu      sync.Mutex // guards failing
	failing *budget.Map[netip.AddrPort, *failingBackend]
}

type failingBackend struct {
	failures int           // in a row
	ejection time.Duration // how long it lasts; zero: not ejected
	until    time.Time     // the end of the ejection, or of the trial
	trial    bool          // the ejection is over, and a connection tries the backend
}

func newEjections() *ejections {
	return &ejections{failing: budget.NewMap[netip.AddrPort, *failingBackend](maxFailing)}
}

// failed records that a backend did not accept a connection.
func (e *ejections) failed(backend netip.AddrPort, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	b, ok := e.failing.Get(backend)
	if !ok {
		b = &failingBackend{}
	}
	e.failing.Put(backend, b)
	switch b.failures++; {
	case b.failures < failuresToEject:
		return
	case b.ejection == 0:
		b.ejection = minEjection
	case b.trial:
		b.ejection = min(2*b.ejection, maxEjection)
	default:
		return // the attempt began before the ejection, or every other backend had failed
	}
	b.until, b.trial = now.Add(b.ejection), false
}

// succeeded records that a backend accepted a connection.
func (e *ejections) succeeded(backend netip.AddrPort) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.failing.Delete(backend)
}

// ejected reports whether other backends must be tried before this one. After the
// ejection it returns false once in each trialTime, and the caller then tries the
// backend.
func (e *ejections) ejected(backend netip.AddrPort, now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	b, ok := e.failing.Get(backend)
	switch {
	case !ok || b.ejection == 0:
		return false
	case now.Before(b.until):
		return true
	}
	b.until, b.trial = now.Add(trialTime), true
	return false
}

// order yields the endpoints of a row in the order in which to try them: in the order
// of shuffled, but with ejected backends last.
func (e *ejections) order(row route.Row, hint route.Hint) iter.Seq[route.Endpoint] {
	return func(yield func(route.Endpoint) bool) {
		var last []route.Endpoint
		for endpoint := range shuffled(row, hint) {
			if e.ejected(endpoint.Backend.Address, time.Now()) {
				last = append(last, endpoint)
				continue
			}
			if !yield(endpoint) {
				return
			}
		}
		for _, endpoint := range last {
			if !yield(endpoint) {
				return
			}
		}
	}
}

// shuffled yields the hinted endpoint of a row, or a random one, and then the others in
// random order. With one fixed order, the endpoint after a dead one would get the
// connections of both.
func shuffled(row route.Row, hint route.Hint) iter.Seq[route.Endpoint] {
	return func(yield func(route.Endpoint) bool) {
		var others []route.Endpoint
		first := true
		for endpoint := range row.Pick(hint, rand.Uint64()) {
			if !first {
				others = append(others, endpoint)
				continue
			}
			first = false
			if !yield(endpoint) {
				return
			}
		}
		rand.Shuffle(len(others), func(i, j int) { others[i], others[j] = others[j], others[i] })
		for _, endpoint := range others {
			if !yield(endpoint) {
				return
			}
		}
	}
}
