package controller

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/link"
)

// heard is a copy of what is known of a peer.
type heard struct {
	peerState
	healthy   map[string]bool // by gateway address
	met       map[string]bool // found addresses at which the peer was authenticated
	addresses link.Addresses
}

// heard returns what is known of a peer; nothing, if it is none.
func (p *peers) heard(name string) heard {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.links[name]
	if s == nil {
		return heard{}
	}
	h := heard{
		peerState: *s, healthy: make(map[string]bool, len(s.streams)),
		met: maps.Clone(s.places.met), addresses: s.places.merged,
	}
	h.streams = maps.Clone(s.streams)
	for address, stream := range s.streams {
		h.healthy[address] = stream.err == nil
	}
	return h
}

// patience is how long something may be lost of what there was with a peer before
// its Link's status says so: streams begin when a controller does, and a peer's
// controllers are rolled.
const patience = 5 * time.Second

// standing is what works with a peer. The caller holds mu.
func (s *peerState) standing() map[string]bool {
	up := make(map[string]bool, len(s.streams)+2)
	for address, stream := range s.streams {
		if stream.err == nil {
			up[address] = true
		}
	}
	if s.inbound {
		up["in"] = true
	}
	if s.complete {
		up["catalog"] = true
	}
	return up
}

// judge notes that something of what there was is lost, unless a loss is about to be
// said already, or that all is well. The caller holds mu.
func (s *peerState) judge(had map[string]bool, now time.Time) {
	if s.well() {
		s.troubled = time.Time{}
		return
	}
	for what := range s.standing() {
		delete(had, what)
	}
	if len(had) > 0 && now.Sub(s.troubled) >= patience {
		s.troubled = now
	}
}

// well reports whether there is nothing to wait for. The caller holds mu.
func (s *peerState) well() bool {
	for _, stream := range s.streams {
		if stream.err != nil {
			return false
		}
	}
	return s.inbound && len(s.streams) == 0 || s.complete
}

// due is when h may be said: zero at once.
func (h heard) due() time.Time {
	if h.troubled.IsZero() {
		return time.Time{}
	}
	return h.troubled.Add(patience)
}

// worstSkew is how far a peer's clock may be off before it is said.
const worstSkew = 2 * time.Minute

// dialled reports whether we have a stream to a gateway of the peer.
func (h heard) dialled() bool {
	for _, ok := range h.healthy {
		if ok {
			return true
		}
	}
	return false
}

// seen is what a Link's status says of h.
func (h heard) seen(fault *link.Fault, issuersKnown bool) link.Seen {
	counted := h.counted()
	s := link.Seen{
		Fault: fault, IssuersKnown: issuersKnown, Complete: h.complete,
		Gateways: len(counted), Connected: h.inbound || h.dialled(), PeerVersion: h.hello.GetVersion(),
		DNS: h.addresses.DNS, Refused: slices.Clone(h.addresses.Refused), IssuersRefused: h.refusedNow(),
	}
	for _, a := range h.addresses.Use {
		err := h.streams[a.At].err
		if err == nil {
			s.Reachable++
			continue
		}
		why := "no answer yet"
		if err != errConnecting {
			why = wire.Explain(err)
		}
		if slices.Contains(counted, a) {
			s.Silent = append(s.Silent, link.Silence{Address: a.String(), Why: why})
		} else {
			s.Refused = append(s.Refused, fmt.Sprintf("%v: %s", a, why))
		}
	}
	slices.Sort(s.Refused)
	if h.skew.Abs() > worstSkew {
		s.Skew = h.skew
	}
	s.Problems = append([]v1alpha1.ServiceProblem(nil), h.problems...)
	return s
}
