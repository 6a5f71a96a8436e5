package mirror

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/internal/catalog"
)

const (
	// resyncPeriod is the time in which every mirror is looked at once, though nothing
	// has happened. It is a safety net: what it finds is counted, and should be nothing.
	resyncPeriod = 10 * time.Minute
	// resyncInterval is the time between two parts of the resync.
	resyncInterval = 5 * time.Second
)

// resync is how far the resync of a Link is. The order stays the same, so that every
// mirror has its turn once per resyncPeriod.
type resync struct {
	order []*mirrorState // those that are forgotten are removed at the end of a round
	next  int
	// credit is the number of mirrors, and parts of one, that are to be looked at by now.
	credit float64
}

// resyncSome queues the next part of every Link's mirrors.
func (w *Writer) resyncSome(now time.Time) {
	w.expected.expire(now)
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range w.links {
		r := &l.resync
		r.credit += float64(len(l.mirrors)) * float64(resyncInterval) / float64(resyncPeriod)
		for visited := 0; r.credit >= 1 && visited < len(l.mirrors); visited++ {
			if m := r.turn(l); m.want == nil {
				w.enqueue(m) // in its own lane, which is paced
			} else {
				w.enqueueIn(m, resyncLane)
			}
			r.credit--
		}
	}
}

// turn returns the next mirror of a Link that has some.
func (r *resync) turn(l *linkState) *mirrorState {
	for {
		if r.next >= len(r.order) {
			r.next = 0
			r.order = slices.DeleteFunc(r.order, func(m *mirrorState) bool { return l.mirrors[m.key] != m })
		}
		m := r.order[r.next]
		r.next++
		if l.mirrors[m.key] == m {
			return m
		}
	}
}

// adopt queues the existing mirrors of a Link when the Link appears, including mirrors
// that are no longer wanted. It lists the objects of the Link once.
func (w *Writer) adopt(ctx context.Context, l *linkState, s *Scope) {
	services, sliced, err := w.standing(ctx, s)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queue.done(&l.linkQueue, nil)
	if l.removed {
		return
	}
	if err != nil {
		if ctx.Err() == nil && l.failed(time.Now()) {
			w.Log.Warn("mirrors cannot be listed and will be listed again", "link", l.name, "error", err)
		}
		l.adopt = true
		w.queue.activate(&l.linkQueue)
		return
	}
	l.adopting = l.adopt // the Link may have been replaced meanwhile
	for _, k := range services {
		m := l.mirrors[k]
		if m == nil {
			m = w.add(l, k)
		}
		l.account(m, -1)
		m.standing = true
		l.account(m, +1)
	}
	for _, k := range sliced {
		if l.mirrors[k] == nil {
			w.add(l, k)
		}
	}
	for _, m := range l.mirrors {
		w.enqueue(m)
	}
	w.changed(l)
}

// standing returns the Services that the Link owns and the Services that its slices claim
// to belong to.
func (w *Writer) standing(ctx context.Context, s *Scope) (services, sliced []catalog.Key, err error) {
	var owned corev1.ServiceList
	err = w.Reader.List(ctx, &owned, byField(OwnerIndex, string(s.Link.UID)), client.UnsafeDisableDeepCopy)
	if err != nil {
		return nil, nil, fmt.Errorf("list the mirrors of Link %s: %w", s.Link.Name, err)
	}
	for i := range owned.Items {
		if owned.Items[i].DeletionTimestamp.IsZero() {
			services = append(services, keyOf(&owned.Items[i]))
		}
	}
	var marked discoveryv1.EndpointSliceList
	err = w.Reader.List(ctx, &marked, byField(LinkIndex, s.Link.Name), client.UnsafeDisableDeepCopy)
	if err != nil {
		return nil, nil, fmt.Errorf("list the EndpointSlices of Link %s: %w", s.Link.Name, err)
	}
	for i := range marked.Items {
		if of := marked.Items[i].Labels[discoveryv1.LabelServiceName]; of != "" {
			sliced = append(sliced, catalog.Key{Namespace: marked.Items[i].Namespace, Name: of})
		}
	}
	return services, sliced, nil
}
