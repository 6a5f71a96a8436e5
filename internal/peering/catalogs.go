package peering

import (
	"maps"
	"slices"
	"time"

	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/link"
)

// CatalogChange is what changed in a peer's catalog since the last TakeCatalog.
type CatalogChange struct {
	// Upserts are valid Services, in no order.
	Upserts []catalog.Service
	// Removed are keys that the peer no longer exports, or not validly.
	Removed []catalog.Key
	// Problems are those of the keys in Upserts and Removed that have any. A key of either
	// that is missing here has no problem any more.
	Problems map[catalog.Key][]catalog.Problem
	// Complete: what was taken in all is the peer's whole catalog of Version. Only then may
	// mirrors of Services be deleted that are not in it.
	Complete bool
	Version  wire.Version
	// Stale says whether the peer's catalog is out of date, and how.
	Stale link.Staleness
}

// catalogState holds what was received of a peer's catalog and not taken yet. Peers.mu
// guards it.
type catalogState struct {
	complete bool // a complete catalog was received
	version  wire.Version
	history  wire.History
	upserts  map[catalog.Key]catalog.Service
	// removed are held back until the catalog may delete.
	removed  map[catalog.Key]bool
	problems map[catalog.Key][]catalog.Problem
	// observed is the newest freshness of each open stream.
	observed map[string]wire.Observed
	held     bool // the catalog must not delete yet
}

func newCatalogState() catalogState {
	return catalogState{
		upserts:  make(map[catalog.Key]catalog.Service),
		removed:  make(map[catalog.Key]bool),
		problems: make(map[catalog.Key][]catalog.Problem),
		observed: make(map[string]wire.Observed),
	}
}

// receive takes in the difference to an earlier complete catalog.
func (c *catalogState) receive(d wire.Delta, now time.Time) {
	for _, s := range d.Upserts {
		c.upserts[s.Key()] = s
		delete(c.removed, s.Key())
		c.problems[s.Key()] = d.Problems[s.Key()]
	}
	for _, key := range d.Removed {
		delete(c.upserts, key)
		c.removed[key] = true
		c.problems[key] = d.Problems[key]
	}
	c.complete, c.version = true, d.Version
	c.history.Observe(d.Version, now)
}

// observe takes in what a heartbeat on the stream to an address says. It reports whether
// the reconciler has to look again.
func (c *catalogState) observe(address string, f wire.Freshness, now time.Time) bool {
	before := c.stale(now)
	c.observed[address] = wire.Observed{Freshness: f, At: now}
	c.history.Observe(f.Version, now)
	return c.held || c.stale(now) != before
}

// staleAge is the age of a peer's data from which on the status says so.
const staleAge = 30 * time.Second

// stale reports whether no replica that we hear has heard its API server lately.
func (c *catalogState) stale(now time.Time) bool {
	for _, o := range c.observed {
		if o.Age+now.Sub(o.At) < staleAge {
			return false
		}
	}
	return len(c.observed) > 0
}

// TakeCatalog returns what was received of a peer's catalog since the last call. applied is
// the version that the ledger says was applied last; removals are held back while the
// received catalog is older than that, or of a new epoch that is not confirmed. For a peer
// that Set does not have, the result is empty.
func (p *Peers) TakeCatalog(of link.Peer, applied wire.Version, now time.Time) CatalogChange {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.links[of.Name]
	if s == nil || !s.link.Same(of) {
		return CatalogChange{}
	}
	c := &s.catalog
	out := CatalogChange{Version: c.version, Problems: make(map[catalog.Key][]catalog.Problem)}
	reason, applicable := wire.Applicable(applied, c.version, c.history.Seen(), now)
	c.held = c.complete && !applicable
	out.Complete = c.complete && applicable
	switch {
	case c.held && reason == wire.CatalogOlder:
		out.Stale = link.PeerCatalogOlder
	case c.held:
		out.Stale = link.PeerEpochChanged
	case c.stale(now):
		out.Stale = link.PeerCatalogStale
	}
	out.Upserts = slices.Collect(maps.Values(c.upserts))
	if applicable {
		out.Removed = slices.Collect(maps.Keys(c.removed))
		clear(c.removed)
	}
	for key, problems := range c.problems {
		if len(problems) > 0 {
			out.Problems[key] = problems
		}
	}
	clear(c.upserts)
	clear(c.problems)
	return out
}
