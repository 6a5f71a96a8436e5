package gatewayroutes

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"time"

	"google.golang.org/protobuf/proto"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// compiled is what one route says, before it is merged with others.
type compiled struct {
	// parents are the parentRefs to Services.
	parents []parent
	// matches are in the order of the route. Their rule is an index of rules.
	matches []match
	rules   []*wire.RouteRule
	// bytes is the encoded size of matches and rules. regexCost is the cost of all
	// regular expressions.
	bytes, regexCost int
	// invalid is why no rule of the route can be used; nil: some can.
	invalid error
	// partly says which rules cannot be used; empty: all can.
	partly string
	// unresolved is the first reference that is not resolved; nil: all are. more counts
	// the others.
	unresolved *refError
	more       int
}

// parent is a parentRef to a Service.
type parent struct {
	ref gatewayv1.ParentReference
	key catalog.Key
	// exists is false if the Service does not exist. mirror is nil if it is not a mirror.
	exists bool
	mirror *Mirror
	// ports are the ports that the parentRef selects.
	ports []Port
}

// refError is why a reference is not resolved.
type refError struct {
	reason  gatewayv1.RouteConditionReason
	message string
}

// compiler compiles one route.
type compiler struct {
	index    *Index
	id       ID
	services map[catalog.Key]bool // that the route refers to
	granters map[string]bool      // namespaces whose grants count
	out      compiled
}

func (c *compiler) compile(s *spec) *compiled {
	for i := range s.parents {
		c.parent(&s.parents[i])
	}
	if len(c.out.parents) == 0 {
		return &c.out // another controller's
	}
	invalid, first := 0, error(nil)
	for i := range s.rules {
		r := &s.rules[i]
		matches, err := c.matches(r, uint32(i))
		if err != nil {
			c.out.invalid = fmt.Errorf("rule %s: %w", r.label(i), err)
			return &c.out
		}
		c.out.matches = append(c.out.matches, matches...)
		next, err := c.rule(r)
		if err != nil {
			if invalid++; first == nil {
				first = fmt.Errorf("rule %s: %w", r.label(i), err)
			}
			// Other rules must not get the requests, because a filter would be left out.
			next = &wire.RouteRule{Route: c.id.String()}
		}
		c.out.rules = append(c.out.rules, next)
	}
	switch {
	case invalid == 0:
	case invalid == len(s.rules):
		c.out.invalid = first
	default:
		c.out.partly = fmt.Sprintf("Requests to %d of %d rules get the status 500. "+
			"%s.", invalid, len(s.rules),
			capital(first.Error()))
	}
	c.out.bytes = proto.Size(&wire.RouteRules{Rules: c.out.rules, Matches: wires(c.out.matches)})
	for i := range c.out.matches {
		c.out.regexCost += c.out.matches[i].regexCost
	}
	return &c.out
}

// label names the rule at index i in messages.
func (r *rule) label(i int) string {
	if r.name != "" {
		return fmt.Sprintf("%d (%s)", i, r.name)
	}
	return fmt.Sprint(i)
}

// isService reports whether a parentRef names a Service. The defaults name a Gateway.
func isService(ref *gatewayv1.ParentReference) bool {
	return ref.Group != nil && *ref.Group == "" && deref(ref.Kind) == "Service"
}

// parent adds a parentRef if it names a Service.
func (c *compiler) parent(ref *gatewayv1.ParentReference) {
	if !isService(ref) {
		return
	}
	p := parent{ref: *ref, key: catalog.Key{Namespace: c.id.Namespace, Name: string(ref.Name)}}
	if ref.Namespace != nil {
		p.key.Namespace = string(*ref.Namespace)
	}
	c.services[p.key] = true
	if p.mirror = c.index.services.Mirror(p.key); p.mirror == nil {
		p.exists = c.index.services.Exists(p.key)
	} else if !p.mirror.Headless {
		for _, port := range p.mirror.Ports {
			if (ref.Port == nil || *ref.Port == int32(port.Number)) &&
				(ref.SectionName == nil || string(*ref.SectionName) == port.Name) {
				p.ports = append(p.ports, port)
			}
		}
	}
	c.out.parents = append(c.out.parents, p)
}

// matches converts the matches of the rule at index i.
func (c *compiler) matches(r *rule, i uint32) ([]match, error) {
	var out []match
	appendMatch := func(m match, err error) error {
		if err != nil {
			return err
		}
		m.wire.Rule = i
		out = append(out, m)
		return nil
	}
	if c.id.Kind == GRPCRoute {
		for j := range r.grpc {
			if err := appendMatch(grpcMatch(&r.grpc[j])); err != nil {
				return nil, err
			}
		}
		if len(r.grpc) == 0 {
			return out, appendMatch(grpcMatch(&gatewayv1.GRPCRouteMatch{}))
		}
		return out, nil
	}
	for j := range r.http {
		if err := appendMatch(httpMatch(&r.http[j])); err != nil {
			return nil, err
		}
	}
	if len(r.http) == 0 {
		err := appendMatch(httpMatch(&gatewayv1.HTTPRouteMatch{}))
		return out, err
	}
	return out, nil
}

// rewritable reports whether each match of a rule has a path prefix.
func (r *rule) rewritable() bool {
	for i := range r.http {
		if p := r.http[i].Path; p != nil && p.Type != nil && *p.Type != gatewayv1.PathMatchPathPrefix {
			return false
		}
	}
	return true
}

// rule converts what a rule does. An error says why it cannot be done.
func (c *compiler) rule(r *rule) (*wire.RouteRule, error) {
	out := &wire.RouteRule{Route: c.id.String()}
	// All references are resolved first, so that the status tells all that are wrong.
	var failure error
	for i := range r.backends {
		b, err := c.backend(&r.backends[i], r.rewritable())
		if err != nil && failure == nil {
			failure = fmt.Errorf("backend %s: %w", r.backends[i].Name, err)
		}
		out.Backends = append(out.Backends, b)
	}
	var err error
	if out.Filters, err = c.filters(r.filters, r.rewritable()); err != nil {
		return nil, err
	}
	if failure != nil {
		return nil, failure
	}
	if r.persistent {
		return nil, errors.New("sessionPersistence is not supported: use the sessionAffinity of the " +
			"exported Service")
	}
	if r.timeouts != nil {
		if out.TimeoutMs, err = milliseconds(r.timeouts.Request); err != nil {
			return nil, fmt.Errorf("timeouts.request: %w", err)
		}
		if out.PerTryTimeoutMs, err = milliseconds(r.timeouts.BackendRequest); err != nil {
			return nil, fmt.Errorf("timeouts.backendRequest: %w", err)
		}
	}
	if r.retry != nil {
		if out.Retry, err = retry(r.retry); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// milliseconds converts a duration; nil stays nil. It rounds up, because 0 means that
// there is no timeout.
func milliseconds(d *gatewayv1.Duration) (*uint32, error) {
	if d == nil {
		return nil, nil
	}
	parsed, err := time.ParseDuration(string(*d))
	if err != nil || parsed < 0 {
		return nil, fmt.Errorf("%q is not a duration", *d)
	}
	ms := min((parsed + time.Millisecond - 1).Milliseconds(), math.MaxUint32)
	out := uint32(ms)
	return &out, nil
}

// maxAttempts is the most attempts after the first that a route may ask for.
const maxAttempts = 10

func retry(r *gatewayv1.HTTPRouteRetry) (*wire.RouteRetry, error) {
	out := &wire.RouteRetry{}
	if r.Attempts != nil {
		if *r.Attempts < 0 || *r.Attempts > maxAttempts {
			return nil, fmt.Errorf("retry.attempts: %d is not between 0 and %d", *r.Attempts, maxAttempts)
		}
		n := uint32(*r.Attempts)
		out.Attempts = &n
	}
	for _, code := range r.Codes {
		if code < 400 || code > 599 {
			return nil, fmt.Errorf("retry.codes: %d is not between 400 and 599", code)
		}
		out.Codes = append(out.Codes, uint32(code))
	}
	backoff, err := milliseconds(r.Backoff)
	if err != nil {
		return nil, fmt.Errorf("retry.backoff: %w", err)
	}
	out.BackoffMs = deref(backoff)
	return out, nil
}

// backend converts a backend. One whose reference is not resolved has a weight and no
// name. An error says which filter cannot be applied.
func (c *compiler) backend(b *gatewayv1.HTTPBackendRef, rewritable bool) (*wire.RouteBackend, error) {
	out := &wire.RouteBackend{Weight: 1}
	if b.Weight != nil {
		out.Weight = uint32(max(*b.Weight, 0))
	}
	filters, err := c.filters(b.Filters, rewritable)
	for i := range b.Filters {
		if err == nil && b.Filters[i].Type == gatewayv1.HTTPRouteFilterRequestRedirect {
			err = errors.New("filter RequestRedirect is only supported for a whole rule")
		}
	}
	target := c.resolve(&b.BackendObjectReference)
	if target.name == "" || err != nil {
		return out, err
	}
	out.Namespace, out.Name, out.PortIndex, out.Filters = target.namespace, target.name, target.port, filters
	return out, nil
}

// target is a port of a mirror. The zero value is a reference that is not resolved.
type target struct {
	namespace, name string
	port            uint32
}

// resolve finds the port of a mirror that a reference names. It records why it cannot.
func (c *compiler) resolve(ref *gatewayv1.BackendObjectReference) target {
	key := catalog.Key{Namespace: c.id.Namespace, Name: string(ref.Name)}
	if ref.Namespace != nil {
		key.Namespace = string(*ref.Namespace)
	}
	t, problem := c.lookUp(ref, key)
	if problem != nil {
		if c.out.unresolved == nil {
			c.out.unresolved = problem
		} else {
			c.out.more++
		}
	}
	return t
}

func (c *compiler) lookUp(ref *gatewayv1.BackendObjectReference, key catalog.Key) (target, *refError) {
	if ref.Group != nil && *ref.Group != "" || ref.Kind != nil && *ref.Kind != "Service" {
		return target{}, &refError{gatewayv1.RouteReasonInvalidKind, fmt.Sprintf(
			"The backend %s has the kind %s.%s, but only Services can be backends.",
			key, cmp.Or(string(deref(ref.Kind)), "Service"), deref(ref.Group))}
	}
	c.services[key] = true
	if !c.permitted(key) {
		return target{}, &refError{gatewayv1.RouteReasonRefNotPermitted, fmt.Sprintf(
			"The backend %s is in another namespace: create a ReferenceGrant there.", key)}
	}
	m := c.index.services.Mirror(key)
	switch {
	case m == nil && c.index.services.Exists(key):
		return target{}, &refError{ReasonNotMirror, fmt.Sprintf(
			"The backend %s is a Service of this cluster. Causeway only routes to mirrors.", key)}
	case m == nil:
		return target{}, &refError{gatewayv1.RouteReasonBackendNotFound, fmt.Sprintf(
			"The backend %s does not exist.", key)}
	case m.Headless:
		return target{}, &refError{ReasonNotMirror, fmt.Sprintf(
			"The backend %s is headless: name the mirror of one of its pods.", key)}
	}
	for _, p := range m.Ports {
		if ref.Port == nil || *ref.Port != int32(p.Number) {
			continue
		}
		if p.Opaque {
			return target{}, &refError{gatewayv1.RouteReasonUnsupportedProtocol, fmt.Sprintf(
				"The connections to port %d of the backend %s are opaque, so no request can be routed to it.",
				p.Number, key)}
		}
		return target{key.Namespace, key.Name, p.Index}, nil
	}
	return target{}, &refError{gatewayv1.RouteReasonBackendNotFound, fmt.Sprintf(
		"The backend %s has no port %d.", key, deref(ref.Port))}
}

// permitted reports whether the route may have a backend. A route whose parents are all
// in other namespaces applies only to callers in its own namespace. It needs no grant for
// a backend that is also its parent, because these callers reach the parent without it.
func (c *compiler) permitted(key catalog.Key) bool {
	if key.Namespace == c.id.Namespace {
		return true
	}
	isParent, forAll := false, false
	for i := range c.out.parents {
		parent := c.out.parents[i].key
		isParent = isParent || parent == key
		forAll = forAll || parent.Namespace == c.id.Namespace
	}
	if isParent && !forAll {
		return true
	}
	c.granters[key.Namespace] = true
	for name := range c.index.inNamespace[key.Namespace] {
		g := c.index.grants[catalog.Key{Namespace: key.Namespace, Name: name}]
		if c.grants(&g.Spec, key.Name) {
			return true
		}
	}
	return false
}

// grants reports whether a grant lets the route refer to a Service of the grant's
// namespace.
func (c *compiler) grants(g *gatewayv1.ReferenceGrantSpec, service string) bool {
	from, to := false, false
	for _, f := range g.From {
		from = from || f.Group == gatewayv1.GroupName && string(f.Kind) == string(c.id.Kind) &&
			string(f.Namespace) == c.id.Namespace
	}
	for _, t := range g.To {
		to = to || t.Group == "" && t.Kind == "Service" && (t.Name == nil || string(*t.Name) == service)
	}
	return from && to
}
