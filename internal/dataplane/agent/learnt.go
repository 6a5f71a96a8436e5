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
	// setHeld is how long an answer with an older generation than the last one counts as
	// late and is ignored. After that time the older generation counts as the peer's
	// current one.
	setHeld = 30 * time.Second
	// maxVisits and visitAge, Kubernetes' longest, bound session affinity.
	maxVisits = 64 << 10
	visitAge  = 24 * time.Hour
	// wantingAge is how long an endpoint that did not take a call is passed over.
	wantingAge = 5 * time.Second
	// missedAge is how long one is passed over that the gateway does not lead to.
	missedAge = 30 * time.Second
)

// learnt is what answers have told of far endpoints. Nothing else tells of them: the
// catalog holds none.
//
// What always holds:
//   - What one account has learnt is used for no other.
//   - An endpoint id is only a hint, which the gateway may be unable to follow. The
//     answer names the endpoint that was reached.
type learnt struct {
	sets   *fading[setKey, farSet]
	visits *fading[visitKey, route.EndpointID]
	// wanting are endpoints that did not take a call lately.
	wanting *fading[endpointKey, time.Time] // until when
	// asked is for which ports newer news was asked for, or came, within scoutAge.
	asked *fading[setKey, struct{}]
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

type endpointKey struct {
	to farPort
	id route.EndpointID
}

// A farSet is what is known of a port's ready endpoints.
type farSet struct {
	ready      []route.EndpointID // some of them or all; never edited
	count      uint32             // how many there are, as the peer says
	generation uint64
}

func newLearnt() *learnt {
	return &learnt{newFading[setKey, farSet](maxSets, setAge), newFading[visitKey, route.EndpointID](maxVisits, visitAge),
		newFading[endpointKey, time.Time](maxSets, missedAge), newFading[setKey, struct{}](maxSets, scoutAge), newFading[setKey, tunnel.FirstSpeaker](maxSpoken, spokenAge)}
}

// heard takes a positive answer to HELLO.
func (l *learnt) heard(caller account, to farPort, a tunnel.Answer) {
	l.speakers.put(setKey{caller, to}, func(tunnel.FirstSpeaker, time.Duration, bool) (tunnel.FirstSpeaker, bool) {
		return a.First, a.First != tunnel.FirstSpeaker_UNKNOWN
	})
	l.note(setKey{caller, to})
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

// last is the endpoint that a pod last had within the time of session affinity, which each
// visit starts anew; without one it is zero.
func (l *learnt) last(pod string, to farPort, affinity time.Duration) route.EndpointID {
	id, _ := l.visits.get(visitKey{pod, to}, affinity)
	return id
}

// turnedAway notes an endpoint that did not take a pod's call: it is not the pod's any more, and
// nobody's for a while.
func (l *learnt) turnedAway(pod string, to farPort, id route.EndpointID) {
	l.visits.drop(visitKey{pod, to})
	l.pass(endpointKey{to, id}, wantingAge)
}

// missed notes an endpoint that the gateway did not lead to.
func (l *learnt) missed(to farPort, id route.EndpointID) { l.pass(endpointKey{to, id}, missedAge) }

func (l *learnt) pass(key endpointKey, age time.Duration) {
	until := time.Now().Add(age)
	l.wanting.put(key, func(was time.Time, _ time.Duration, _ bool) (time.Time, bool) {
		return until, until.After(was)
	})
}

// without returns the endpoints that take calls, as far as is known: all, if none does.
func (l *learnt) without(ids []route.EndpointID, to farPort) []route.EndpointID {
	wanting := func(id route.EndpointID) bool {
		until, ok := l.wanting.get(endpointKey{to, id}, missedAge)
		return ok && time.Now().Before(until)
	}
	if !slices.ContainsFunc(ids, wanting) {
		return ids
	}
	if good := slices.DeleteFunc(slices.Clone(ids), wanting); len(good) > 0 {
		return good
	}
	return ids
}

// ask reports whether nobody has asked for newer news of a port's endpoints within scoutAge, and
// none has come. The caller then asks.
func (l *learnt) ask(caller account, to farPort) bool {
	key := setKey{caller, to}
	if _, ok := l.asked.get(key, scoutAge); ok {
		return false
	}
	l.note(key)
	return true
}

func (l *learnt) note(key setKey) {
	l.asked.put(key, func(struct{}, time.Duration, bool) (struct{}, bool) { return struct{}{}, true })
}
