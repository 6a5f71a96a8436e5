package delta

import (
	"errors"
	"fmt"
	"maps"
	"slices"
)

// What a Receiver refuses. Its errors wrap one of these.
var (
	// ErrDuplicate reports a batch that names a key twice.
	ErrDuplicate = errors.New("the key appears twice in one update")
	// ErrUnknownKey reports the removal of a key that is not held.
	ErrUnknownKey = errors.New("the key was removed but never sent")
	// ErrTooMany reports more keys than Limits allows.
	ErrTooMany = errors.New("too many entries")
	// ErrTooLarge reports more bytes than Limits allows.
	ErrTooLarge = errors.New("too many bytes")
)

// Limits bound what a Receiver holds. Zero means no bound.
type Limits struct {
	// Entries is the largest number of keys.
	Entries int
	// Bytes is the largest sum of the values' sizes and their keys'.
	Bytes int
}

// Delta is the difference between two whole states.
type Delta[V any] struct {
	// Upserts are values that are new or were sent again, by rising key.
	Upserts []V
	// Removed are keys that are gone, rising.
	Removed []string
}

// Receiver applies batches to a copy of what a Reader sends. Make it with NewReceiver.
// After an error it is of no further use. It is not safe for concurrent use.
type Receiver[V any] struct {
	key    func(V) string
	size   func(V) int
	limits Limits
	held   map[string]held[V]
	bytes  int
	whole  bool
	taken  bool            // Take has returned a Delta
	dirty  map[string]bool // keys changed since Take; the value: held at that time
	// afterReset is set from a Reset to the next Whole batch.
	afterReset bool
}

// held is a value and what it counts towards Limits.Bytes.
type held[V any] struct {
	value V
	size  int
}

// NewReceiver returns a Receiver that holds nothing. key names a value, and size
// returns how many bytes it takes in a message.
func NewReceiver[V any](key func(V) string, size func(V) int, limits Limits) *Receiver[V] {
	return &Receiver[V]{
		key:    key,
		size:   size,
		limits: limits,
		held:   map[string]held[V]{},
		dirty:  map[string]bool{},
	}
}

// Apply takes b in. Its errors name the key and wrap ErrDuplicate, ErrUnknownKey,
// ErrTooMany or ErrTooLarge. Between a Reset and the next Whole batch, the removal of
// an unknown key is not an error.
func (r *Receiver[V]) Apply(b Batch[V]) error {
	if b.Reset {
		for key := range r.held {
			r.touch(key)
		}
		clear(r.held)
		r.bytes, r.afterReset = 0, true
	}
	named := make(map[string]struct{}, len(b.Upserts)+len(b.Removed))
	once := func(key string) error {
		if _, dup := named[key]; dup {
			return fmt.Errorf("%q: %w", key, ErrDuplicate)
		}
		named[key] = struct{}{}
		return nil
	}
	for _, key := range b.Removed {
		if err := once(key); err != nil {
			return err
		}
		old, known := r.held[key]
		if !known && !r.afterReset {
			return fmt.Errorf("%q: %w", key, ErrUnknownKey)
		}
		r.touch(key)
		r.bytes -= old.size
		delete(r.held, key)
	}
	for _, v := range b.Upserts {
		key := r.key(v)
		if err := once(key); err != nil {
			return err
		}
		if err := r.put(key, v); err != nil {
			return err
		}
	}
	r.whole = b.Whole
	r.afterReset = r.afterReset && !b.Whole
	return nil
}

// put holds v, within the limits.
func (r *Receiver[V]) put(key string, v V) error {
	r.touch(key)
	size := r.size(v) + len(key)
	r.bytes += size - r.held[key].size
	r.held[key] = held[V]{value: v, size: size}
	if n := r.limits.Entries; n > 0 && len(r.held) > n {
		return fmt.Errorf("%q is past %d entries: %w", key, n, ErrTooMany)
	}
	if n := r.limits.Bytes; n > 0 && r.bytes > n {
		return fmt.Errorf("%q is past %d bytes: %w", key, n, ErrTooLarge)
	}
	return nil
}

// touch records that key is about to change.
func (r *Receiver[V]) touch(key string) {
	if _, known := r.dirty[key]; !known {
		_, had := r.held[key]
		r.dirty[key] = had
	}
}

// Take returns what changed since the last Take, the first time everything. It returns
// false while the copy is not whole, and when nothing changed. A Reset does not show
// in it, except as the differences that it made.
func (r *Receiver[V]) Take() (Delta[V], bool) {
	if !r.whole || r.taken && len(r.dirty) == 0 {
		return Delta[V]{}, false
	}
	var d Delta[V]
	for _, key := range slices.Sorted(maps.Keys(r.dirty)) {
		if now, is := r.held[key]; is {
			d.Upserts = append(d.Upserts, now.value)
		} else if r.dirty[key] {
			d.Removed = append(d.Removed, key)
		}
	}
	r.dirty = map[string]bool{} // a cleared map would keep the size of the snapshot
	first := !r.taken
	r.taken = true
	return d, first || len(d.Upserts) > 0 || len(d.Removed) > 0
}

// Whole reports whether the copy is whole: the last batch said so.
func (r *Receiver[V]) Whole() bool { return r.whole }

// Len returns the number of keys held.
func (r *Receiver[V]) Len() int { return len(r.held) }

// Bytes returns what counts towards Limits.Bytes.
func (r *Receiver[V]) Bytes() int { return r.bytes }

// Get returns the value held of key, and whether there is one.
func (r *Receiver[V]) Get(key string) (V, bool) {
	h, is := r.held[key]
	return h.value, is
}
