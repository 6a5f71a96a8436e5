package mirror

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/internal/catalog"
)

const (
	// resyncPeriod is the time in which every mirror is looked at once, though nothing has
	// happened. It is a safety net: what it finds is counted, and should be nothing.
	resyncPeriod = 10 * time.Minute
	// resyncInterval is the time between two parts of the resync.
	resyncInterval = 5 * time.Second
)

// resync is how far the resync of a Link is.
type resync struct {
	order []*mirrorState
	next  int
}

// resyncSome queues the next part of every Link's mirrors.
func (w *Writer) resyncSome(now time.Time) {
	w.expected.expire(now)
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range w.links {
		r := &l.resync
		if r.next >= len(r.order) {
			r.order, r.next = r.order[:0], 0
			for _, m := range l.mirrors {
				r.order = append(r.order, m)
			}
		}
		const parts = int(resyncPeriod / resyncInterval)
		for range (len(r.order) + parts - 1) / parts {
			if r.next >= len(r.order) {
				break
			}
			m := r.order[r.next]
			r.next++
			switch {
			case l.mirrors[m.key] != m: // forgotten since
			case m.want == nil:
				w.enqueue(m) // its lane is paced
			default:
				w.enqueueIn(m, resyncLane)
			}
		}
	}
}

// adopt finds what stands of a Link's mirrors when the Link appears, also what nobody wants
// any more, and queues it. It lists the Link's objects once.
func (w *Writer) adopt(ctx context.Context, l *linkState, s *Scope) {
	services, slices, err := w.standing(ctx, s)
	w.mu.Lock()
	defer w.mu.Unlock()
	defer w.signal()
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
	for _, k := range slices {
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
func (w *Writer) standing(ctx context.Context, s *Scope) (services, slices []catalog.Key, err error) {
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
			slices = append(slices, catalog.Key{Namespace: marked.Items[i].Namespace, Name: of})
		}
	}
	return services, slices, nil
}
