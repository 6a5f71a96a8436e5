package wire

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/delta"
)

// Board holds what this cluster tells its peers: one Hello for all, and one log of all
// exported Services, each with the Links that may see it. Make it with NewBoard. It is
// safe for concurrent use, and its methods do not block.
type Board struct {
	log *delta.Log[*listed]

	// mu guards all below. Readers hold it while they read the log, so that what they
	// read and the version belong together.
	mu      sync.RWMutex
	listed  map[string]*listed // by key
	sets    map[string]*linkSet
	links   map[string]*linkState
	invalid map[string][]string // Links that may see a Service that cannot be encoded, by key
	version Version
	// readyLinks is what SetReady was last given.
	readyLinks []string
	ready      chan struct{} // closed when SetReady changes something

	freshness func() Freshness

	own          *Hello // as given to SetHello
	gateways     []string
	hello        *Hello // as sent; nil: none yet
	helloChanged chan struct{}
}

// NewBoard returns a Board that has nothing to tell yet.
func NewBoard() *Board {
	return &Board{
		log:          delta.NewLog(func(l *listed) int { return len(l.message) }),
		listed:       map[string]*listed{},
		sets:         map[string]*linkSet{},
		links:        map[string]*linkState{},
		invalid:      map[string][]string{},
		ready:        make(chan struct{}),
		helloChanged: make(chan struct{}),
	}
}

// listed is one exported Service. It is immutable, and all streams share it.
type listed struct {
	key     string
	message []byte
	links   *linkSet
}

// cost is what the Service takes of Bounds.Bytes.
func (l *listed) cost() int { return len(l.key) + len(l.message) }

// Listing is one changed export.
type Listing struct {
	Key catalog.Key
	// Service is what peers see; nil: it is no longer exported.
	Service *catalog.Service
	// Links are the names of those that may see it, in any order.
	Links []string
}

// SetHello sets what the Board tells of this cluster. Time and gateways of h are ignored;
// bounds default to DefaultBounds. Open streams send it again. h must not be changed
// afterwards. An error names what no peer would accept; then nothing changes.
func (b *Board) SetHello(h *Hello) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.setHello(h, b.gateways); err != nil {
		return err
	}
	b.own = h
	return nil
}

// SetGateways sets this cluster's own gateway addresses in the Hello. It uses the first
// MaxGateways of them, and does nothing if they are the same as before.
func (b *Board) SetGateways(addresses []string) error {
	addresses = slices.Clone(addresses[:min(len(addresses), MaxGateways)])
	b.mu.Lock()
	defer b.mu.Unlock()
	if slices.Equal(addresses, b.gateways) {
		return nil
	}
	if err := b.setHello(b.own, addresses); err != nil {
		return err
	}
	b.gateways = addresses
	return nil
}

// setHello makes the Hello that is sent. The caller holds mu.
func (b *Board) setHello(own *Hello, gateways []string) error {
	if own == nil {
		return nil // gateways alone are not a Hello
	}
	h := proto.CloneOf(own)
	h.Gateways = gateways
	if h.Bounds == nil {
		h.Bounds = DefaultBounds.message()
	}
	if err := checkHello(h); err != nil {
		return fmt.Errorf("this cluster's own hello: %w", err)
	}
	b.hello = h
	close(b.helloChanged)
	b.helloChanged = make(chan struct{})
	return nil
}

// Hello returns what the Board tells of this cluster; nil: nothing yet. The caller must
// not change it.
func (b *Board) Hello() *Hello {
	h, _ := b.currentHello()
	return h
}

// currentHello returns the Hello, and a channel that is closed when there is a new one.
func (b *Board) currentHello() (*Hello, <-chan struct{}) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.hello, b.helloChanged
}

// SetFreshness sets the function that heartbeats take their Freshness from. It is called
// with each heartbeat of each stream, and must be fast. The Version is always that of the
// last Publish, and that of f is ignored. Until it is set, heartbeats carry none.
func (b *Board) SetFreshness(f func() Freshness) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.freshness = f
}

// currentFreshness returns what a heartbeat carries; nil: nothing.
func (b *Board) currentFreshness() *Heartbeat_Freshness {
	b.mu.RLock()
	f, version := b.freshness, b.version
	b.mu.RUnlock()
	if f == nil {
		return nil
	}
	now := f()
	now.Version = version
	return now.message()
}

// SetReady sets for which Links the Board is complete. Streams of all other Links are
// sent no Updates: their peers keep what they have. Callers name a Link once everything
// that it may see has been published.
func (b *Board) SetReady(links ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if slices.Equal(b.readyLinks, links) {
		return
	}
	b.readyLinks = slices.Clone(links)
	named := make(map[string]bool, len(links))
	for _, name := range links {
		named[name] = true
	}
	changed := false
	for name, l := range b.links {
		if l.ready && !named[name] {
			l.ready, changed = false, true
		}
	}
	for _, name := range links {
		if l := b.link(name); !l.ready {
			l.ready, changed = true, true
		}
	}
	if changed {
		close(b.ready)
		b.ready = make(chan struct{})
	}
}

// Publish applies changes, each key at most once, and sets the version of the result. A
// stream sees both together. Where a Link has no room for all, earlier changes take
// precedence over later ones. The error names Services that cannot be encoded; they are
// not exported. The caller must not modify the Services afterwards.
func (b *Board) Publish(changes []Listing, version Version) error {
	encoded, errs := encodeListings(changes)
	b.mu.Lock()
	defer b.mu.Unlock()
	var removals, upserts []delta.Change[*listed]
	touched := map[*linkState]bool{}
	for i, c := range changes {
		key := c.Key.String()
		old := b.listed[key]
		switch {
		case c.Service == nil || errs[i] != nil:
			if delete(b.invalid, key); errs[i] != nil {
				b.invalid[key] = c.Links
			}
			if old != nil {
				b.account(old, nil, touched)
				removals = append(removals, delta.Change[*listed]{Key: key, Deleted: true})
			}
		default:
			delete(b.invalid, key)
			next := &listed{key: key, message: encoded[i], links: b.internLinks(c.Links, old)}
			if old != nil && old.links == next.links && slices.Equal(old.message, next.message) {
				b.releaseLinks(next.links)
				continue
			}
			upserts = append(upserts, delta.Change[*listed]{Key: key, Value: next})
		}
	}
	// Removals come first, then those that wait for room, then the rest in order. So
	// no newcomer overtakes a Service that was there before.
	refilter := b.admitWaiting(touched)
	for _, u := range upserts {
		b.account(b.listed[u.Key], u.Value, touched)
	}
	maps.Copy(refilter, b.admitWaiting(touched))
	b.log.Apply(append(removals, upserts...)...)
	for l := range refilter {
		l.refilter()
	}
	b.version = version
	return errors.Join(errs...)
}

// encodeListings encodes the Services of changes. Both results have their indexes.
func encodeListings(changes []Listing) (messages [][]byte, errs []error) {
	messages, errs = make([][]byte, len(changes)), make([]error, len(changes))
	for i, c := range changes {
		if c.Service == nil {
			continue
		}
		err := checkKey(c.Service.Namespace, c.Service.Name)
		if err == nil && c.Service.Key() != c.Key {
			err = fmt.Errorf("it is named %s", c.Service.Key())
		}
		if err == nil {
			messages[i], err = marshalService(*c.Service)
		}
		if err != nil {
			errs[i] = fmt.Errorf("encode service %s: %w", c.Key, err)
		}
	}
	return messages, errs
}

// account moves every Link from the old to the new state of one key and stores the new
// one. Either may be nil. It adds the Links that got room to touched. The caller holds
// mu.
func (b *Board) account(old, next *listed, touched map[*linkState]bool) {
	if old != nil {
		for _, l := range old.links.states {
			if next == nil || !next.links.has(l) {
				l.remove(old)
				touched[l] = true
			}
		}
	}
	if next == nil {
		delete(b.listed, old.key)
		b.releaseLinks(old.links)
		return
	}
	for _, l := range next.links.states {
		var before *listed
		if old != nil && old.links.has(l) {
			before = old
		}
		if l.put(before, next) {
			touched[l] = true
		}
	}
	b.listed[next.key] = next
	if old != nil {
		b.releaseLinks(old.links)
	}
}

// admitWaiting gives room in links to Services that were left out. It returns the Links
// whose readers have to look again, and empties links. The caller holds mu.
func (b *Board) admitWaiting(links map[*linkState]bool) map[*linkState]bool {
	refilter := map[*linkState]bool{}
	for l := range links {
		if l.admitWaiting() {
			refilter[l] = true
		}
	}
	clear(links)
	return refilter
}

// link returns the state of a Link. The caller holds mu.
func (b *Board) link(name string) *linkState {
	l := b.links[name]
	if l == nil {
		l = newLinkState(len(b.links))
		b.links[name] = l
	}
	return l
}

// LeftOut returns how many Services a Link may see that are not sent because of the
// bounds of either side, and the first of them by key, with the reason.
func (b *Board) LeftOut(link string) (count int, first []catalog.Problem) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	for key, links := range b.invalid {
		if slices.Contains(links, link) {
			first = append(first, invalidService(key))
		}
	}
	if l := b.links[link]; l != nil {
		for key, o := range l.leftOut {
			first = append(first, o.problem(key, l.bounds))
		}
	}
	slices.SortFunc(first, func(a, b catalog.Problem) int { return cmp.Compare(a.Service, b.Service) })
	return len(first), first[:min(len(first), maxNamed)]
}

// maxNamed is how many Services LeftOut names.
const maxNamed = 32
