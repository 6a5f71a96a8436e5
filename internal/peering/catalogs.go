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
	// Whole: everything taken before must be forgotten. It is set in the first change
	// of a peer.
	Whole bool
	// Upserts are valid Services, sorted by key.
	Upserts []catalog.Service
	// Removed are keys that the peer does not export any more, or not validly, sorted.
	// The caller may not know all of them.
	Removed []catalog.Key
	// Problems are those of the keys in Upserts and Removed that have any. A key of
	// either that is missing here has no problem any more.
	Problems map[catalog.Key][]catalog.Problem
	// Complete: what was taken in all is the peer's whole catalog, and may be applied as
	// such. Only then may mirrors of Services be deleted that are not in it.
	Complete bool
	// Version is that of the catalog. Once a Complete change was applied, it is the
	// version to pass to the next TakeCatalog, also after a restart.
	Version wire.Version
	// Stale is why a catalog that has arrived is not Complete: removals are held back.
	Stale link.Staleness
	// Recheck is after how long Stale may end by the clock alone; 0: it does not.
	Recheck time.Duration
}

// IsEmpty reports whether there is no Service to apply. Other fields may have changed.
func (c *CatalogChange) IsEmpty() bool { return !c.Whole && len(c.Upserts) == 0 && len(c.Removed) == 0 }

// catalogState holds what of a peer's catalog was not taken, and which versions its
// replicas report. Peers.mu guards it.
type catalogState struct {
	complete bool         // a whole catalog has arrived
	version  wire.Version // of the newest
	history  wire.History
	// current is the latest time at which all that the peer exported is known to be in
	// the catalog; zero: it is not known.
	current time.Time
	taken   bool // TakeCatalog was called
	// What was not taken, by key. A key is in one of the two.
	upserts map[catalog.Key]catalog.Service
	removed map[catalog.Key]bool
	// problems are those of the keys in upserts and removed.
	problems map[catalog.Key][]catalog.Problem
}

func newCatalogState() catalogState {
	return catalogState{
		upserts:  make(map[catalog.Key]catalog.Service),
		removed:  make(map[catalog.Key]bool),
		problems: make(map[catalog.Key][]catalog.Problem),
	}
}

// observe records which version a replica of the peer reports.
func (c *catalogState) observe(v wire.Version, now time.Time) {
	if v != (wire.Version{}) {
		c.history.Observe(v, now)
	}
}

// confirm records that a replica of the peer had nothing newer than its version when it
// last read its API server.
func (c *catalogState) confirm(f wire.Freshness, now time.Time) {
	at := now.Add(-max(f.Age, 0))
	if c.complete && f.Version.Epoch == c.version.Epoch && f.Version.Generation <= c.version.Generation &&
		at.After(c.current) {
		c.current = at
	}
}

// receive adds the difference to another complete catalog.
func (c *catalogState) receive(d wire.Delta, now time.Time) {
	c.observe(d.Version, now)
	c.complete, c.version = true, d.Version
	for _, s := range d.Upserts {
		key := s.Key()
		delete(c.removed, key)
		c.upserts[key] = s
		c.setProblems(key, d.Problems[key])
	}
	for _, key := range d.Removed {
		delete(c.upserts, key)
		c.removed[key] = true
		c.setProblems(key, d.Problems[key])
	}
}

func (c *catalogState) setProblems(key catalog.Key, all []catalog.Problem) {
	delete(c.problems, key)
	if len(all) > 0 {
		c.problems[key] = all
	}
}

// heldRecheck is how often a removal that is held back is decided about again.
const heldRecheck = 30 * time.Second

// staleness maps the reasons of wire.Applicable.
var staleness = map[string]link.Staleness{
	wire.CatalogOlder:     link.PeerCatalogOlder,
	wire.EpochUnconfirmed: link.PeerEpochChanged,
}

// TakeCatalog returns what arrived of a peer's catalog since the last call for the same
// peer. applied is the version of the last catalog that was applied as a whole, zero if
// there is none: while the one that has arrived may not follow it, removals are held
// back. For a Link that Set does not have it returns an empty whole change.
func (p *Peers) TakeCatalog(link string, applied wire.Version, now time.Time) CatalogChange {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.links[link]
	if s == nil {
		return CatalogChange{Whole: true}
	}
	c := &s.catalog
	out := CatalogChange{
		Whole:    !c.taken,
		Version:  c.version,
		Problems: make(map[catalog.Key][]catalog.Problem),
	}
	c.taken = true
	for _, key := range slices.SortedFunc(maps.Keys(c.upserts), catalog.Key.Compare) {
		out.Upserts = append(out.Upserts, c.upserts[key])
		c.takeProblems(key, &out)
	}
	clear(c.upserts)
	if !c.complete {
		return out
	}
	if reason, ok := wire.Applicable(applied, c.version, c.history.Seen(), now); !ok {
		out.Stale, out.Recheck = staleness[reason], heldRecheck
		return out
	}
	out.Complete = true
	out.Removed = slices.SortedFunc(maps.Keys(c.removed), catalog.Key.Compare)
	for _, key := range out.Removed {
		c.takeProblems(key, &out)
	}
	clear(c.removed)
	return out
}

func (c *catalogState) takeProblems(key catalog.Key, out *CatalogChange) {
	if all, ok := c.problems[key]; ok {
		out.Problems[key] = all
		delete(c.problems, key)
	}
}
