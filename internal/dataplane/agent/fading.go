package agent

import (
	"container/list"
	"sync"
	"time"
)

// fading is a map whose entries expire a fixed time after their last put. When it is
// full, it evicts the entry that was put least recently. Make it with newFading.
type fading[K comparable, V any] struct {
	most int
	age  time.Duration

	mu      sync.Mutex // guards what follows
	entries map[K]*list.Element
	oldest  list.List // of *faded[K, V], in the order of their last put
}

type faded[K comparable, V any] struct {
	key   K
	value V
	put   time.Time
}

func newFading[K comparable, V any](most int, age time.Duration) *fading[K, V] {
	return &fading[K, V]{most: most, age: age, entries: make(map[K]*list.Element)}
}

// get returns what was put within the time given, which is capped by the map's own.
func (f *fading[K, V]) get(key K, within time.Duration) (V, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if e := f.entries[key]; e != nil {
		if was := e.Value.(*faded[K, V]); time.Since(was.put) < min(within, f.age) {
			return was.value, true
		}
	}
	var none V
	return none, false
}

// put puts what change makes of the value that is there, or of none if its age is over, or
// leaves all as it is if change says so.
func (f *fading[K, V]) put(key K, change func(was V, age time.Duration, there bool) (V, bool)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	was := faded[K, V]{put: now}
	e, there := f.entries[key]
	if there = there && now.Sub(e.Value.(*faded[K, V]).put) < f.age; there {
		was = *e.Value.(*faded[K, V])
	}
	value, changed := change(was.value, now.Sub(was.put), there)
	if !changed {
		return
	}
	f.remove(key)
	f.entries[key] = f.oldest.PushBack(&faded[K, V]{key, value, now})
	for f.oldest.Len() > f.most || now.Sub(f.first().put) >= f.age {
		f.remove(f.first().key)
	}
}

// drop forgets.
func (f *fading[K, V]) drop(key K) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.remove(key)
}

func (f *fading[K, V]) first() *faded[K, V] { return f.oldest.Front().Value.(*faded[K, V]) }

func (f *fading[K, V]) remove(key K) {
	if e := f.entries[key]; e != nil {
		f.oldest.Remove(e)
		delete(f.entries, key)
	}
}
