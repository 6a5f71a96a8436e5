package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayv1beta1 "sigs.k8s.io/gateway-api/apis/v1beta1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/gatewayroutes"
	"github.com/causeway-mesh/causeway/internal/nodestream"
)

// The versions of Gateway API kinds that the controller reads. ReferenceGrant was served
// as v1beta1 alone for years.
var (
	gatewayV1      = schema.GroupVersion{Group: gatewayv1.GroupName, Version: "v1"}
	gatewayV1Beta1 = schema.GroupVersion{Group: gatewayv1.GroupName, Version: "v1beta1"}
)

// gatewayKinds watches HTTPRoute, GRPCRoute and ReferenceGrant, each while the cluster
// serves it. Users install and remove the Gateway API at any time.
type gatewayKinds struct {
	// served returns the versions to read, by kind, of the kinds that the cluster serves.
	served func() (map[string]schema.GroupVersion, error)
	// watch starts a cache of a kind, and returns when it is complete. After an error it
	// may still be starting. leave stops it. forget drops all objects of the kind.
	watch  func(context.Context, schema.GroupVersionKind) error
	leave  func(context.Context, schema.GroupVersionKind) error
	forget func(kind string)
	log    *slog.Logger

	// report is called with the unread kinds whenever they change.
	report func(unread []string)

	current map[string]schema.GroupVersion // what is watched now, by kind; nil: no answer yet
	// failed are the versions of which the last call of watch failed, by kind.
	failed map[string]schema.GroupVersion
	// missing are the watched and failed kinds that the last answer did not have.
	missing map[string]bool
}

func (p *process) gatewayKinds() (*gatewayKinds, error) {
	api, err := discovery.NewDiscoveryClientForConfig(p.mgr.GetConfig())
	if err != nil {
		return nil, fmt.Errorf("connect to the API server: %w", err)
	}
	in := p.reconciler.inbox
	return &gatewayKinds{
		served: func() (map[string]schema.GroupVersion, error) { return servedGatewayKinds(api) },
		watch: func(ctx context.Context, kind schema.GroupVersionKind) error {
			return p.watchGatewayKind(ctx, kind)
		},
		leave: func(ctx context.Context, kind schema.GroupVersionKind) error {
			return p.unwatch(ctx, gatewayObject(kind))
		},
		forget: func(kind string) { in.add(func(b *batch) { b.retainGateway(kind, nil) }) },
		report: func(unread []string) { in.add(func(b *batch) { b.unreadKinds = &unread }) },
		log:    p.log,
	}, nil
}

// watchGatewayKind watches a kind until it is left, and returns when the inbox has all
// objects. After an error the watch goes on, and another call takes it up.
func (p *process) watchGatewayKind(ctx context.Context, kind schema.GroupVersionKind) error {
	object := gatewayObject(kind)
	if err := p.watchListed(ctx, object, gatewayHandler(p.reconciler.inbox, object)); err != nil {
		return err
	}
	// Objects may have been deleted while the controller watched no version of the kind.
	return p.reconciler.inbox.list(
		func() (map[catalog.Key]bool, error) { return listedKeys(ctx, p.mgr.GetClient(), gatewayList(kind)) },
		func(b *batch, keys map[catalog.Key]bool) { b.retainGateway(kind.Kind, keys) })
}

// listedKeys returns the keys of the objects of one kind in a cache. list is an empty
// list of that kind.
func listedKeys(ctx context.Context, cache client.Reader, list client.ObjectList) (
	map[catalog.Key]bool, error) {
	if err := cache.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list %T: %w", list, err)
	}
	keys := make(map[catalog.Key]bool)
	err := meta.EachListItem(list, func(o runtime.Object) error {
		m, err := meta.Accessor(o)
		if err == nil {
			keys[catalog.Key{Namespace: m.GetNamespace(), Name: m.GetName()}] = true
		}
		return err
	})
	return keys, err
}

// gatewayList returns an empty list for objects of a kind.
func gatewayList(kind schema.GroupVersionKind) client.ObjectList {
	switch gatewayObject(kind).(type) {
	case *gatewayv1.HTTPRoute:
		return &gatewayv1.HTTPRouteList{}
	case *gatewayv1.GRPCRoute:
		return &gatewayv1.GRPCRouteList{}
	case *gatewayv1beta1.ReferenceGrant:
		return &gatewayv1beta1.ReferenceGrantList{}
	}
	return &gatewayv1.ReferenceGrantList{}
}

// gatewayObject returns an empty object of a kind.
func gatewayObject(kind schema.GroupVersionKind) client.Object {
	switch kind {
	case gatewayV1.WithKind("HTTPRoute"):
		return &gatewayv1.HTTPRoute{}
	case gatewayV1.WithKind("GRPCRoute"):
		return &gatewayv1.GRPCRoute{}
	case gatewayV1Beta1.WithKind("ReferenceGrant"):
		return &gatewayv1beta1.ReferenceGrant{}
	}
	return &gatewayv1.ReferenceGrant{}
}

// gatewayHandler files objects of the type of kind in the inbox.
func gatewayHandler(in *inbox, kind client.Object) toolscache.ResourceEventHandler {
	switch kind.(type) {
	case *gatewayv1.HTTPRoute:
		return handler(in, func(b *batch) *changed[gatewayv1.HTTPRoute] { return &b.httpRoutes })
	case *gatewayv1.GRPCRoute:
		return handler(in, func(b *batch) *changed[gatewayv1.GRPCRoute] { return &b.grpcRoutes })
	case *gatewayv1beta1.ReferenceGrant:
		return handler(in, func(b *batch) *changed[gatewayv1beta1.ReferenceGrant] { return &b.betaGrants })
	}
	return handler(in, func(b *batch) *changed[gatewayv1.ReferenceGrant] { return &b.grants })
}

// servedGatewayKinds queries the API server itself, because a RESTMapper never removes a
// kind.
func servedGatewayKinds(api discovery.DiscoveryInterface) (map[string]schema.GroupVersion, error) {
	out := make(map[string]schema.GroupVersion)
	find := func(version schema.GroupVersion, kinds ...string) error {
		list, err := api.ServerResourcesForGroupVersion(version.String())
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("discover kinds of the Gateway API: %w", err)
		}
		for _, r := range list.APIResources {
			for _, kind := range kinds {
				if r.Kind == kind {
					out[kind] = version
				}
			}
		}
		return nil
	}
	if err := find(gatewayV1, "HTTPRoute", "GRPCRoute", "ReferenceGrant"); err != nil || len(out) == 0 {
		return out, err
	}
	if _, found := out["ReferenceGrant"]; found {
		return out, nil
	}
	return out, find(gatewayV1Beta1, "ReferenceGrant")
}

// gatewayKindNames are the kinds in the order in which they are watched: a route should
// not be decided about before the grants are known. If the grants cannot be read, routes
// without backends in other namespaces have effect nevertheless.
var gatewayKindNames = []string{nodestream.GrantKind, "GRPCRoute", "HTTPRoute"}

// probe watches what the cluster serves now. A kind that fails does not stop the others.
// A kind that is watched must be missing in two answers in a row before it is left,
// because one of several API servers can lag behind.
func (g *gatewayKinds) probe(ctx context.Context) error {
	served, err := g.served()
	if err != nil {
		return err
	}
	if g.current == nil {
		g.current, g.missing = make(map[string]schema.GroupVersion), make(map[string]bool)
		g.failed = make(map[string]schema.GroupVersion)
	}
	var errs []error
	for _, kind := range gatewayKindNames {
		before, watched := g.current[kind]
		version, serves := served[kind]
		failed, hasFailed := g.failed[kind]
		if (watched || hasFailed) && !serves && !g.missing[kind] {
			g.missing[kind] = true
			continue
		}
		delete(g.missing, kind)
		if hasFailed && failed != version {
			if err := g.leave(ctx, failed.WithKind(kind)); err != nil {
				errs = append(errs, fmt.Errorf("stop the watch of %s: %w", kind, err))
				continue
			}
			delete(g.failed, kind)
			if !watched {
				g.forget(kind) // a watch that failed may have read some objects
			}
		}
		if watched == serves && before == version {
			continue
		}
		if serves {
			if err := g.watch(ctx, version.WithKind(kind)); err != nil {
				g.failed[kind] = version
				errs = append(errs, err)
				continue
			}
			delete(g.failed, kind)
			g.current[kind] = version
		}
		if watched {
			if err := g.leave(ctx, before.WithKind(kind)); err != nil {
				errs = append(errs, fmt.Errorf("stop the watch of %s: %w", kind, err))
				continue
			}
		}
		if !serves {
			delete(g.current, kind)
			g.forget(kind)
		}
		g.log.Info("the served version of a kind changed", "kind", kind, "version", version.Version)
	}
	return errors.Join(errs...)
}

// unread returns the kinds that the cluster serves, or may serve, and of which the
// controller has read no objects since it started. A kind that was read once stays read,
// although its objects may be out of date.
func (g *gatewayKinds) unread() []string {
	var out []string
	for _, kind := range gatewayKindNames {
		_, watched := g.current[kind]
		if _, failed := g.failed[kind]; g.current == nil || failed && !watched {
			out = append(out, kind)
		}
	}
	return out
}

// maxGatewayWait bounds how long the first pass waits for routes, so that a kind that
// cannot be read does not block everything else. Frontends name the unread kinds, so
// agents apply no rules that lack routes of these kinds.
const maxGatewayWait = 30 * time.Second

// start probes until it has succeeded, or maxGatewayWait is over.
func (g *gatewayKinds) start(ctx context.Context) {
	begin := time.Now()
	for err := g.probe(ctx); err != nil && ctx.Err() == nil; err = g.probe(ctx) {
		if time.Since(begin) > maxGatewayWait {
			g.log.Error("cannot read Gateway API routes, starting without them", "unread", g.unread(),
				"error", err)
			return
		}
		if !backoff.Sleep(ctx, time.Second) {
			return
		}
	}
}

// run probes until ctx ends.
func (g *gatewayKinds) run(ctx context.Context) {
	before := g.unread()
	for logged := false; backoff.Sleep(ctx, probeInterval); {
		err := g.probe(ctx)
		if unread := g.unread(); !slices.Equal(unread, before) {
			before = unread
			g.report(unread)
		}
		if err != nil && ctx.Err() == nil && !logged {
			g.log.Warn("cannot read Gateway API routes, keeping those known", "error", err)
		}
		logged = err != nil
	}
}

// retainGateway records that only the objects of a kind with these keys exist. It drops
// the others from the batch.
func (b *batch) retainGateway(kind string, keys map[catalog.Key]bool) {
	if b.gatewayKeys == nil {
		b.gatewayKeys = make(map[string]map[catalog.Key]bool)
	}
	b.gatewayKeys[kind] = keys
	switch kind {
	case "HTTPRoute":
		retain(b.httpRoutes, keys)
	case "GRPCRoute":
		retain(b.grpcRoutes, keys)
	case "ReferenceGrant":
		retain(b.grants, keys)
		retain(b.betaGrants, keys)
	}
}

// retain removes from m the objects whose keys are not in keys.
func retain[T any](m changed[T], keys map[catalog.Key]bool) {
	maps.DeleteFunc(m, func(k catalog.Key, _ *T) bool { return !keys[k] })
}

// takeRoutes gives the changed routes and grants to the index of routes.
func (r *reconciler) takeRoutes(b *batch) {
	for kind, keys := range b.gatewayKeys {
		r.routes.Retain(kind, keys)
	}
	for k, o := range b.betaGrants {
		r.routes.SetReferenceGrant(k, (*gatewayv1.ReferenceGrant)(o))
	}
	for k, o := range b.grants {
		r.routes.SetReferenceGrant(k, o)
	}
	for k, o := range b.httpRoutes {
		r.routes.SetHTTPRoute(k, o)
	}
	for k, o := range b.grpcRoutes {
		r.routes.SetGRPCRoute(k, o)
	}
}

// planRoutes decides about routes, and adds to the plan which frontends and statuses
// differ now. unread lists the kinds that are unread now. It is nil if they have not
// changed.
func (r *reconciler) planRoutes(unread *[]string, now time.Time, p *plan) {
	changes := r.routes.Flush()
	if unread != nil {
		// Flush has computed the rules, so no frontend loses the mark before it has them.
		r.setUnread(*unread)
		r.imports.emitFrontends(p)
		r.routesReplayed = false
	}
	for _, k := range changes.Mirrors {
		r.imports.emitFrontend(k, p)
	}
	routes := changes.Routes
	switch {
	case !r.replayed: // only the leader writes, once it knows all mirrors
		return
	case !r.routesReplayed:
		r.routesReplayed = true
		routes = r.routes.Routes()
	}
	grantsUnread := slices.Contains(r.imports.unread, nodestream.GrantKind)
	for _, id := range routes {
		if grantsUnread && r.routes.NeedsGrants(id) {
			continue // the status would wrongly say that a backend is not permitted
		}
		if s, differs := r.routes.Status(id, now); s.ID == id {
			p.routes = append(p.routes, routeStatus{s, differs})
		}
	}
}

// setUnread records the kinds of the Gateway API that are unread.
func (r *reconciler) setUnread(kinds []string) {
	r.imports.unread = kinds
	for _, kind := range gatewayKindNames {
		value := 0.
		if slices.Contains(kinds, kind) {
			value = 1
		}
		r.metrics.unread.WithLabelValues(kind).Set(value)
	}
}

// services is what the index of routes knows of Services.
type services struct{ *reconciler }

// Mirror implements gatewayroutes.Services. A mirror that a user's Service of the same
// name keeps out is none.
func (s services) Mirror(k catalog.Key) *gatewayroutes.Mirror {
	if o := s.index.Service(k); o != nil && o.Labels[v1alpha1.ManagedByLabel] != v1alpha1.ManagedBy {
		return nil
	}
	return s.imports.mirrorFor(k)
}

// Exists implements gatewayroutes.Services.
func (s services) Exists(k catalog.Key) bool { return s.index.Service(k) != nil }
