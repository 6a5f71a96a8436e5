package controller

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/causeway-mesh/causeway/internal/gatewayroutes"
	"github.com/causeway-mesh/causeway/internal/throttle"
)

const (
	// routeWritesPerSecond bounds the writes of all routes' statuses.
	routeWritesPerSecond = 20
	// routeStatusDelay is how long a status waits for a change that follows.
	routeStatusDelay = 250 * time.Millisecond
	// routePause is the least time between two writes of one route's status.
	routePause = 2 * time.Second
	// maxRoutePause is the longest pause after failed writes.
	maxRoutePause = time.Minute
)

// routeStatuses writes the statuses of routes. It reads each route live before it writes,
// because the list of parents can only be replaced as a whole, and other controllers have
// their entries in it.
type routeStatuses struct {
	live  client.Client
	limit *throttle.Limiter
	log   *slog.Logger
	task  *task

	mu      sync.Mutex // guards pending
	pending map[gatewayroutes.ID]*pendingRoute
}

// routeStatus is the wanted status of a route. differs: the route has another one.
type routeStatus struct {
	gatewayroutes.Status
	differs bool
}

// pendingRoute is a status to write, or a pause after a write.
type pendingRoute struct {
	want     *gatewayroutes.Status // nil: none
	due      time.Time             // when it is written
	after    time.Time             // no write before
	failures int
}

func newRouteStatuses(live client.Client, log *slog.Logger) *routeStatuses {
	return &routeStatuses{
		live:    live,
		limit:   throttle.New(routeWritesPerSecond, nil),
		log:     log,
		pending: make(map[gatewayroutes.ID]*pendingRoute),
	}
}

// set makes statuses the next to write, as far as they differ.
func (w *routeStatuses) set(all []routeStatus, now time.Time) {
	if len(all) == 0 {
		return
	}
	w.mu.Lock()
	for i := range all {
		p := w.pending[all[i].ID]
		if !all[i].differs {
			if p != nil {
				p.want = nil
			}
			continue
		}
		if p == nil {
			p = &pendingRoute{}
			w.pending[all[i].ID] = p
		}
		if p.want == nil {
			p.due = now.Add(routeStatusDelay)
			if p.due.Before(p.after) {
				p.due = p.after
			}
		}
		p.want = &all[i].Status
	}
	w.mu.Unlock()
	w.task.set(w.write)
}

// write writes what is due, and returns after how long there is more.
func (w *routeStatuses) write(ctx context.Context, _ int) (time.Duration, error) {
	for {
		now := time.Now()
		next, wait := w.next(now)
		if next == nil {
			return wait, nil
		}
		if pause := w.limit.Wait(now); pause > 0 {
			return pause, nil
		}
		w.limit.Take(now)
		err := w.update(ctx, next)
		if ctx.Err() != nil {
			return 0, nil
		}
		w.done(next, err, time.Now())
	}
}

// next returns a status that is due, or nil and how long it takes until one is; 0: there
// is none. It drops pauses that are over.
func (w *routeStatuses) next(now time.Time) (*gatewayroutes.Status, time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	maps.DeleteFunc(w.pending, func(_ gatewayroutes.ID, p *pendingRoute) bool {
		return p.want == nil && !now.Before(p.after)
	})
	var first *pendingRoute
	for _, p := range w.pending {
		if p.want != nil && (first == nil || p.due.Before(first.due)) {
			first = p
		}
	}
	switch {
	case first == nil:
		return nil, 0
	case now.Before(first.due):
		return nil, first.due.Sub(now)
	}
	return first.want, 0
}

// done records the result of a write.
func (w *routeStatuses) done(s *gatewayroutes.Status, err error, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.pending[s.ID]
	if p == nil {
		return
	}
	if err == nil {
		p.failures, p.after = 0, now.Add(routePause)
		p.due = p.after // of a status that was set meanwhile
		if p.want == s {
			p.want = nil
		}
		return
	}
	pause := min(routePause<<min(p.failures, 6), maxRoutePause)
	if apierrors.IsConflict(err) && p.failures == 0 {
		pause = routeStatusDelay // another controller wrote
	}
	p.failures++
	p.due = now.Add(pause)
	logFailure(context.Background(), w.log.With("route", s.ID.String()), "status not written, retrying", err,
		p.failures-1)
}

// update writes one status if it differs from that of the route. A route that has been
// deleted or changed is not written: the reconciler decides about it again.
func (w *routeStatuses) update(ctx context.Context, s *gatewayroutes.Status) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	object, parents := routeObject(s.ID.Kind)
	err := w.live.Get(ctx, client.ObjectKey{Namespace: s.ID.Namespace, Name: s.ID.Name}, object)
	if apierrors.IsNotFound(err) || meta.IsNoMatchError(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if string(object.GetUID()) != s.UID || object.GetGeneration() != s.Generation {
		return nil
	}
	merged, differs := s.Merge(*parents, time.Now())
	if !differs {
		return nil
	}
	before := object.DeepCopyObject().(client.Object)
	*parents = merged
	patch := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
	err = w.live.Status().Patch(ctx, object, patch)
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// routeObject returns an empty route, and the list of parents in its status.
func routeObject(kind gatewayroutes.Kind) (client.Object, *[]gatewayv1.RouteParentStatus) {
	if kind == gatewayroutes.GRPCRoute {
		o := &gatewayv1.GRPCRoute{}
		return o, &o.Status.Parents
	}
	o := &gatewayv1.HTTPRoute{}
	return o, &o.Status.Parents
}
