package agent

import (
	"slices"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
)

// Bounds of what is learnt from answers.
const (
	maxSets   = 4096
	setAge    = 10 * time.Minute
	maxSetIDs = 256
	// setHeld is how long an older generation than the last is taken for late news; after
	// that it is what the peer says now.
	setHeld = 30 * time.Second
	// maxVisits and visitAge, Kubernetes' longest, bound session affinity.
	maxVisits = 64 << 10
	visitAge  = 24 * time.Hour
)

// learnt is what answers have told of far endpoints. Nothing else tells of them: the
// catalog holds none.
//
// What always holds:
//   - What one account has learnt is used for no other.
//   - An id is a wish, which the gateway may not be able to meet; the answer then says
//     who it was.
type learnt struct {
	sets   *fading[setKey, farSet]
	visits *fading[visitKey, route.EndpointID]
	// speakers is who speaks first on a far port.
	speakers *fading[setKey, tunnel.FirstSpeaker]
}

// A farPort is one port of a peer's Service.
type farPort struct {
	link               string // its UID
	namespace, service string
	port               uint32
}

type setKey struct {
	caller account
	to     farPort
}

type visitKey struct {
	pod string // its UID
	to  farPort
}

// A farSet is what is known of a port's ready endpoints.
type farSet struct {
	ready      []route.EndpointID // some of them or all; never edited
	count      uint32             // how many there are, as the peer says
	generation uint64
}

func newLearnt() *learnt {
	return &learnt{newFading[setKey, farSet](maxSets, setAge), newFading[visitKey, route.EndpointID](maxVisits, visitAge),
		newFading[setKey, tunnel.FirstSpeaker](maxSpoken, spokenAge)}
}

// heard takes a positive answer to HELLO.
func (l *learnt) heard(caller account, to farPort, a tunnel.Answer) {
	l.speakers.put(setKey{caller, to}, func(tunnel.FirstSpeaker, time.Duration, bool) (tunnel.FirstSpeaker, bool) {
		return a.First, a.First != tunnel.FirstSpeaker_UNKNOWN
	})
	l.sets.put(setKey{caller, to}, func(was farSet, age time.Duration, there bool) (farSet, bool) {
		next := farSet{slices.Clone(a.Ready), a.ReadyCount, a.Generation}
		switch {
		case !there || a.Generation > was.generation:
		case a.Generation < was.generation:
			return next, age >= setHeld
		default: // of many, each answer names others
			for _, id := range was.ready {
				if len(next.ready) < maxSetIDs && !slices.Contains(next.ready, id) {
					next.ready = append(next.ready, id)
				}
			}
		}
		return next, true
	})
}

// known returns what is known of a port's endpoints.
func (l *learnt) known(caller account, to farPort) (farSet, bool) {
	return l.sets.get(setKey{caller, to}, setAge)
}

// visited notes the endpoint that a pod has had.
func (l *learnt) visited(pod string, to farPort, id route.EndpointID) {
	l.visits.put(visitKey{pod, to}, func(route.EndpointID, time.Duration, bool) (route.EndpointID, bool) {
		return id, id != route.EndpointID{}
	})
}

// wish is for the endpoint that a pod last had within the time of session affinity,
// which each visit starts anew; without, for any: the gateway spreads.
func (l *learnt) wish(pod string, to farPort, affinity time.Duration) route.Wish {
	if id, ok := l.visits.get(visitKey{pod, to}, affinity); ok {
		return route.ForEndpoint(id)
	}
	return route.Wish{}
}

// turnedAway forgets an endpoint that does not take a pod any more.
func (l *learnt) turnedAway(pod string, to farPort) { l.visits.drop(visitKey{pod, to}) }
