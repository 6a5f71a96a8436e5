package peering

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/causeway-mesh/causeway/internal/link"
)

// LossGrace is how long something may be lost that worked before until the Link's
// status reports it: streams begin when a controller starts, and a peer's controllers
// are rolled.
const LossGrace = 5 * time.Second

// Snapshot is what this replica knows about a peer at one moment. It is immutable. A nil
// Snapshot knows nothing.
type Snapshot struct {
	// Inbound: the peer has a stream to this replica.
	Inbound bool
	// PeerVersion is the version that the peer's controller reports; empty: none yet.
	PeerVersion string
	// Skew is the peer's clock minus ours. It changes in steps, so that jitter does not.
	Skew time.Duration
	// Complete: the peer's whole catalog has arrived.
	Complete bool
	// Streams are our streams to the peer's gateways, by address.
	Streams map[string]StreamState
	// Addresses are the peer's gateway addresses and what is wrong with others.
	Addresses link.Addresses
	// Authenticated holds the discovered addresses at which the peer was authenticated.
	Authenticated map[string]bool
	// Acknowledged is the newest list of our issuers that the peer reports to have.
	Acknowledged uint64
	// IssuersRejected is why the peer's current list of issuers is not accepted; empty if
	// it is, or if it is only older than the stored one.
	IssuersRejected string
	// Stale: every replica of the peer that reports to us has lost its API server.
	Stale bool
	// ReportAt is when a loss may be reported in the Link's status; zero: at once.
	ReportAt time.Time
}

// StreamState is the state of a stream to one address.
type StreamState struct {
	Connected bool
	// Reason says why it is not connected: a sentence of a closed list.
	Reason string
}

// newSnapshot returns the snapshot of s. The caller holds mu.
func (s *peer) newSnapshot() *Snapshot {
	out := &Snapshot{
		Inbound:         s.inbound,
		PeerVersion:     s.hello.GetVersion(),
		Skew:            s.skew,
		Complete:        s.catalog.complete,
		Streams:         make(map[string]StreamState, len(s.streams)),
		Addresses:       s.addresses.merged, // replaced as a whole by Merge
		Authenticated:   maps.Clone(s.addresses.authenticated),
		Acknowledged:    s.acknowledged,
		IssuersRejected: s.issuers.rejectedNow(s.hello),
		Stale:           s.isStale(),
	}
	for address, stream := range s.streams {
		out.Streams[address] = stream.state()
	}
	if !s.degradedSince.IsZero() {
		out.ReportAt = s.degradedSince.Add(LossGrace)
	}
	return out
}

func (s *Snapshot) equal(o *Snapshot) bool {
	return s.Inbound == o.Inbound && s.PeerVersion == o.PeerVersion && s.Skew == o.Skew &&
		s.Complete == o.Complete && s.Acknowledged == o.Acknowledged &&
		s.IssuersRejected == o.IssuersRejected && s.Stale == o.Stale && s.ReportAt.Equal(o.ReportAt) &&
		maps.Equal(s.Streams, o.Streams) && maps.Equal(s.Authenticated, o.Authenticated) &&
		equalAddresses(s.Addresses, o.Addresses)
}

func equalAddresses(a, b link.Addresses) bool {
	return slices.Equal(a.Use, b.Use) && slices.Equal(a.Fresh, b.Fresh) && slices.Equal(a.DNS, b.DNS) &&
		slices.Equal(a.Refused, b.Refused)
}

// staleAge is the age of a replica's data from which it counts as cut off.
const staleAge = 30 * time.Second

// isStale reports whether no replica of the peer is current that we have a stream to. The
// Subscriber moves to a current one if there is any. The caller holds mu.
func (s *peer) isStale() bool {
	stale := false
	for _, stream := range s.streams {
		switch {
		case stream.err != nil || stream.age < 0:
		case stream.age <= staleAge:
			return false
		default:
			stale = true
		}
	}
	return stale
}

// Dialed reports whether this replica has a stream to a gateway of the peer.
func (s *Snapshot) Dialed() bool {
	if s == nil {
		return false
	}
	for _, stream := range s.Streams {
		if stream.Connected {
			return true
		}
	}
	return false
}

// Gateway is an address that agents may dial.
type Gateway struct {
	Address string
	// Healthy: this replica has a stream there.
	Healthy bool
}

// Gateways returns the addresses that agents may dial: the Link's own, and of the others
// those at which the peer was authenticated.
func (s *Snapshot) Gateways() []Gateway {
	if s == nil {
		return nil
	}
	var out []Gateway
	for _, a := range s.Addresses.Use {
		if a.From == "" || s.Authenticated[a.At] {
			out = append(out, Gateway{Address: a.At, Healthy: s.Streams[a.At].Connected})
		}
	}
	return out
}

// expected returns the addresses that should answer. An address that only the peer
// advertises and that has never answered may be meant for others, behind the peer's NAT.
func (s *Snapshot) expected() []link.Address {
	if s == nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(s.Addresses.Use), func(a link.Address) bool {
		return a.Advertised && !s.Authenticated[a.At]
	})
}

// maxSkew is how far a peer's clock may be off before the status reports it. Two clocks
// that are each wrong by less than check tolerates, which is 90 s, differ by less.
const maxSkew = 3 * time.Minute

// Observe fills in what the Link's status says about the streams, the addresses and the
// clock of the peer.
func (s *Snapshot) Observe(o *link.Observed) {
	if s == nil {
		return
	}
	expected := s.expected()
	o.Complete, o.Gateways, o.Connected = s.Complete, len(expected), s.Inbound || s.Dialed()
	o.PeerVersion, o.DNS, o.IssuersRefused = s.PeerVersion, s.Addresses.DNS, s.IssuersRejected
	o.Refused = slices.Clone(s.Addresses.Refused)
	for _, a := range s.Addresses.Use {
		stream := s.Streams[a.At]
		switch {
		case stream.Connected:
			o.Reachable++
		case slices.Contains(expected, a):
			o.Unreachable = append(o.Unreachable,
				link.UnreachableAddress{Address: a.String(), Why: stream.Reason})
		default:
			o.Refused = append(o.Refused, fmt.Sprintf("%v: %s", a, stream.Reason))
		}
	}
	slices.Sort(o.Refused)
	if s.Stale {
		o.Stale = link.PeerCatalogStale
	}
	if s.Skew.Abs() > maxSkew {
		o.Skew = s.Skew
	}
}

// DisconnectedReason says why there is no stream to a gateway, by the first address that
// has a reason.
func (s *Snapshot) DisconnectedReason() string {
	for _, a := range s.expected() {
		if r := s.Streams[a.At].Reason; r != "" && r != noAnswerYet {
			return fmt.Sprintf("%v: %s", a, r)
		}
	}
	return noAnswerYet
}
