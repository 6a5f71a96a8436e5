package wire

import (
	"cmp"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/delta"
)

// CatalogSink receives a peer's catalog.
type CatalogSink interface {
	// Catalog hands over the difference between two complete catalogs, the first time a
	// complete one. It is called one at a time for each Subscriber. d must not be
	// changed.
	Catalog(link string, d Delta)
}

// Delta is the difference between two complete catalogs of a peer. After it the receiver
// holds a complete one.
type Delta struct {
	// Upserts are Services that are new or changed, by rising key, as Service.Validate
	// returned them.
	Upserts []catalog.Service
	// Removed are Services that the peer no longer exports, and those that cannot be
	// used. The receiver may not have been given all of them.
	Removed []catalog.Key
	// Problems replace those of the keys in Upserts and Removed. Keys without are absent.
	Problems map[catalog.Key][]catalog.Problem
	// Version is that of the complete catalog; zero: the peer did not say.
	Version Version
}

// SubscriberOptions tune a Subscriber. The zero value works.
type SubscriberOptions struct {
	// Interval is the shortest time between two calls of CatalogSink; 0 means 100 ms. A
	// first change is handed over at once, and those that follow are merged.
	Interval time.Duration
	// Budgets are shared by everything that talks to peers; nil means a separate one.
	Budgets *Budgets
}

// Subscriber holds this replica's copy of one peer's catalog. The Clients for the peer's
// addresses share it. At most one of their streams is subscribed; when that ends, another
// takes over. When another replica of the peer is fresher, the Subscriber makes the
// Client reopen its stream towards that one. Make it with NewSubscriber. It is safe for
// concurrent use.
type Subscriber struct {
	link        string
	trustDomain string
	board       *Board
	sink        CatalogSink
	interval    time.Duration
	budget      *peerBudget
	seed        maphash.Seed

	// deliver is held while sink is called. It guards what the sink was given.
	deliver channelLock
	handed  map[string]uint64 // hash of the message by key
	version Version
	first   time.Time // of the first call; zero: none yet
	last    time.Time // of the last call

	mu       sync.Mutex // guards all below; taken after deliver
	streams  []*clientStream
	holder   *clientStream // its stream is subscribed
	reserved *Client       // reopens its subscribed stream
	copy     *catalogCopy  // what holder receives
	timer    *time.Timer   // hands over what waits for interval; nil: nothing waits
	chooser  Chooser
}

// clientStream is an open stream of a Client whose peer has said hello.
type clientStream struct {
	*stream
	client   *Client
	observed *Observed // nil: no heartbeat yet
}

// NewSubscriber returns a Subscriber for the peer of a Link, which vouches for
// trustDomain. board has what this cluster sends to the peer.
func NewSubscriber(link, trustDomain string, board *Board, sink CatalogSink,
	o SubscriberOptions) *Subscriber {
	if o.Budgets == nil {
		o.Budgets = NewBudgets()
	}
	return &Subscriber{
		link:        link,
		trustDomain: trustDomain,
		board:       board,
		sink:        sink,
		interval:    cmp.Or(o.Interval, 100*time.Millisecond),
		budget:      o.Budgets.peer(link),
		seed:        maphash.MakeSeed(),
		deliver:     make(channelLock, 1),
		handed:      map[string]uint64{},
	}
}

// greeted adds a stream whose peer has said hello. It may get the subscription.
func (s *Subscriber) greeted(c *clientStream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams = append(s.streams, c)
	if s.holder == nil && (s.reserved == nil || s.reserved == c.client) {
		s.grant(c)
	}
}

// grant subscribes on a stream. The caller holds mu.
func (s *Subscriber) grant(c *clientStream) {
	s.holder, s.reserved = c, nil
	s.copy = s.newCopy()
	c.subscribeDue(s.copy)
	c.wake()
}

// grantNext subscribes on an open stream, if there is one. The caller holds mu.
func (s *Subscriber) grantNext() {
	s.reserved = nil
	if s.holder == nil && len(s.streams) > 0 {
		s.grant(s.streams[0])
	}
}

// over takes out a stream that has ended. Complete changes are handed over at once. With
// reopening, the next stream of the Client gets the subscription back.
func (s *Subscriber) over(c *clientStream, reopening bool) {
	s.handOver(c, true)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams = slices.DeleteFunc(s.streams, func(o *clientStream) bool { return o == c })
	if s.holder != c {
		return
	}
	s.holder, s.copy = nil, nil
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	if reopening {
		s.reserved = c.client
		return
	}
	s.grantNext()
}

// failed lets another stream subscribe if a Client could not reopen its own.
func (s *Subscriber) failed(c *Client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reserved == c {
		s.grantNext()
	}
}

// observe records the Freshness of a stream and moves the subscription to another replica
// if that is fresher.
func (s *Subscriber) observe(c *clientStream, f Freshness) {
	target, client := s.choose(c, f)
	if client != nil {
		client.Reopen(target)
	}
}

func (s *Subscriber) choose(c *clientStream, f Freshness) (ReplicaID, *Client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	c.observed = &Observed{Freshness: f, At: now}
	var all []Observed
	for _, o := range s.streams {
		if o.observed != nil {
			seen := *o.observed
			seen.Subscribed = o == s.holder
			all = append(all, seen)
		}
	}
	target, ok := s.chooser.Choose(now, all)
	if !ok {
		return ReplicaID{}, nil
	}
	return target, s.holder.client
}

// received is called after an Update on a stream.
func (s *Subscriber) received(c *clientStream, complete bool) {
	if !complete {
		c.ackDue()
		return
	}
	s.handOver(c, false)
}

// handOver calls the sink if the copy of c is complete and has changed, and acknowledges.
// Unless it is final, it keeps to the interval: it sets a timer if it is too early.
func (s *Subscriber) handOver(c *clientStream, final bool) {
	s.deliver.Lock()
	defer s.deliver.Unlock()
	changes, ok := s.take(c, final)
	if !ok {
		return
	}
	start := time.Now()
	d, changed := s.delta(changes)
	s.budget.work.charge(time.Now(), time.Since(start).Seconds())
	if changed {
		if s.last = time.Now(); s.first.IsZero() {
			s.first = s.last
		}
		s.sink.Catalog(s.link, d)
	}
	c.ackDue()
	c.wake()
}

// changes is what a copy has received since it was taken last.
type changes struct {
	upserts []*received
	removed []string
	version Version
}

// take returns what to hand over now. The caller holds deliver.
func (s *Subscriber) take(c *clientStream, final bool) (changes, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.holder != c || !s.copy.pending {
		return changes{}, false
	}
	if wait := s.interval - time.Since(s.last); wait > 0 && !s.last.IsZero() && !final {
		if s.timer == nil {
			s.timer = time.AfterFunc(wait, func() { s.handOver(c, false) })
		}
		return changes{}, false
	}
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	return s.copy.take(s.handed), true
}

// delta validates what has changed and records it as handed over. It returns false if
// nothing has changed. The caller holds deliver.
func (s *Subscriber) delta(c changes) (Delta, bool) {
	d := Delta{Version: c.version}
	for _, r := range c.upserts {
		raw := r.raw
		r.raw = nil // the copy needs only the hash from here on
		if hash, known := s.handed[r.key]; known && hash == r.hash {
			continue
		}
		s.handed[r.key] = r.hash
		message, err := unmarshalService(raw)
		if err != nil {
			continue // cannot be: apply has decoded it
		}
		key := parseKey(r.key)
		valid, problems := decode(message).Validate(s.trustDomain)
		if len(problems) > 0 {
			if d.Problems == nil {
				d.Problems = map[catalog.Key][]catalog.Problem{}
			}
			d.Problems[key] = problems
		}
		if valid.IsZero() {
			d.Removed = append(d.Removed, key)
		} else {
			d.Upserts = append(d.Upserts, valid)
		}
	}
	for _, key := range c.removed {
		if _, known := s.handed[key]; known {
			delete(s.handed, key)
			d.Removed = append(d.Removed, parseKey(key))
		}
	}
	slices.SortFunc(d.Removed, catalog.Key.Compare)
	changed := len(d.Upserts) > 0 || len(d.Removed) > 0 || s.first.IsZero() || c.version != s.version
	s.version = c.version
	return d, changed
}

// parseKey splits a key of the wire. checkKey has seen to it that there is one slash.
func parseKey(s string) catalog.Key {
	namespace, name, _ := strings.Cut(s, "/")
	return catalog.Key{Namespace: namespace, Name: name}
}

// errSuperseded ends a stream whose subscription another one has taken over.
var errSuperseded = errors.New("another stream has the subscription")

// catalogCopy is the copy of a peer's catalog that one stream receives. Subscriber.mu
// guards it.
type catalogCopy struct {
	s        *Subscriber
	bounds   Bounds
	receiver *delta.Receiver[*received]
	version  Version
	pending  bool // complete, and something was received since the last take
	taken    bool
}

// received is one Service. raw is nil once it was handed over.
type received struct {
	key  string
	raw  []byte
	hash uint64
	size int
}

func (s *Subscriber) newCopy() *catalogCopy {
	bounds := boundsOf(s.board.Hello())
	return &catalogCopy{
		s:      s,
		bounds: bounds,
		// A change of several Updates may name additions before the removals that make
		// room for them, so the bounds are exact only when the copy is complete.
		receiver: delta.NewReceiver(
			func(r *received) string { return r.key },
			func(r *received) int { return r.size },
			delta.Limits{Entries: 2 * bounds.Services, Bytes: 2 * bounds.Bytes}),
	}
}

// apply implements updateReceiver.
func (c *catalogCopy) apply(u *Update) error {
	batch := delta.Batch[*received]{Removed: u.GetRemoved(), Whole: u.GetComplete(), Reset: u.GetReset_()}
	for _, raw := range u.GetUpserts() {
		m, err := unmarshalService(raw)
		if err != nil {
			return err
		}
		key := m.GetNamespace() + "/" + m.GetName()
		if len(raw) > c.bounds.ServiceBytes {
			return tooLarge(key, len(raw), c.bounds.ServiceBytes)
		}
		batch.Upserts = append(batch.Upserts, &received{key, raw, maphash.Bytes(c.s.seed, raw), len(raw)})
	}
	version, err := parseVersion(u.GetVersion())
	if err != nil {
		return err
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.s.copy != c {
		return errSuperseded
	}
	c.pending = false // also after an error: then nothing of the copy is handed over
	if err := c.receiver.Apply(batch); err != nil || !batch.Whole {
		return err
	}
	if n := c.receiver.Len(); n > c.bounds.Services {
		return fmt.Errorf("%w: %d Services, more than %d", delta.ErrTooMany, n, c.bounds.Services)
	}
	if n := c.receiver.Bytes(); n > c.bounds.Bytes {
		return fmt.Errorf("%w: %d bytes, more than %d", delta.ErrTooLarge, n, c.bounds.Bytes)
	}
	c.pending, c.version = true, version
	return nil
}

// take returns what has changed since the last take; the first time, what differs from
// handed.
func (c *catalogCopy) take(handed map[string]uint64) changes {
	d, _ := c.receiver.Take()
	if !c.taken {
		for key := range handed {
			if _, is := c.receiver.Get(key); !is {
				d.Removed = append(d.Removed, key)
			}
		}
	}
	c.pending, c.taken = false, true
	return changes{d.Upserts, d.Removed, c.version}
}

// channelLock is a lock that may be held for long, as while a Sink works. Unlike a mutex
// it lets tests in fake time wait for its holder. Its capacity is 1.
type channelLock chan struct{}

// Lock implements sync.Locker.
func (l channelLock) Lock() { l <- struct{}{} }

// Unlock implements sync.Locker.
func (l channelLock) Unlock() { <-l }
