package peering

import (
	"maps"
	"slices"

	"github.com/causeway-mesh/causeway/internal/catalog"
)

// CatalogChange is what changed in a peer's catalog since the last TakeCatalog.
type CatalogChange struct {
	// Whole: everything taken before must be forgotten; Upserts are all Services that have
	// arrived so far. It is set in the first change of a peer.
	Whole bool
	// Upserts are valid Services, sorted by key.
	Upserts []catalog.Service
	// Removed are keys that the peer does not export any more, or not validly, sorted.
	Removed []catalog.Key
	// Problems are those of the keys in Upserts and Removed that have any. A key of either
	// that is missing here has no problem any more.
	Problems map[catalog.Key][]catalog.Problem
	// Complete: what was taken in all is the peer's whole catalog. Only then may mirrors of
	// Services be deleted that are not in it.
	Complete bool
}

// IsEmpty reports whether there is nothing to apply. Complete may have changed.
func (c *CatalogChange) IsEmpty() bool { return !c.Whole && len(c.Upserts) == 0 && len(c.Removed) == 0 }

// catalogState holds a peer's catalog as far as it was not taken. Peers.mu guards it.
type catalogState struct {
	complete bool
	taken    bool // TakeCatalog was called
	services map[catalog.Key]catalog.Service
	invalid  map[catalog.Key][]catalog.Problem
	changed  map[catalog.Key]bool // since the last take
}

func newCatalogState() catalogState {
	return catalogState{changed: make(map[catalog.Key]bool)}
}

// replace validates a complete catalog and records the differences. It reports whether
// there are any.
func (c *catalogState) replace(trustDomain string, services map[catalog.Key]catalog.Service) bool {
	valid := make(map[catalog.Key]catalog.Service, len(services))
	problems := make(map[catalog.Key][]catalog.Problem)
	before := len(c.changed)
	for key, s := range services {
		v, ps := s.Validate(trustDomain)
		if len(ps) > 0 {
			problems[key] = ps
		}
		if !v.IsZero() {
			valid[key] = v
		}
		old, known := c.services[key]
		if known != !v.IsZero() || known && !old.Equal(v) || !slices.Equal(ps, c.invalid[key]) {
			c.changed[key] = true
		}
	}
	for key := range c.services {
		if _, ok := valid[key]; !ok {
			c.changed[key] = true
		}
	}
	for key := range c.invalid {
		if _, ok := services[key]; !ok {
			c.changed[key] = true
		}
	}
	first := !c.complete
	c.services, c.invalid, c.complete = valid, problems, true
	return first || len(c.changed) > before
}

// TakeCatalog returns what arrived of a peer's catalog since the last call for the same
// peer. For a Link that Set does not have it returns an empty whole catalog.
func (p *Peers) TakeCatalog(link string) CatalogChange {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.links[link]
	if s == nil {
		return CatalogChange{Whole: true}
	}
	c := &s.catalog
	out := CatalogChange{Whole: !c.taken, Complete: c.complete, Problems: make(map[catalog.Key][]catalog.Problem)}
	keys := c.changed
	if out.Whole {
		keys = make(map[catalog.Key]bool)
		for key := range c.services {
			keys[key] = true
		}
		for key := range c.invalid {
			keys[key] = true
		}
	}
	for _, key := range slices.SortedFunc(maps.Keys(keys), catalog.Key.Compare) {
		if v, ok := c.services[key]; ok {
			out.Upserts = append(out.Upserts, v)
		} else {
			out.Removed = append(out.Removed, key)
		}
		if ps := c.invalid[key]; len(ps) > 0 {
			out.Problems[key] = ps
		}
	}
	c.taken = true
	clear(c.changed)
	return out
}
