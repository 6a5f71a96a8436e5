package budget

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/causeway-mesh/causeway/internal/bubble"
)

func TestRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRates[string](10, 3)
		take := func(key string) (n int) {
			for r.Allow(key) {
				n++
			}
			return n
		}
		if a, b := take("a"), take("b"); a != 3 || b != 3 {
			t.Errorf("%d and %d tokens, want a burst for each", a, b)
		}
		bubble.Pass(200 * time.Millisecond)
		if n := take("a"); n != 2 {
			t.Errorf("%d tokens after 200 ms, want 2", n)
		}
		r.Refund("a")
		if n := take("a"); n != 1 {
			t.Errorf("%d tokens, want the one that was given back", n)
		}
		bubble.Pass(time.Hour)
		r.Refund("a")
		if n := take("a"); n > 4 {
			t.Errorf("%d tokens, want a refund to change nothing much in a full bucket", n)
		}
		for key := range 3 * maxBuckets {
			r.Allow(string(rune(key)))
		}
		if n := r.buckets.Len(); n != maxBuckets {
			t.Errorf("%d buckets are kept, want %d", n, maxBuckets)
		}
	})
}

func TestMap(t *testing.T) {
	m := NewMap[string, int](2)
	m.Put("a", 1)
	m.Put("b", 2)
	m.Put("a", 3) // now b is the oldest
	m.Put("c", 4)
	if _, ok := m.Get("b"); ok || m.Len() != 2 {
		t.Errorf("%d entries, the least recently put one among them: %v", m.Len(), ok)
	}
	if v, ok := m.Get("a"); v != 3 || !ok {
		t.Errorf("a is %d, %v", v, ok)
	}
	m.Delete("a")
	m.Delete("a")
	if v, ok := m.Get("a"); v != 0 || ok || m.Len() != 1 || len(m.entries) != 1 {
		t.Errorf("a deleted entry is %d, %v", v, ok)
	}
}
