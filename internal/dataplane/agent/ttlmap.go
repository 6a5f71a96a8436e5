package agent

import (
	"container/list"
	"sync"
	"time"
)

// ttlMap is a map whose entries expire a fixed time after their last update. When it is
// full, it evicts the entry that was updated least recently. Make it with newTTLMap.
type ttlMap[K comparable, V any] struct {
	maxEntries int
	ttl        time.Duration

	mu      sync.Mutex // guards what follows
	entries map[K]*list.Element
	oldest  list.List // of *ttlEntry[K, V], in the order of their last update
}

type ttlEntry[K comparable, V any] struct {
	key       K
	value     V
	updatedAt time.Time
}

func newTTLMap[K comparable, V any](most int, age time.Duration) *ttlMap[K, V] {
	return &ttlMap[K, V]{maxEntries: most, ttl: age, entries: make(map[K]*list.Element)}
}

// get returns the value of key if it was updated within the time given, and within the
// map's own limit.
func (m *ttlMap[K, V]) get(key K, within time.Duration) (V, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.entries[key]; e != nil {
		if was := e.Value.(*ttlEntry[K, V]); time.Since(was.updatedAt) < min(within, m.ttl) {
			return was.value, true
		}
	}
	var none V
	return none, false
}

// update stores the value that change returns. change gets the current value and its
// age, or the zero value if there is none. If change returns false, the entry stays as
// it is.
func (m *ttlMap[K, V]) update(key K, change func(was V, age time.Duration, there bool) (V, bool)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	was := ttlEntry[K, V]{updatedAt: now}
	e, there := m.entries[key]
	if there = there && now.Sub(e.Value.(*ttlEntry[K, V]).updatedAt) < m.ttl; there {
		was = *e.Value.(*ttlEntry[K, V])
	}
	value, changed := change(was.value, now.Sub(was.updatedAt), there)
	if !changed {
		return
	}
	m.remove(key)
	m.entries[key] = m.oldest.PushBack(&ttlEntry[K, V]{key, value, now})
	for m.oldest.Len() > m.maxEntries || now.Sub(m.first().updatedAt) >= m.ttl {
		m.remove(m.first().key)
	}
}

// delete removes an entry.
func (m *ttlMap[K, V]) delete(key K) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.remove(key)
}

func (m *ttlMap[K, V]) first() *ttlEntry[K, V] { return m.oldest.Front().Value.(*ttlEntry[K, V]) }

func (m *ttlMap[K, V]) remove(key K) {
	if e := m.entries[key]; e != nil {
		m.oldest.Remove(e)
		delete(m.entries, key)
	}
}
