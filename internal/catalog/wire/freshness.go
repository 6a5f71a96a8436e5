package wire

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"fmt"
	"math"
	"slices"
	"time"
)

// Version orders the catalogs of all replicas of one cluster. Generations compare only
// within one epoch. The zero value says that the version is unknown.
type Version struct {
	Epoch      string
	Generation uint64
}

// String returns epoch/generation.
func (v Version) String() string { return fmt.Sprintf("%s/%d", v.Epoch, v.Generation) }

func (v Version) message() *Update_Version {
	if v == (Version{}) {
		return nil
	}
	return &Update_Version{Epoch: v.Epoch, Generation: v.Generation}
}

func parseVersion(m *Update_Version) (Version, error) {
	if !isWord(m.GetEpoch(), maxWord) {
		return Version{}, fmt.Errorf("%w: its epoch %q is not a short printable word",
			ErrProtocol, clip(m.GetEpoch()))
	}
	return Version{Epoch: m.GetEpoch(), Generation: m.GetGeneration()}, nil
}

// ReplicaID is the endpoint id under which the gateways of a cluster reach one replica of
// its controller. It is opaque to the peer. The zero value names none.
type ReplicaID [8]byte

// IsZero reports whether id names no replica.
func (id ReplicaID) IsZero() bool { return id == ReplicaID{} }

// String returns id in hex.
func (id ReplicaID) String() string { return hex.EncodeToString(id[:]) }

func (id ReplicaID) bytes() []byte {
	if id.IsZero() {
		return nil
	}
	return id[:]
}

func parseReplica(raw []byte) (id ReplicaID, err error) {
	if n := len(raw); n != 0 && n != len(id) {
		return id, fmt.Errorf("%w: a replica id has %d bytes, want %d", ErrProtocol, n, len(id))
	}
	copy(id[:], raw)
	return id, nil
}

// Freshness says how current one controller replica is.
type Freshness struct {
	// Version is the newest catalog version that the replica has read completely.
	Version Version
	// Age is the time since the replica's API server last answered.
	Age time.Duration
	// Replica names the replica itself.
	Replica ReplicaID
	// Fresher names a replica of the same cluster that is known to be ahead; zero: none.
	Fresher ReplicaID
}

func (f Freshness) message() *Heartbeat_Freshness {
	return &Heartbeat_Freshness{
		Version: f.Version.message(),
		AgeMs:   uint64(max(f.Age, 0).Milliseconds()),
		Replica: f.Replica.bytes(),
		Fresher: f.Fresher.bytes(),
	}
}

func parseFreshness(m *Heartbeat_Freshness) (f Freshness, err error) {
	if f.Version, err = parseVersion(m.GetVersion()); err != nil {
		return Freshness{}, err
	}
	if f.Replica, err = parseReplica(m.GetReplica()); err != nil {
		return Freshness{}, err
	}
	if f.Fresher, err = parseReplica(m.GetFresher()); err != nil {
		return Freshness{}, err
	}
	const maxAge = math.MaxInt64 / 2 / uint64(time.Millisecond)
	f.Age = time.Duration(min(m.GetAgeMs(), maxAge)) * time.Millisecond
	return f, nil
}

// Observed is the newest Freshness of one open stream.
type Observed struct {
	Freshness
	// At is when it was received.
	At time.Time
	// Subscribed marks the stream that carries the catalog.
	Subscribed bool
}

// age returns how old the replica's data is at now.
func (o Observed) age(now time.Time) time.Duration { return o.Age + now.Sub(o.At) }

const (
	// behindFor is how long another replica must be ahead before the stream moves to it.
	behindFor = 5 * time.Second
	// staleAge is the age from which a replica counts as cut off from its API server,
	// if another replica is younger than freshAge.
	staleAge = 30 * time.Second
	freshAge = 10 * time.Second
	// moveInterval is the shortest time between two moves. It doubles, up to
	// maxMoveInterval, while moves do not reach the replica that was asked for.
	moveInterval    = 30 * time.Second
	maxMoveInterval = 10 * time.Minute
)

// Chooser decides which replica of a peer the subscription should be on. The zero value
// is ready to use. It has no clock and is not safe for concurrent use.
type Chooser struct {
	ahead    map[ReplicaID]time.Time // since when a replica has been ahead of the subscribed one
	moved    time.Time               // when Choose last returned true
	asked    ReplicaID               // what it returned then
	interval time.Duration           // before the next move
}

// Choose returns a replica and true if the subscription should move there. streams has
// all open streams of the peer; it changes nothing if none of them is subscribed.
//
// The subscription moves if another replica has been ahead in the same epoch for 5 s, or
// if the subscribed replica is older than 30 s and another is younger than 10 s and not
// behind. It moves at most once in 30 s, and less often if moves do not reach the
// replica.
func (c *Chooser) Choose(now time.Time, streams []Observed) (ReplicaID, bool) {
	i := slices.IndexFunc(streams, func(o Observed) bool { return o.Subscribed })
	if i < 0 {
		c.ahead = nil
		return ReplicaID{}, false
	}
	ours := streams[i]
	if ours.Replica == c.asked { // the last move has led there
		c.asked, c.interval = ReplicaID{}, moveInterval
	}
	c.noteAhead(now, ours, streams)
	if now.Sub(c.moved) < c.interval {
		return ReplicaID{}, false
	}
	target, ok := c.target(now, ours, streams)
	if !ok {
		return ReplicaID{}, false
	}
	if c.asked.IsZero() {
		c.interval = moveInterval
	} else {
		c.interval = min(2*c.interval, maxMoveInterval)
	}
	c.moved, c.asked, c.ahead = now, target, nil
	return target, true
}

// noteAhead records which replicas are ahead of ours, and since when.
func (c *Chooser) noteAhead(now time.Time, ours Observed, streams []Observed) {
	ahead := map[ReplicaID]time.Time{}
	add := func(id ReplicaID) {
		if id.IsZero() || id == ours.Replica {
			return
		}
		since, known := c.ahead[id]
		if !known {
			since = now
		}
		ahead[id] = since
	}
	add(ours.Fresher)
	for _, o := range streams {
		if o.Version.Epoch == ours.Version.Epoch && o.Version.Generation > ours.Version.Generation {
			add(o.Replica)
		}
	}
	c.ahead = ahead
}

func (c *Chooser) target(now time.Time, ours Observed, streams []Observed) (ReplicaID, bool) {
	var candidates []Observed
	for _, o := range streams {
		if o.Replica.IsZero() || o.Replica == ours.Replica {
			continue
		}
		since, ahead := c.ahead[o.Replica]
		behind := o.Version.Epoch == ours.Version.Epoch && o.Version.Generation < ours.Version.Generation
		switch {
		case ahead && now.Sub(since) >= behindFor:
		case ours.age(now) > staleAge && o.age(now) < freshAge && !behind:
		default:
			continue
		}
		candidates = append(candidates, o)
	}
	if len(candidates) > 0 {
		return slices.MinFunc(candidates, func(a, b Observed) int {
			newer := 0
			if a.Version.Epoch == b.Version.Epoch {
				newer = cmp.Compare(b.Version.Generation, a.Version.Generation)
			}
			return cmp.Or(newer, cmp.Compare(a.age(now), b.age(now)),
				bytes.Compare(a.Replica[:], b.Replica[:]))
		}).Replica, true
	}
	// No stream ends at the replica that ours names as fresher.
	if since, ok := c.ahead[ours.Fresher]; ok && now.Sub(since) >= behindFor {
		return ours.Fresher, true
	}
	return ReplicaID{}, false
}
