package agent

import (
	"slices"

	"github.com/causeway-mesh/causeway/internal/dataplane/route"
)

// An alternative says whether there is a session with an endpoint other than the choice.
type alternative uint8

const (
	noAlternative    alternative = iota
	triedAlternative             // the request has already tried its endpoint
	freshAlternative
)

// alternativeOf returns which alternative a session is for a request that has tried some
// endpoints. s may be nil.
func alternativeOf(s *requestSession, tried []route.EndpointID) alternative {
	switch {
	case s == nil:
		return noAlternative
	case slices.Contains(tried, s.endpoint):
		return triedAlternative
	}
	return freshAlternative
}

// withoutSession is the input of planWithoutSession.
type withoutSession struct {
	// near: the choice is in the caller's zone, which the Service prefers.
	near bool
	// remembered: the caller's affinity names the choice.
	remembered bool
	// late: the agent has tried for affinityWait to make a session with the choice.
	late bool
	// taking is a session with an endpoint that takes part in balancing, and any is one with
	// any endpoint. They are the same unless near is true.
	taking, any alternative
}

// A pickStep is what a request does if its choice has no session.
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
	// otherwise is the step if no session comes. If it is awaitChoice, there is no other
	// step, and the wait is not bounded. For other steps the request waits for at most
	// affinityWait.
	otherwise pickStep
}

// planWithoutSession decides what a request does if its choice has no session.
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
