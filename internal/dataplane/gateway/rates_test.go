package gateway

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/causeway-mesh/causeway/internal/bubble"
)

func TestRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRates[string](10, 3)
		take := func(key string) (n int) {
			for r.take(key) {
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
		r.refund("a")
		if n := take("a"); n != 1 {
			t.Errorf("%d tokens, want the one that was given back", n)
		}
		bubble.Pass(time.Hour)
		r.refund("a")
		if n := take("a"); n > 4 {
			t.Errorf("%d tokens, want a refund to change nothing much in a full bucket", n)
		}
		for key := range 3 * maxBuckets {
			r.take(string(rune(key)))
		}
		if n := r.buckets.len(); n != maxBuckets {
			t.Errorf("%d buckets are kept, want %d", n, maxBuckets)
		}
	})
}

func TestBoundedMap(t *testing.T) {
	m := newBoundedMap[string, int](2)
	m.put("a", 1)
	m.put("b", 2)
	m.put("a", 3) // now b is the oldest
	m.put("c", 4)
	if _, ok := m.get("b"); ok || m.len() != 2 {
		t.Errorf("%d entries, the least recently put one among them: %v", m.len(), ok)
	}
	if v, ok := m.get("a"); v != 3 || !ok {
		t.Errorf("a is %d, %v", v, ok)
	}
	m.delete("a")
	m.delete("a")
	if v, ok := m.get("a"); v != 0 || ok || m.len() != 1 || len(m.entries) != 1 {
		t.Errorf("a deleted entry is %d, %v", v, ok)
	}
}
