package delta

import "sync"

// Board holds the newest value for each of its readers, and wakes them when it
// changes. The zero value is an empty board. It is safe for concurrent use.
type Board[K comparable, V any] struct {
	mu     sync.Mutex // guards all below
	posted map[K]posted[V]
	added  chan struct{} // closed when a key appears; nil until asked for
}

type posted[V any] struct {
	value   V
	changed chan struct{} // closed when the value is replaced or withdrawn
}

// Post makes value the newest of key. The caller changes nothing in it afterwards.
func (b *Board[K, V]) Post(key K, value V) {
	b.mu.Lock()
	defer b.mu.Unlock()
	old, had := b.posted[key]
	if b.posted == nil {
		b.posted = map[K]posted[V]{}
	}
	b.posted[key] = posted[V]{value: value, changed: make(chan struct{})}
	switch {
	case had:
		close(old.changed)
	case b.added != nil:
		close(b.added)
		b.added = nil
	}
}

// Withdraw forgets key.
func (b *Board[K, V]) Withdraw(key K) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if old, had := b.posted[key]; had {
		delete(b.posted, key)
		close(old.changed)
	}
}

// Read returns the newest value of key, whether there is one, and a channel that
// is closed when asking again may give another answer.
func (b *Board[K, V]) Read(key K) (value V, ok bool, changed <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if p, ok := b.posted[key]; ok {
		return p.value, true, p.changed
	}
	if b.added == nil {
		b.added = make(chan struct{})
	}
	return value, false, b.added
}
