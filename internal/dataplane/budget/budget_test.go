package budget

import (
	"math/rand/v2"
	"strconv"
	"testing"
)

func fill(s *Shares, key string, most int) int {
	n := 0
	for n < most && s.Acquire(key) {
		n++
	}
	return n
}

func TestShares(t *testing.T) {
	type asks struct {
		key        string
		want, gets int
	}
	cases := map[string]struct {
		why  string
		asks []asks
	}{
		"alone":              {"half of it is enough for anybody", []asks{{"a", 800, 400}}},
		"two":                {"they stop where a quarter is free", []asks{{"a", 800, 400}, {"b", 800, 200}}},
		"one after the many": {"whoever has little gets in still", []asks{{"a", 800, 400}, {"b", 800, 200}, {"c", 800, 100}, {"d", 50, 50}, {"e", 800, 50}}},
		"nobody starves by one": {"one key alone never fills it",
			[]asks{{"a", 800, 400}, {"b", 100, 100}, {"c", 100, 100}, {"d", 100, 100}, {"e", 100, 100}, {"f", 100, 0}}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			s := New(800)
			for _, ask := range tc.asks {
				if got := fill(s, ask.key, ask.want); got != ask.gets {
					t.Errorf("%s: %s asks for %d and gets %d, want %d", tc.why, ask.key, ask.want, got, ask.gets)
				}
				if got := s.Count(ask.key); got != ask.gets {
					t.Errorf("%s has %d, want %d", ask.key, got, ask.gets)
				}
			}
		})
	}
}

func TestSharesWithLimit(t *testing.T) {
	for _, tc := range []struct {
		why          string
		perKey, gets int
	}{
		{"less than the assured share", 50, 50},
		{"more than half", 500, 500},
		{"a quarter stays free for others", 800, 600},
		{"none", 0, 0},
	} {
		s := NewWithLimit(800, tc.perKey)
		if got := fill(s, "a", 800); got != tc.gets || s.Limit("a") != tc.gets {
			t.Errorf("%s: a key gets %d, and its limit is %d, want %d", tc.why, got, s.Limit("a"), tc.gets)
		}
	}
}

// Whatever happens, the rules of the package hold, and what is told is what is given.
func TestSharesKeepInvariants(t *testing.T) {
	const total = 64
	s := New(total)
	has := map[string]int{}
	used := 0
	for range 50_000 {
		key := strconv.Itoa(rand.IntN(12))
		if has[key] > 0 && rand.IntN(5) < 2 {
			s.Release(key)
			has[key]--
			used--
			continue
		}
		limit := s.Limit(key)
		in := s.Acquire(key)
		switch {
		case in != (has[key] < limit):
			t.Fatalf("told %d with %d in, and it got in: %v", limit, has[key], in)
		case !in && has[key] < assuredShare(total) && used < total:
			t.Fatalf("refused with %d of %d used and %d of its own", used, total, has[key])
		case in:
			has[key]++
			used++
		}
		if used > total || has[key] > maxShare(total) {
			t.Fatalf("%d in, %d of one", used, has[key])
		}
	}
	for key, n := range has {
		for range n {
			s.Release(key)
		}
	}
	if s.used != 0 || len(s.counts) != 0 {
		t.Errorf("%d are left, of %d keys", s.used, len(s.counts))
	}
}
