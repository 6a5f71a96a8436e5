package gatewayroutes

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/dataplane/reqroute"
)

// ControllerName is the controllerName of Causeway's entries in the status of routes.
const ControllerName gatewayv1.GatewayController = "causeway.dev/controller"

// Reasons that package gatewayv1 has no constant for.
const (
	// ReasonNotMirror: the Service is not a mirror that has a virtual IP.
	ReasonNotMirror gatewayv1.RouteConditionReason = "NotMirror"
	// ReasonConflicted: a GRPCRoute is attached to the port, so an HTTPRoute is not.
	ReasonConflicted gatewayv1.RouteConditionReason = "Conflicted"
	// ReasonLimitExceeded: the routes of the port have too many rules.
	ReasonLimitExceeded gatewayv1.RouteConditionReason = "LimitExceeded"
)

const (
	// maxParents is the number of entries in the status of a route, which the API bounds.
	maxParents = 32
	// maxMessage is the greatest length of the message of a condition, in bytes.
	maxMessage = 1024
)

// ParentStatus is the wanted status of a route for one of its parents.
type ParentStatus struct {
	Ref        gatewayv1.ParentReference
	Conditions []Condition
	// NotMirror: the parent is not a mirror. Another controller may be the one that is
	// responsible. If it has an entry for the parent, Causeway has none.
	NotMirror bool
}

// Condition is a wanted condition, without its generation and its time.
type Condition struct {
	Type    gatewayv1.RouteConditionType
	True    bool
	Reason  gatewayv1.RouteConditionReason
	Message string
}

// statusOf returns the wanted status of a route.
func (x *Index) statusOf(r *route) []ParentStatus {
	var out []ParentStatus
	for i := range r.compiled.parents {
		p := &r.compiled.parents[i]
		repeated := slices.ContainsFunc(out, func(o ParentStatus) bool { return sameRef(o.Ref, p.ref) })
		if repeated || len(out) == maxParents {
			continue
		}
		s := ParentStatus{
			Ref:        p.ref,
			Conditions: []Condition{x.accepted(r, p)},
			NotMirror:  p.mirror == nil,
		}
		if p.mirror != nil && r.compiled.invalid == nil {
			s.Conditions = append(s.Conditions, r.compiled.resolvedRefs())
			if r.compiled.partly != "" {
				s.Conditions = append(s.Conditions, Condition{
					Type:    gatewayv1.RouteConditionPartiallyInvalid,
					True:    true,
					Reason:  gatewayv1.RouteReasonUnsupportedValue,
					Message: r.compiled.partly,
				})
			}
		}
		for i := range s.Conditions {
			s.Conditions[i].Message = bound(s.Conditions[i].Message)
		}
		out = append(out, s)
	}
	return out
}

// accepted returns the condition Accepted for one parent.
func (x *Index) accepted(r *route, p *parent) Condition {
	c := Condition{Type: gatewayv1.RouteConditionAccepted}
	refuse := func(reason gatewayv1.RouteConditionReason, format string, args ...any) Condition {
		c.Reason, c.Message = reason, fmt.Sprintf(format, args...)
		return c
	}
	switch {
	case p.mirror == nil && p.exists:
		return refuse(ReasonNotMirror, "The Service %s is not a mirror. Causeway only routes requests "+
			"to mirrors.", p.key)
	case p.mirror == nil:
		return refuse(gatewayv1.RouteReasonNoMatchingParent, "The Service %s does not exist.", p.key)
	case p.mirror.Headless:
		return refuse(ReasonNotMirror, "The mirror %s is headless, so its callers connect to the "+
			"mirrors of its pods: "+
			"name one of these as parent.", p.key)
	case len(p.ports) == 0:
		return refuse(gatewayv1.RouteReasonNoMatchingParent, "The mirror %s has no port that the "+
			"parentRef selects.", p.key)
	case r.compiled.invalid != nil:
		return refuse(gatewayv1.RouteReasonUnsupportedValue, "No rule is used. %s.",
			capital(r.compiled.invalid.Error()))
	}
	var refused gatewayv1.RouteConditionReason
	attached := 0
	for _, port := range p.ports {
		reason := gatewayv1.RouteReasonUnsupportedProtocol
		if !port.Opaque {
			reason = x.refusal(r, p, port.Index)
		}
		if reason == "" {
			attached++
		} else if refused == "" {
			refused = reason
		}
	}
	why := ""
	switch refused {
	case gatewayv1.RouteReasonUnsupportedProtocol:
		why = "The connections of the port are opaque: the exported Service or the Link sets its " +
			"protocol to TCP."
	case ReasonConflicted:
		why = "A GRPCRoute is attached to the port. A port cannot have routes of two kinds."
	case ReasonLimitExceeded:
		why = fmt.Sprintf("The routes of a port can have %d matches, %d rules, %d bytes and "+
			"regular expressions of %d instructions together, for callers of at most %d namespaces. "+
			"Routes in the mirror's namespace have precedence, then older ones.",
			maxMatches, maxRules, maxBytes, reqroute.MaxRegexCost, maxAudiences)
	}
	if attached == 0 {
		return refuse(refused, "%s", why)
	}
	c.True, c.Reason = true, gatewayv1.RouteReasonAccepted
	c.Message = fmt.Sprintf("The route is attached to the mirror %s.", p.key)
	if refused != "" {
		c.Message = fmt.Sprintf("The route is attached to %d of %d ports of the mirror %s. "+
			"%s", attached, len(p.ports), p.key,
			why)
	}
	return c
}

// refusal returns why a route is not attached to a port; empty: it is attached.
func (x *Index) refusal(r *route, p *parent, port uint32) gatewayv1.RouteConditionReason {
	if a := x.attached[p.key]; a != nil {
		return a.refused[slot{r.id, port}]
	}
	return ""
}

func (c *compiled) resolvedRefs() Condition {
	if c.unresolved == nil {
		return Condition{
			Type:    gatewayv1.RouteConditionResolvedRefs,
			True:    true,
			Reason:  gatewayv1.RouteReasonResolvedRefs,
			Message: "All references are resolved.",
		}
	}
	out := Condition{
		Type:    gatewayv1.RouteConditionResolvedRefs,
		Reason:  c.unresolved.reason,
		Message: c.unresolved.message,
	}
	if c.more > 0 {
		out.Message += fmt.Sprintf(" %d more references are not resolved.", c.more)
	}
	return out
}

// Merge returns the parents of a route's status with the wanted entries of Causeway in
// place of its present ones, and whether that changes anything. Entries of other
// controllers stay as they are. If one is for a parent that is not a mirror, Causeway has
// no entry for this parent. The times of conditions whose status stays are kept.
func (s *Status) Merge(present []gatewayv1.RouteParentStatus, now time.Time) (
	merged []gatewayv1.RouteParentStatus, changed bool) {
	var ours []gatewayv1.RouteParentStatus
	// Not nil, even if it stays empty: the field is required, and null would remove it.
	merged = make([]gatewayv1.RouteParentStatus, 0, len(present))
	for _, p := range present {
		if p.ControllerName == ControllerName {
			ours = append(ours, p)
		} else {
			merged = append(merged, p)
		}
	}
	kept, others := 0, merged[:len(merged):len(merged)]
	for _, want := range s.Parents {
		if want.NotMirror && s.anyFor(others, want.Ref) {
			continue
		}
		if len(merged) == maxParents {
			break
		}
		next := gatewayv1.RouteParentStatus{ParentRef: want.Ref, ControllerName: ControllerName}
		at := slices.IndexFunc(ours, func(p gatewayv1.RouteParentStatus) bool {
			return sameRef(p.ParentRef, want.Ref)
		})
		var old []metav1.Condition
		if at >= 0 {
			old = ours[at].Conditions
		}
		for _, c := range want.Conditions {
			next.Conditions = append(next.Conditions, s.condition(c, old, now))
		}
		if at >= 0 && equality.Semantic.DeepEqual(ours[at], next) {
			kept++
		}
		merged = append(merged, next)
	}
	return merged, kept != len(ours) || len(merged) != len(present)
}

// condition returns a condition of the API. It is the old one if it says the same.
func (s *Status) condition(c Condition, old []metav1.Condition, now time.Time) metav1.Condition {
	out := metav1.Condition{
		Type:               string(c.Type),
		Status:             metav1.ConditionFalse,
		ObservedGeneration: s.Generation,
		LastTransitionTime: metav1.NewTime(now.Truncate(time.Second)),
		Reason:             string(c.Reason),
		Message:            c.Message,
	}
	if c.True {
		out.Status = metav1.ConditionTrue
	}
	if before := meta.FindStatusCondition(old, out.Type); before != nil && before.Status == out.Status {
		out.LastTransitionTime = before.LastTransitionTime
	}
	return out
}

// anyFor reports whether an entry is for the Service that ref names, or for a port of it.
func (s *Status) anyFor(entries []gatewayv1.RouteParentStatus, ref gatewayv1.ParentReference) bool {
	service := func(ref *gatewayv1.ParentReference) (catalog.Key, bool) {
		k := catalog.Key{Namespace: s.ID.Namespace, Name: string(ref.Name)}
		if ref.Namespace != nil {
			k.Namespace = string(*ref.Namespace)
		}
		return k, isService(ref)
	}
	k, _ := service(&ref)
	return slices.ContainsFunc(entries, func(e gatewayv1.RouteParentStatus) bool {
		other, ok := service(&e.ParentRef)
		return ok && other == k
	})
}

func sameRef(a, b gatewayv1.ParentReference) bool { return equality.Semantic.DeepEqual(a, b) }

// capital returns s with its first letter in upper case.
func capital(s string) string {
	first, size := utf8.DecodeRuneInString(s)
	if size == 0 {
		return s
	}
	return string(unicode.ToUpper(first)) + s[size:]
}

// bound shortens a message that is longer than maxMessage.
func bound(s string) string {
	const ellipsis = "..."
	s = strings.ToValidUTF8(s, "?")
	if len(s) <= maxMessage {
		return s
	}
	return strings.ToValidUTF8(s[:maxMessage-len(ellipsis)], "") + ellipsis
}
