package gateway

import "container/list"

// boundedMap is a map of at most max entries. When it is full, the entry that was put
// least recently makes room. Every operation takes constant time. It is not safe for
// concurrent use.
type boundedMap[K comparable, V any] struct {
	max     int
	order   list.List // of *boundedEntry[K, V], least recently put first
	entries map[K]*list.Element
}

type boundedEntry[K comparable, V any] struct {
	key   K
	value V
}

func newBoundedMap[K comparable, V any](max int) *boundedMap[K, V] {
	return &boundedMap[K, V]{max: max, entries: make(map[K]*list.Element)}
}

func (m *boundedMap[K, V]) get(key K) (value V, ok bool) {
	e, ok := m.entries[key]
	if !ok {
		return value, false
	}
	return e.Value.(*boundedEntry[K, V]).value, true
}

func (m *boundedMap[K, V]) put(key K, value V) {
	if e, ok := m.entries[key]; ok {
		e.Value.(*boundedEntry[K, V]).value = value
		m.order.MoveToBack(e)
		return
	}
	if m.order.Len() >= m.max {
		m.delete(m.order.Front().Value.(*boundedEntry[K, V]).key)
	}
	m.entries[key] = m.order.PushBack(&boundedEntry[K, V]{key, value})
}

func (m *boundedMap[K, V]) delete(key K) {
	if e, ok := m.entries[key]; ok {
		m.order.Remove(e)
		delete(m.entries, key)
	}
}

func (m *boundedMap[K, V]) len() int { return m.order.Len() }
