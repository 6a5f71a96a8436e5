package gatewayroutes

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// spec is a route of either kind, in the terms of HTTPRoute. Only the matches of a
// GRPCRoute have a form of their own.
type spec struct {
	meta    *metav1.ObjectMeta
	parents []gatewayv1.ParentReference
	status  []gatewayv1.RouteParentStatus
	rules   []rule
}

// rule is a rule of a route. Exactly one of http and grpc is used.
type rule struct {
	name     string
	http     []gatewayv1.HTTPRouteMatch
	grpc     []gatewayv1.GRPCRouteMatch
	filters  []gatewayv1.HTTPRouteFilter
	backends []gatewayv1.HTTPBackendRef
	timeouts *gatewayv1.HTTPRouteTimeouts
	retry    *gatewayv1.HTTPRouteRetry
	// persistent: the rule asks for session persistence.
	persistent bool
}

func httpSpec(o *gatewayv1.HTTPRoute) *spec {
	s := &spec{meta: &o.ObjectMeta, parents: o.Spec.ParentRefs, status: o.Status.Parents}
	for i := range o.Spec.Rules {
		r := &o.Spec.Rules[i]
		s.rules = append(s.rules, rule{
			name:       string(deref(r.Name)),
			http:       r.Matches,
			filters:    r.Filters,
			backends:   r.BackendRefs,
			timeouts:   r.Timeouts,
			retry:      r.Retry,
			persistent: r.SessionPersistence != nil,
		})
	}
	return s
}

func grpcSpec(o *gatewayv1.GRPCRoute) *spec {
	s := &spec{meta: &o.ObjectMeta, parents: o.Spec.ParentRefs, status: o.Status.Parents}
	for i := range o.Spec.Rules {
		r := &o.Spec.Rules[i]
		next := rule{
			name:       string(deref(r.Name)),
			grpc:       r.Matches,
			filters:    grpcFilters(r.Filters),
			persistent: r.SessionPersistence != nil,
		}
		for j := range r.BackendRefs {
			next.backends = append(next.backends, gatewayv1.HTTPBackendRef{
				BackendRef: r.BackendRefs[j].BackendRef,
				Filters:    grpcFilters(r.BackendRefs[j].Filters),
			})
		}
		s.rules = append(s.rules, next)
	}
	return s
}

func grpcFilters(all []gatewayv1.GRPCRouteFilter) []gatewayv1.HTTPRouteFilter {
	out := make([]gatewayv1.HTTPRouteFilter, 0, len(all))
	for i := range all {
		f := &all[i]
		out = append(out, gatewayv1.HTTPRouteFilter{
			Type:                   gatewayv1.HTTPRouteFilterType(f.Type), // the names are the same
			RequestHeaderModifier:  f.RequestHeaderModifier,
			ResponseHeaderModifier: f.ResponseHeaderModifier,
			RequestMirror:          f.RequestMirror,
			ExtensionRef:           f.ExtensionRef,
		})
	}
	return out
}

// deref returns what p points to, or the zero value.
func deref[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}
