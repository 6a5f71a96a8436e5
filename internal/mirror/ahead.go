package mirror

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/internal/catalog"
)

// aheadFor is how long our own write is believed against a cache that has not seen it.
const aheadFor = 5 * time.Second

// ahead holds what we wrote and the cache may not show yet, so that nothing is
// written twice. It is believed only while the cache shows what it showed when we
// wrote, and not for long: somebody may have undone it unseen.
type ahead struct {
	services   map[catalog.Key]written[*corev1.Service]
	slices     map[catalog.Key]written[*discoveryv1.EndpointSlice]
	namespaces map[string]time.Time // made, and believed until then
}

// written is one write of ours.
type written[T client.Object] struct {
	was    string // resourceVersion before it; empty: there was none
	object T      // as it is now
	gone   bool   // it was deleted
	until  time.Time
}

func newAhead() *ahead {
	return &ahead{
		services:   make(map[catalog.Key]written[*corev1.Service]),
		slices:     make(map[catalog.Key]written[*discoveryv1.EndpointSlice]),
		namespaces: make(map[string]time.Time),
	}
}

// wrote notes that c was made.
func (a *ahead) wrote(c Change, now time.Time) {
	if c.Namespace != nil {
		a.namespaces[c.Namespace.Name] = now.Add(aheadFor)
		return
	}
	was := ""
	switch c.Op {
	case Update:
		was = c.Was.GetResourceVersion()
	case Delete:
		was = c.Object().GetResourceVersion()
	}
	if c.Slice != nil {
		a.slices[keyOf(c.Slice)] = written[*discoveryv1.EndpointSlice]{was, c.Slice, c.Op == Delete, now.Add(aheadFor)}
		return
	}
	a.services[keyOf(c.Service)] = written[*corev1.Service]{was, c.Service, c.Op == Delete, now.Add(aheadFor)}
}

// amend makes have say what we know, forgets what the cache has caught up with,
// and returns after how long to look again, 0 if the cache was right.
func (a *ahead) amend(have Have, now time.Time) time.Duration {
	for name, until := range a.namespaces {
		if have.Namespaces[name] || have.Leaving[name] || !now.Before(until) {
			delete(a.namespaces, name)
		} else {
			have.Namespaces[name] = true
		}
	}
	return sooner(amend(a.services, have.Services, now), amend(a.slices, have.Slices, now))
}

func amend[T client.Object](writes map[catalog.Key]written[T], have map[catalog.Key]T, now time.Time) time.Duration {
	var again time.Duration
	for k, w := range writes {
		seen := ""
		if o, ok := have[k]; ok {
			seen = o.GetResourceVersion()
		}
		if seen != w.was || !now.Before(w.until) {
			delete(writes, k)
			continue
		}
		if w.gone {
			delete(have, k)
		} else {
			have[k] = w.object
		}
		again = sooner(again, w.until.Sub(now))
	}
	return again
}
