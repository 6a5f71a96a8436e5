package agent

import (
	"slices"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
)

// Bounds of what the agent learns from answers.
const (
	maxSets   = 4096
	setAge    = 10 * time.Minute
	maxSetIDs = 256
	// staleGenerationAge is how long an answer with an older generation than the last
	// one counts as late and is ignored. After that time the older generation counts as
	// the peer's current one.
	staleGenerationAge = 30 * time.Second
	// maxAffinities and affinityAge bound session affinity. affinityAge is the maximum
	// of Kubernetes.
	maxAffinities = 64 << 10
	affinityAge   = 24 * time.Hour
	// refusedExclusion is how long an endpoint that refused a call is skipped.
	refusedExclusion = 5 * time.Second
	// missExclusion is how long an endpoint is skipped that the gateway did not route
	// to.
	missExclusion = 30 * time.Second
	// zoneHold is how long the zones of an answer stay valid while later answers have
	// none. While a peer replaces its gateways, not all of them report zones. zoneHold
	// spans the time between two answers that have zones.
	zoneHold = 2 * time.Minute
)

// endpointCache holds what the answers of peers report about their endpoints. There is
// no other source, because the catalog has no endpoints.
//
// What always holds:
//   - Entries of one account are not used for another.
//   - An endpoint id is only a hint, which the gateway may be unable to follow. The
//     answer names the endpoint that was reached.
type endpointCache struct {
	sets   *ttlMap[setKey, endpointSet]
	visits *ttlMap[visitKey, route.EndpointID]
	// excluded holds the endpoints that recently refused a call.
	excluded *ttlMap[endpointKey, time.Time] // until when
	// refreshed holds the ports whose endpoints were requested or received within
	// endpointRefreshAge.
	refreshed *ttlMap[setKey, struct{}]
	// firstSpeakers holds which side speaks first on a remote port.
	firstSpeakers *ttlMap[setKey, tunnel.FirstSpeaker]
	// requests holds the remote ports whose connections carried requests recently.
	requests *ttlMap[setKey, struct{}]
}

// A remotePort is one port of a peer's Service.
type remotePort struct {
	link               string // its UID
	namespace, service string
	port               uint32
}

type setKey struct {
	caller account
	to     remotePort
}

type visitKey struct {
	pod string // its UID
	to  remotePort
}

type endpointKey struct {
	to remotePort
	id route.EndpointID
}

// An endpointSet is the known part of a port's ready endpoints.
type endpointSet struct {
	ready      []route.EndpointID // some of them or all; never edited
	count      uint32             // the total that the peer reports
	generation uint64
	// near are the endpoints of ready that are in zone; never edited. It is empty if the
	// peer has not reported the zones of all endpoints within zoneHold.
	near []route.EndpointID
	zone string // of this node when the peer reported; empty: not known
	// zonedAt is when the last answer with the zones of all its endpoints came.
	zonedAt time.Time
}

// newEndpointSet returns the endpoints in an answer. zone is the zone of this node;
// empty: not known.
func newEndpointSet(a tunnel.Answer, zone string) endpointSet {
	s := endpointSet{
		ready:      slices.Clone(a.Ready),
		count:      a.ReadyCount,
		generation: a.Generation,
		zone:       zone,
	}
	if len(a.Zones) == 0 || slices.Contains(a.Zones, "") { // of an endpoint that may be as near
		return s
	}
	s.zonedAt = time.Now()
	for i, z := range a.Zones {
		if z == zone {
			s.near = append(s.near, a.Ready[i])
		}
	}
	return s
}

// holdZones copies the zones of was, the previous set, if the answer of s has none and
// those of was are still valid.
func (s *endpointSet) holdZones(was endpointSet) {
	if !s.zonedAt.IsZero() || was.zone != s.zone || time.Since(was.zonedAt) >= zoneHold {
		return
	}
	s.zonedAt = was.zonedAt
	for _, id := range s.ready {
		if slices.Contains(was.near, id) {
			s.near = append(s.near, id)
		}
	}
}

func newEndpointCache() *endpointCache {
	return &endpointCache{newTTLMap[setKey, endpointSet](maxSets, setAge), newTTLMap[visitKey, route.EndpointID](maxAffinities, affinityAge),
		newTTLMap[endpointKey, time.Time](maxSets, missExclusion), newTTLMap[setKey, struct{}](maxSets, endpointRefreshAge), newTTLMap[setKey, tunnel.FirstSpeaker](maxFirstSpeakers, firstSpeakerAge),
		newTTLMap[setKey, struct{}](maxFirstSpeakers, firstSpeakerAge)}
}

// recordAnswer stores a positive answer to HELLO. zone is the zone of this node; empty:
// not known.
func (c *endpointCache) recordAnswer(caller account, to remotePort, a tunnel.Answer, zone string) {
	c.firstSpeakers.update(setKey{caller, to}, func(tunnel.FirstSpeaker, time.Duration, bool) (tunnel.FirstSpeaker, bool) {
		return a.First, a.First != tunnel.FirstSpeaker_UNKNOWN
	})
	c.markRefreshed(setKey{caller, to})
	c.sets.update(setKey{caller, to}, func(was endpointSet, age time.Duration, there bool) (endpointSet, bool) {
		next := newEndpointSet(a, zone)
		if there {
			next.holdZones(was)
		}
		switch {
		case !there || a.Generation > was.generation:
		case a.Generation < was.generation:
			return next, age >= staleGenerationAge
		default: // each answer may list a different part of a large set
			for _, id := range was.ready {
				if len(next.ready) == maxSetIDs || slices.Contains(next.ready, id) {
					continue
				}
				next.ready = append(next.ready, id)
				if was.zone == zone && slices.Contains(was.near, id) {
					next.near = append(next.near, id)
				}
			}
		}
		return next, true
	})
}

// lookup returns the known endpoints of a port.
func (c *endpointCache) lookup(caller account, to remotePort) (endpointSet, bool) {
	return c.sets.get(setKey{caller, to}, setAge)
}

// recordVisit stores the endpoint that a pod has reached.
func (c *endpointCache) recordVisit(pod string, to remotePort, id route.EndpointID) {
	c.visits.update(visitKey{pod, to}, func(route.EndpointID, time.Duration, bool) (route.EndpointID, bool) {
		return id, id != route.EndpointID{}
	})
}

// lastVisited returns the endpoint that a pod last reached, within the session affinity
// time. Each visit restarts that time. It returns the zero value if there is none.
func (c *endpointCache) lastVisited(pod string, to remotePort, affinity time.Duration) route.EndpointID {
	id, _ := c.visits.get(visitKey{pod, to}, affinity)
	return id
}

// recordRefusal records that an endpoint refused a pod's call. It ends the pod's
// affinity and excludes the endpoint for refusedExclusion.
func (c *endpointCache) recordRefusal(pod string, to remotePort, id route.EndpointID) {
	c.visits.delete(visitKey{pod, to})
	c.exclude(endpointKey{to, id}, refusedExclusion)
}

// recordMiss excludes an endpoint that the gateway did not route to.
func (c *endpointCache) recordMiss(to remotePort, id route.EndpointID) {
	c.exclude(endpointKey{to, id}, missExclusion)
}

func (c *endpointCache) exclude(key endpointKey, age time.Duration) {
	until := time.Now().Add(age)
	c.excluded.update(key, func(was time.Time, _ time.Duration, _ bool) (time.Time, bool) {
		return until, until.After(was)
	})
}

// available returns the endpoints that are not excluded, or all of them if each is
// excluded.
func (c *endpointCache) available(ids []route.EndpointID, to remotePort) []route.EndpointID {
	excluded := func(id route.EndpointID) bool {
		until, ok := c.excluded.get(endpointKey{to, id}, missExclusion)
		return ok && time.Now().Before(until)
	}
	if !slices.ContainsFunc(ids, excluded) {
		return ids
	}
	if good := slices.DeleteFunc(slices.Clone(ids), excluded); len(good) > 0 {
		return good
	}
	return ids
}

// needsRefresh reports whether the endpoints of a port were neither requested nor
// received within endpointRefreshAge. It records that the caller now requests them.
func (c *endpointCache) needsRefresh(caller account, to remotePort) bool {
	key := setKey{caller, to}
	if _, ok := c.refreshed.get(key, endpointRefreshAge); ok {
		return false
	}
	c.markRefreshed(key)
	return true
}

func (c *endpointCache) markRefreshed(key setKey) {
	c.refreshed.update(key, func(struct{}, time.Duration, bool) (struct{}, bool) { return struct{}{}, true })
}
