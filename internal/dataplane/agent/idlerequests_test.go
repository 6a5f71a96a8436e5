package agent

import (
	"maps"
	"slices"
	"testing"
	"time"
)

func TestExcessIdle(t *testing.T) {
	now := time.Now()
	// idle returns n sessions of a link, one idle for from, and each other a second longer.
	idle := func(link string, n int, from time.Duration) (out []idleSession) {
		for i := range n {
			out = append(out, idleSession{link: link, since: now.Add(-from - time.Duration(i)*time.Second)})
		}
		return out
	}
	cases := map[string]struct {
		why  string
		all  []idleSession
		most int
		want map[string]int // how many sessions of a link end
	}{
		"none":        {"nothing is idle", nil, 8, nil},
		"few":         {"there is room", slices.Concat(idle("a", 4, time.Second), idle("b", 4, time.Second)), 8, nil},
		"too long":    {"their client does not end them", idle("a", 3, openWait+1), 8, map[string]int{"a": 3}},
		"one link":    {"a link may use what others do not", idle("a", 10, time.Second), 8, map[string]int{"a": 2}},
		"a greedy":    {"a link with few loses none", slices.Concat(idle("a", 20, time.Second), idle("b", 2, time.Minute)), 8, map[string]int{"a": 14}},
		"two greedy":  {"they have equal parts", slices.Concat(idle("a", 20, time.Second), idle("b", 10, time.Minute)), 8, map[string]int{"a": 16, "b": 6}},
		"many, three": {"what one does not use is for the others", slices.Concat(idle("a", 9, 1), idle("b", 9, 1), idle("c", 1, 1)), 9, map[string]int{"a": 5, "b": 5}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			got := map[string]int{}
			ended := excessIdle(slices.Clone(tc.all), now, tc.most)
			for _, s := range ended {
				got[s.link]++
			}
			if !maps.Equal(got, tc.want) {
				t.Errorf("%s: %v end, want %v", tc.why, got, tc.want)
			}
			for _, s := range tc.all {
				for _, e := range ended {
					if s.link == e.link && s.since.Before(e.since) && !slices.Contains(ended, s) {
						t.Errorf("a session of %s ends, and one that has been idle for longer does not", s.link)
					}
				}
			}
		})
	}
}

// TestIdleSessionsForRequestsEnd: the far agent ends sessions that their client leaves
// idle. A session with an open request stays.
func TestIdleSessionsForRequestsEnd(t *testing.T) {
	eachVersion(t, func(t *testing.T, h2 bool) {
		w := newHarness(t, serveHTTP(serveEvents))
		events := w.openEvents(alice, h2)
		events.want(t, "a")
		idle := w.openEvents(bob, h2)
		idle.close()
		open := func() (n int) {
			for _, in := range w.east.inboundConns.all() {
				if in.requests.Load() != nil {
					n++
				}
			}
			return n
		}
		eventually(t, "both sessions are open, and one is idle", func() bool {
			return open() == 2 && slices.ContainsFunc(w.east.inboundConns.all(), (*inboundConn).hasNoRequests)
		})
		w.east.limitIdleRequests(time.Now())
		if n := open(); n != 2 {
			t.Errorf("%d sessions are open, want 2", n)
		}
		w.east.limitIdleRequests(time.Now().Add(openWait + time.Second))
		eventually(t, "the idle session has ended", func() bool { return open() == 1 })
		events.want(t, "b")
		events.close()
		w.openEvents(bob, h2).want(t, "a new session")
	})
}
