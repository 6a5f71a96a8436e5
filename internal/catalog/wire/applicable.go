package wire

import (
	"slices"
	"time"
)

// Reasons why a complete catalog may not delete mirrors yet. The list is closed.
const (
	// CatalogOlder: a newer catalog of the same epoch was applied before. The peer's
	// state was restored from a backup, or the replica is behind.
	CatalogOlder = "catalog_older"
	// EpochUnconfirmed: the epoch is new, and has not been the only one for long enough.
	EpochUnconfirmed = "catalog_epoch_unconfirmed"
)

// epochConfirmedAfter is how long a new epoch must be the only one observed.
const epochConfirmedAfter = 10 * time.Minute

// maxEpochs bounds what a History remembers of one peer.
const maxEpochs = 16

// EpochSeen says when an epoch of a peer was observed.
type EpochSeen struct {
	Epoch       string
	First, Last time.Time
}

// History records which epochs the replicas of one peer reported. The zero value is
// ready to use. It is not safe for concurrent use.
type History struct {
	seen []EpochSeen // by Last
}

// Observe records that a stream reported v at now. Callers pass the versions of all
// heartbeats and all Deltas of a peer.
func (h *History) Observe(v Version, now time.Time) {
	entry := EpochSeen{Epoch: v.Epoch, First: now, Last: now}
	h.seen = slices.DeleteFunc(h.seen, func(s EpochSeen) bool {
		if s.Epoch == v.Epoch {
			entry.First = s.First
			return true
		}
		return now.Sub(s.Last) >= epochConfirmedAfter
	})
	if len(h.seen) >= maxEpochs {
		h.seen = slices.Delete(h.seen, 0, 1+len(h.seen)-maxEpochs)
	}
	h.seen = append(h.seen, entry)
}

// Seen returns the epochs of the last 10 minutes, the latest observed last. The caller
// must not change the result.
func (h *History) Seen() []EpochSeen { return h.seen }

// Applicable decides whether a complete catalog of version received may delete mirrors.
// last is the newest version that was applied before; zero: none was. seen has the epochs
// that the peer's replicas reported. The reason is empty if the answer is yes.
//
// Within one epoch a catalog must not be older than the last one applied. A new epoch
// counts once it has been observed for 10 minutes during which no other was.
func Applicable(last, received Version, seen []EpochSeen, now time.Time) (reason string, ok bool) {
	if last == (Version{}) {
		return "", true
	}
	if received.Epoch == last.Epoch {
		if received.Generation < last.Generation {
			return CatalogOlder, false
		}
		return "", true
	}
	known := false
	for _, s := range seen {
		if s.Epoch == received.Epoch {
			known = now.Sub(s.First) >= epochConfirmedAfter
		} else if now.Sub(s.Last) < epochConfirmedAfter {
			return EpochUnconfirmed, false
		}
	}
	if !known {
		return EpochUnconfirmed, false
	}
	return "", true
}
