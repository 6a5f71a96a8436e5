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
	// failuresToEject in a row eject a backend.
	failuresToEject = 2
	// An ejection lasts minEjection, and twice as long each time a trial fails.
	minEjection = 5 * time.Second
	maxEjection = time.Minute
	// trialTime is how long one connection may take to try an ejected backend.
	trialTime = 2 * dialTimeout
	// maxFailing bounds the backends that are remembered.
	maxFailing = 4096
)

// ejections remembers the backends that lately took no connection, over any route. It
// decides only on the order in which endpoints are tried: an ejected backend comes last.
// When its ejection is over, one connection tries it. It is safe for concurrent use.
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

// failed notes that a backend took no connection.
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

// succeeded notes that a backend took a connection.
func (e *ejections) succeeded(backend netip.AddrPort) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.failing.Delete(backend)
}

// ejected reports whether others are to be tried before a backend whose turn it is. After
// the ejection it returns false once in each trialTime: the caller then tries the
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

// order yields the endpoints of a row in the order in which to try them: as shuffled
// does, but those whose backend is ejected come last.
func (e *ejections) order(row route.Row, hint route.Wish) iter.Seq[route.Endpoint] {
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
// random order. In an order that is the same for all, the one after a dead endpoint would
// get the connections of both.
func shuffled(row route.Row, hint route.Wish) iter.Seq[route.Endpoint] {
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
