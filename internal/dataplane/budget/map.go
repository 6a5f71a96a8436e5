package budget

import "container/list"

// Map is a map of at most max entries. When it is full, the entry that was put
// least recently makes room. Every operation takes constant time. It is not safe for
// concurrent use.
type Map[K comparable, V any] struct {
	max     int
	order   list.List // of *mapEntry[K, V], least recently put first
	entries map[K]*list.Element
}

type mapEntry[K comparable, V any] struct {
	key   K
	value V
}

// NewMap returns an empty map of at most max entries.
func NewMap[K comparable, V any](max int) *Map[K, V] {
	return &Map[K, V]{max: max, entries: make(map[K]*list.Element)}
}

// Get returns the value of key.
func (m *Map[K, V]) Get(key K) (value V, ok bool) {
	e, ok := m.entries[key]
	if !ok {
		return value, false
	}
	return e.Value.(*mapEntry[K, V]).value, true
}

// Put sets the value of key, and removes the entry that was put least recently if that is
// one too many.
func (m *Map[K, V]) Put(key K, value V) {
	if e, ok := m.entries[key]; ok {
		e.Value.(*mapEntry[K, V]).value = value
		m.order.MoveToBack(e)
		return
	}
	if m.order.Len() >= m.max {
		m.Delete(m.order.Front().Value.(*mapEntry[K, V]).key)
	}
	m.entries[key] = m.order.PushBack(&mapEntry[K, V]{key, value})
}

// Delete removes an entry, if there is one.
func (m *Map[K, V]) Delete(key K) {
	if e, ok := m.entries[key]; ok {
		m.order.Remove(e)
		delete(m.entries, key)
	}
}

// Len returns how many entries there are.
func (m *Map[K, V]) Len() int { return m.order.Len() }
