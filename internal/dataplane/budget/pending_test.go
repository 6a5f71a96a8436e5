package budget

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestPending(t *testing.T) {
	cases := map[string]struct {
		why  string
		come string // the source of each arrival
		want string // by arrival: - stays, s evicted for its source, a for all
	}{
		"room":    {why: "none is evicted before the pool is full", come: "1 1 2 2", want: "----"},
		"source":  {why: "a source evicts its own oldest", come: "1 2 1 1 1", want: "s-s--"},
		"all":     {why: "the oldest of all makes room", come: "1 1 2 2 3 4", want: "aa----"},
		"network": {why: "an IPv6 host has a /64", come: "::1 ::2 ::3", want: "s--"},
		"networks": {
			why:  "neighboring networks of an IPv6 provider are sources of their own",
			come: ":1::1 :1::2 :2::1 :1::3 :3::1 :4::1", want: "sa----",
		},
		"one wave": {why: "the pool stays full, not empty", come: "1 2 3 4 5 6 7 8", want: "aaaa----"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			p := NewPending(4, 2)
			var all []*Entry
			evicted := map[int]bool{}
			for i, word := range strings.Fields(tc.come) {
				address := "192.0.2." + word
				if strings.HasPrefix(word, ":") {
					address = "2001:db8:0" + word
				}
				source := SourceOf(netip.MustParseAddr(address))
				all = append(all, p.Add(source, func() { evicted[i] = true }))
			}
			if n := p.Count(); n != strings.Count(tc.want, "-") {
				t.Errorf("%s: %d are pending, want %d", tc.why, n, strings.Count(tc.want, "-"))
			}
			var got strings.Builder
			for i, h := range all {
				reason := p.Remove(h)
				got.WriteString(map[EvictedBy]string{NotEvicted: "-", BySource: "s", ByTotal: "a"}[reason])
				if evicted[i] != (reason != NotEvicted) {
					t.Errorf("%s: arrival %d was evicted: %v", tc.why, i, evicted[i])
				}
			}
			if got.String() != tc.want {
				t.Errorf("%s: %s, want %s", tc.why, &got, tc.want)
			}
			for _, h := range slices.Concat(all, all) {
				p.Remove(h)
			}
			if p.Count() != 0 || len(p.bySource) != 0 {
				t.Errorf("%s: %d are pending, of %d sources", tc.why, p.Count(), len(p.bySource))
			}
		})
	}
}

// A connection may be the one too many.
func TestPendingEvictsNewConnection(t *testing.T) {
	p := NewPending(1, 0)
	closed := false
	h := p.Add(netip.Prefix{}, func() { closed = true })
	if reason := p.Remove(h); !closed || reason != BySource {
		t.Errorf("closed: %v, evicted by %d", closed, reason)
	}
}
