package agent

import (
	"slices"

	"github.com/causeway-mesh/causeway/internal/dataplane/route"
)

// An alternative says whether there is a session with another endpoint than the choice.
type alternative uint8

const (
	noAlternative    alternative = iota
	triedAlternative             // the request has already tried its endpoint
	freshAlternative
)

// alternativeOf returns what a session, which may be nil, is for a request that has tried
// some endpoints.
func alternativeOf(s *requestSession, tried []route.EndpointID) alternative {
	switch {
	case s == nil:
		return noAlternative
	case slices.Contains(tried, s.endpoint):
		return triedAlternative
	}
	return freshAlternative
}

// withoutSession is what planWithoutSession decides by.
type withoutSession struct {
	// near: the choice is in the caller's zone, which the Service prefers.
	near bool
	// remembered: the caller's affinity names the choice.
	remembered bool
	// late: a session with the choice has been in the making for affinityWait.
	late bool
	// taking is a session with an endpoint that takes part in balancing, and any is one with
	// any endpoint. They are the same unless near is true.
	taking, any alternative
}

// A pickStep is what a request does whose choice has no session.
type pickStep uint8

const (
	awaitChoice pickStep = iota // wait for a session with the choice
	useTaking                   // use the session taking, and begin to make one with the choice
	useAny                      // use the session any
	pickAgain                   // pick another endpoint
)

// A pickPlan is the result of planWithoutSession.
type pickPlan struct {
	// first is the first step. If the balancer rejects its endpoint, the request waits for a
	// session with the choice.
	first pickStep
	// otherwise is the step if no session comes. If it is awaitChoice, there is no other, and
	// the wait is not bounded. Otherwise the request waits for at most affinityWait.
	otherwise pickStep
}

// planWithoutSession decides what a request does whose choice has no session.
func planWithoutSession(w withoutSession) pickPlan {
	elsewhere := w.near && w.taking == noAlternative && w.any == freshAlternative
	var plan pickPlan
	switch {
	case elsewhere:
		plan.otherwise = useAny
	case w.remembered && w.taking != noAlternative:
		plan.otherwise = pickAgain
	}
	switch {
	case w.taking == freshAlternative && !w.remembered:
		plan.first = useTaking
	case elsewhere && w.late:
		plan.first = useAny
	}
	return plan
}
