package budget

import (
	"math"
	"math/rand/v2"
	"strconv"
	"testing"
)

func TestBytes(t *testing.T) {
	type asks struct {
		link       string
		want, gets int
	}
	for name, tc := range map[string]struct {
		why  string
		asks []asks
	}{
		"alone":       {"half of it is enough for one link", []asks{{"a", 800, 400}}},
		"after one":   {"each other link still gets its quarter", []asks{{"a", 800, 400}, {"b", 800, 200}, {"c", 800, 200}, {"d", 10, 0}}},
		"before many": {"none gets more while others need it", []asks{{"a", 200, 200}, {"b", 200, 200}, {"a", 10, 0}, {"c", 800, 200}, {"d", 800, 200}}},
	} {
		b := NewBytes(800)
		for _, ask := range tc.asks {
			n := 0
			for n < ask.want && b.Reserve(ask.link, 10) {
				n += 10
			}
			if n != ask.gets {
				t.Errorf("%s: %s asks for %d and gets %d, want %d: %s", name, ask.link, ask.want, n, ask.gets, tc.why)
			}
		}
	}
}

func TestBytesKeepsInvariants(t *testing.T) {
	const total = 1 << 16
	b := NewBytes(total)
	has := map[string]int{}
	used := 0
	for range 20_000 {
		link, n := strconv.Itoa(rand.IntN(8)), rand.IntN(4096)
		if rand.IntN(2) == 0 {
			n = min(n, has[link])
			b.Release(link, n)
			has[link] -= n
			used -= n
			continue
		}
		ok := b.Reserve(link, n)
		if assured := has[link]+n <= total/4 && used+n <= total; assured && !ok {
			t.Fatalf("%d bytes were refused with %d of its own and %d in use", n, has[link], used)
		}
		if ok {
			has[link] += n
			used += n
		}
		if used > total || has[link] > total/2 || b.Used() != used {
			t.Fatalf("%d in use, %d of one link, and Used returns %d", used, has[link], b.Used())
		}
	}
	for link, n := range has {
		b.Release(link, n)
	}
	if b.used != 0 || len(b.links) != 0 {
		t.Errorf("%d bytes of %d links are left", b.used, len(b.links))
	}
}

func TestWindowBytes(t *testing.T) {
	for _, tc := range []struct {
		why     string
		process uint64
		machine uint64
		want    int
	}{
		{"no limit", math.MaxUint64, 16 << 30, 512 << 20},
		{"a limit of the process", 460 << 20, 16 << 30, 115 << 20},
		{"a small machine", 460 << 20, 1 << 30, 32 << 20},
	} {
		if got := windowBytes(tc.process, tc.machine); got != tc.want {
			t.Errorf("%s: %d, want %d", tc.why, got, tc.want)
		}
	}
	if WindowBytes() <= 0 {
		t.Error("this process may have no windows")
	}
}
