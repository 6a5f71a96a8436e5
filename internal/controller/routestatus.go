package controller

import (
	"context"
	"log/slog"
	"maps"
	"reflect"
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
	// maxContestedPause is the longest pause between two writes of a status that another
	// controller removes each time.
	maxContestedPause = 10 * time.Minute
	// contestedWarning is the shortest pause at which the controller logs a warning about
	// such a route.
	contestedWarning = 30 * time.Second
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

// pendingRoute is a status to write, or a record of the last write.
type pendingRoute struct {
	want     *gatewayroutes.Status // nil: none
	due      time.Time             // when it is written
	failures int

	written *gatewayroutes.Status // what was written last; nil: nothing
	wroteAt time.Time
	// pause is the shortest time from wroteAt to the next write. It doubles each time
	// that another controller has removed the written status.
	pause  time.Duration
	warned bool // the log has a warning about the other controller
}

// forgotten reports whether the record can be dropped: there is nothing to write, the
// pause is over, and the status has then stayed for as long as another pause.
func (p *pendingRoute) forgotten(now time.Time) bool {
	return p.want == nil && !now.Before(p.wroteAt.Add(2*p.pause))
}

// set makes s the status that is written next.
func (p *pendingRoute) set(s *gatewayroutes.Status, now time.Time) {
	contested := p.written != nil && reflect.DeepEqual(p.written, s)
	waiting := p.want != nil
	p.want = s
	switch {
	case waiting && (contested || p.failures > 0 || p.pause <= routePause):
		return
	case contested:
		p.pause = min(2*p.pause, maxContestedPause)
	default:
		p.pause = routePause
	}
	p.due = now.Add(routeStatusDelay)
	if after := p.wroteAt.Add(p.pause); p.due.Before(after) {
		p.due = after
	}
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
		p.set(&all[i].Status, now)
		if p.pause >= contestedWarning && !p.warned {
			p.warned = true
			w.log.Warn("another controller removes Causeway's entries from the status of a route, writing "+
				"them less often", "route", all[i].ID.String())
		}
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
		wrote, err := w.update(ctx, next)
		if ctx.Err() != nil {
			return 0, nil
		}
		w.done(next, wrote, err, time.Now())
	}
}

// next returns a status that is due, or nil and how long it takes until one is; 0: there
// is none. It drops the records that are forgotten.
func (w *routeStatuses) next(now time.Time) (*gatewayroutes.Status, time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	maps.DeleteFunc(w.pending, func(_ gatewayroutes.ID, p *pendingRoute) bool {
		return p.forgotten(now)
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

// done records the result of a write. wrote is false if the route had the status already,
// or if it has been deleted or changed since the reconciler decided about it.
func (w *routeStatuses) done(s *gatewayroutes.Status, wrote bool, err error, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.pending[s.ID]
	if p == nil {
		return
	}
	if err == nil {
		p.failures, p.wroteAt = 0, now
		if wrote {
			p.written = s
		} else {
			p.pause = routePause // no controller has removed it
		}
		p.due = now.Add(p.pause) // of a status that was set meanwhile
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

// update writes one status if it differs from that of the route, and reports whether it
// did. A route that has been deleted or changed is not written: the reconciler decides
// about it again.
func (w *routeStatuses) update(ctx context.Context, s *gatewayroutes.Status) (wrote bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	object, parents := routeObject(s.ID.Kind)
	err = w.live.Get(ctx, client.ObjectKey{Namespace: s.ID.Namespace, Name: s.ID.Name}, object)
	if apierrors.IsNotFound(err) || meta.IsNoMatchError(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if string(object.GetUID()) != s.UID || object.GetGeneration() != s.Generation {
		return false, nil
	}
	merged, differs := s.Merge(*parents, time.Now())
	if !differs {
		return false, nil
	}
	before := object.DeepCopyObject().(client.Object)
	*parents = merged
	patch := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
	err = w.live.Status().Patch(ctx, object, patch)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
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
