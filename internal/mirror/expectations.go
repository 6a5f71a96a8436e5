package mirror

import (
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/internal/catalog"
)

// expectFor is how long our own write overrides a cache that does not show it.
const expectFor = 5 * time.Second

// expectations hold our own writes that the cache may not show yet, so that nothing is
// written twice. A write overrides the cache only while the cache shows an older version,
// and only for expectFor, because another writer may have undone it in the meantime. It
// is safe for concurrent use.
type expectations struct {
	mu         sync.Mutex // guards the maps
	services   map[catalog.Key]expectation[*corev1.Service]
	slices     map[catalog.Key]expectation[*discoveryv1.EndpointSlice]
	namespaces map[string]namespaceExpectation
}

// expectation is our last write of one object.
type expectation[T client.Object] struct {
	object T    // as the API server returned it
	gone   bool // it was deleted
	// older are the versions that the cache may show until it shows our write; an empty
	// one stands for no object.
	older []string
	until time.Time
}

type namespaceExpectation struct {
	link  string // the Link for which it was made
	until time.Time
}

func newExpectations() *expectations {
	return &expectations{
		services:   make(map[catalog.Key]expectation[*corev1.Service]),
		slices:     make(map[catalog.Key]expectation[*discoveryv1.EndpointSlice]),
		namespaces: make(map[string]namespaceExpectation),
	}
}

// wrote records a write that the API server has accepted.
func (e *expectations) wrote(c Change, link string, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	until := now.Add(expectFor)
	base := ""
	switch c.Op {
	case Update:
		base = c.Was.GetResourceVersion()
	case Delete:
		base = c.Object().GetResourceVersion()
	}
	switch {
	case c.Namespace != nil:
		e.namespaces[c.Namespace.Name] = namespaceExpectation{link: link, until: until}
	case c.Slice != nil:
		record(e.slices, c.Slice, c.Op == Delete, base, until)
	default:
		record(e.services, c.Service, c.Op == Delete, base, until)
	}
}

func record[T client.Object](m map[catalog.Key]expectation[T], o T, gone bool, base string, until time.Time) {
	k := keyOf(o)
	m[k] = expectation[T]{object: o, gone: gone, older: append(m[k].older, base), until: until}
}

// service returns the current state of a Service. cached is the state in the cache; nil:
// the cache has none. It also returns how long our own write overrides the cache; 0: it
// does not.
func (e *expectations) service(
	k catalog.Key, cached *corev1.Service, now time.Time,
) (*corev1.Service, time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	version := ""
	if cached != nil {
		version = cached.ResourceVersion
	}
	return overlay(e.services, k, cached, version, now)
}

// slice does for EndpointSlices what service does for Services.
func (e *expectations) slice(
	k catalog.Key, cached *discoveryv1.EndpointSlice, now time.Time,
) (*discoveryv1.EndpointSlice, time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	version := ""
	if cached != nil {
		version = cached.ResourceVersion
	}
	return overlay(e.slices, k, cached, version, now)
}

func overlay[T client.Object](
	m map[catalog.Key]expectation[T], k catalog.Key, cached T, version string, now time.Time,
) (T, time.Duration) {
	x, ok := m[k]
	if !ok {
		return cached, 0
	}
	left := x.until.Sub(now)
	if left <= 0 || !slices.Contains(x.older, version) {
		delete(m, k)
		return cached, 0
	}
	if x.gone {
		var none T
		return none, left
	}
	return x.object, left
}

// namespace reports whether a namespace that the cache does not show was made just now.
func (e *expectations) namespace(name string, now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return now.Before(e.namespaces[name].until)
}

// namespacesOf returns the namespaces made for a Link just now.
func (e *expectations) namespacesOf(link string, now time.Time) []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []string
	for name, x := range e.namespaces {
		if x.link == link && now.Before(x.until) {
			out = append(out, name)
		}
	}
	return out
}

// expire removes the writes that no longer override the cache.
func (e *expectations) expire(now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	expire(e.services, now)
	expire(e.slices, now)
	maps.DeleteFunc(e.namespaces, func(_ string, x namespaceExpectation) bool { return !now.Before(x.until) })
}

func expire[T client.Object](m map[catalog.Key]expectation[T], now time.Time) {
	maps.DeleteFunc(m, func(_ catalog.Key, x expectation[T]) bool { return !now.Before(x.until) })
}
