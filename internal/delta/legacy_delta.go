package delta

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
)

// Kind tells how values are named, measured and compared. All three are required
// and must be safe for concurrent use.
type Kind[V comparable] struct {
	// Key names a value. It is the value's key in every view.
	Key func(V) string
	// Size is what a value takes in a message, in bytes.
	Size func(V) int
	// Equal reports that a reader who holds the one needs not be sent the other.
	// It is asked only for values that are not == already.
	Equal func(a, b V) bool
}

// Chunk is one message's worth of changes.
type Chunk[V comparable] struct {
	// Upserts are values new to the reader or changed, by rising key.
	Upserts []V
	// Removed are keys to forget, rising.
	Removed []string
	// Whole says that the reader now holds one whole view.
	Whole bool
}

// Sender turns views into chunks for one reader. Make it with NewSender. It is
// not safe for concurrent use.
type Sender[V comparable] struct {
	kind  Kind[V]
	limit int

	newest  map[string]V // offered, not yet compared; nil: nothing new
	sent    map[string]V // what the reader holds after the last chunk
	changed []V          // rest of the view being told
	removed []string     // likewise
	begun   bool         // a view is being told, or was
	whole   bool         // the last chunk was
}

// NewSender returns a Sender whose chunks hold at most limit bytes of values and
// keys; a single value above limit gets a chunk of its own.
func NewSender[V comparable](kind Kind[V], limit int) *Sender[V] {
	return &Sender[V]{kind: kind, limit: limit, sent: map[string]V{}}
}

// Offer makes view the one to be told next, in place of any that was offered and
// not begun. A nil view is an empty one.
func (s *Sender[V]) Offer(view map[string]V) {
	if view == nil {
		view = map[string]V{}
	}
	s.newest = view
}

// Whole reports that the reader, with all chunks given out so far, holds a whole
// view.
func (s *Sender[V]) Whole() bool { return s.whole }

// Next returns the next chunk. It returns false when there is nothing to tell.
func (s *Sender[V]) Next() (Chunk[V], bool) {
	if s.told() {
		if s.newest == nil {
			return Chunk[V]{}, false
		}
		first := !s.begun
		s.begin()
		if s.told() && !first {
			return Chunk[V]{}, false
		}
	}
	c := s.take()
	c.Whole = s.told()
	s.whole = c.Whole
	return c, true
}

// told reports that nothing of the view that was begun is left to tell.
func (s *Sender[V]) told() bool { return len(s.changed) == 0 && len(s.removed) == 0 }

// begin compares the newest view with what was sent.
func (s *Sender[V]) begin() {
	view := s.newest
	s.newest, s.begun = nil, true
	for key, v := range view {
		old, held := s.sent[key]
		switch {
		case held && old == v:
		case held && s.kind.Equal(old, v):
			s.sent[key] = v // the next comparison is of references only
		default:
			s.changed = append(s.changed, v)
		}
	}
	for key := range s.sent {
		if _, stays := view[key]; !stays {
			s.removed = append(s.removed, key)
		}
	}
	slices.SortFunc(s.changed, func(a, b V) int { return cmp.Compare(s.kind.Key(a), s.kind.Key(b)) })
	slices.Sort(s.removed)
}

// take moves one chunk from the list of changes to what was sent.
func (s *Sender[V]) take() (c Chunk[V]) {
	room := s.limit
	fits := func(size int) bool {
		first := room == s.limit
		room -= size + overhead
		return first || room >= 0
	}
	n := 0
	for n < len(s.changed) && fits(s.kind.Size(s.changed[n])) {
		s.sent[s.kind.Key(s.changed[n])] = s.changed[n]
		n++
	}
	c.Upserts, s.changed = s.changed[:n:n], s.changed[n:]
	if len(s.changed) > 0 {
		return c
	}
	n = 0
	for n < len(s.removed) && fits(len(s.removed[n])) {
		delete(s.sent, s.removed[n])
		n++
	}
	c.Removed, s.removed = s.removed[:n:n], s.removed[n:]
	if s.told() {
		s.changed, s.removed = nil, nil // let go of the lists
	}
	return c
}

// ViewReceiver turns chunks back into views. Make it with NewViewReceiver. After an
// error it is of no further use. It is not safe for concurrent use.
type ViewReceiver[V comparable] struct {
	kind   Kind[V]
	limits Limits
	held   map[string]V
	bytes  int
	given  bool // a view was handed out
	stale  bool // held differs from the view handed out last
}

// NewViewReceiver returns a Receiver that holds nothing.
func NewViewReceiver[V comparable](kind Kind[V], limits Limits) *ViewReceiver[V] {
	return &ViewReceiver[V]{kind: kind, limits: limits, held: map[string]V{}}
}

// Apply takes a chunk and returns the view that is whole with it; nil if none is
// or nothing changed. Its errors name the key and wrap ErrDuplicate,
// ErrUnknownKey, ErrTooMany or ErrTooLarge.
func (r *ViewReceiver[V]) Apply(c Chunk[V]) (map[string]V, error) {
	seen := make(map[string]struct{}, len(c.Upserts)+len(c.Removed))
	once := func(key string) error {
		if _, dup := seen[key]; dup {
			return fmt.Errorf("%q: %w", key, ErrDuplicate)
		}
		seen[key] = struct{}{}
		return nil
	}
	for _, key := range c.Removed {
		if err := once(key); err != nil {
			return nil, err
		}
		old, held := r.held[key]
		if !held {
			return nil, fmt.Errorf("%q: %w", key, ErrUnknownKey)
		}
		r.bytes -= r.kind.Size(old) + len(key)
		delete(r.held, key)
	}
	for _, v := range c.Upserts {
		if err := once(r.kind.Key(v)); err != nil {
			return nil, err
		}
		if err := r.put(v); err != nil {
			return nil, err
		}
	}
	r.stale = r.stale || len(seen) > 0
	if !c.Whole || r.given && !r.stale {
		return nil, nil
	}
	r.given, r.stale = true, false
	return maps.Clone(r.held), nil
}

// put holds v, within the limits.
func (r *ViewReceiver[V]) put(v V) error {
	key := r.kind.Key(v)
	if old, held := r.held[key]; held {
		r.bytes -= r.kind.Size(old) + len(key)
	}
	r.held[key] = v
	r.bytes += r.kind.Size(v) + len(key)
	if n := r.limits.Entries; n > 0 && len(r.held) > n {
		return fmt.Errorf("%q is past %d entries: %w", key, n, ErrTooMany)
	}
	if n := r.limits.Bytes; n > 0 && r.bytes > n {
		return fmt.Errorf("%q is past %d bytes: %w", key, n, ErrTooLarge)
	}
	return nil
}
