package agent

import (
	"io"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/dataplane/budget"
)

// The calls of a pod that connects in a loop wait for each other, and another pod's
// call does not wait for all of them. This holds for turns to open a call and for turns
// to make a session.
func TestOpeningsAreFairToPods(t *testing.T) {
	one := func(time.Duration) int { return 1 }
	for name, tc := range map[string]struct {
		limit func(*openings)
		turns func(*linkOpenings) *budget.FairSemaphore
	}{
		"calls":        {func(o *openings) { o.most = one }, func(l *linkOpenings) *budget.FairSemaphore { return l.turns }},
		"new sessions": {func(o *openings) { o.most, o.mostNew = many, one }, func(l *linkOpenings) *budget.FairSemaphore { return l.newSessions }},
	} {
		t.Run(name, func(t *testing.T) {
			w := newHarness(t, echo, func(w *harness) { tc.limit(w.west.openings) })
			turns := tc.turns(w.west.openings.of(linkToEast))
			if !turns.Acquire(t.Context(), "busy", func() bool { return true }) {
				t.Fatal("no turn is free")
			}
			const many = 20
			answered := make(chan string, many+1)
			out := func(pod string) {
				if _, err := w.call(pod, "hello"); err != nil {
					t.Errorf("call of %s: %v", pod, err)
				}
				answered <- pod
			}
			for range many {
				go out(alice)
			}
			eventually(t, "calls wait", func() bool { return turns.Waiting() == many })
			go out(bob)
			eventually(t, "another pod's call waits, too", func() bool { return turns.Waiting() == many+1 })
			turns.Release()
			place := 0
			for i := range many + 1 {
				if <-answered == bob {
					place = i
				}
			}
			if place > many/2 {
				t.Errorf("another pod's call was answered after %d of %d calls of a pod that connects in a loop", place, many)
			}
		})
	}
}

// linkToEast is the UID of west's link.
const linkToEast = "link-to-east"

// many is a bound that no test reaches.
func many(time.Duration) int { return 1000 }

// A call that waits to make a session takes one that has become idle meanwhile.
func TestIdleSessionComesBeforeNewSession(t *testing.T) {
	w := newHarness(t, echo, func(w *harness) {
		w.west.openings.mostNew = func(time.Duration) int { return 1 }
		w.west.preconnectLimiters.update(linkToEast, func(*rate.Limiter, time.Duration, bool) (*rate.Limiter, bool) {
			return rate.NewLimiter(0, 0), true
		})
	})
	first := w.dial(alice)
	if _, err := io.WriteString(first, "hello"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the first call has a session", func() bool { return w.sessionCount(sessionMade) == 1 })
	turns := w.west.openings.of(linkToEast).newSessions
	if !turns.Acquire(t.Context(), "busy", func() bool { return true }) {
		t.Fatal("no turn is free")
	}
	second := make(chan error, 1)
	go func() { _, err := w.call(alice, "hello"); second <- err }()
	eventually(t, "the second call waits", func() bool { return turns.Waiting() == 1 })
	first.CloseWrite()
	eventually(t, "the session is idle", func() bool { return w.idle() == 1 })
	turns.Release()
	if err := <-second; err != nil {
		t.Errorf("the second call: %v", err)
	}
	if n := w.sessionCount(sessionMade); n != 1 {
		t.Errorf("%d sessions were made, want 1", n)
	}
}

// A turn ends when it is no longer needed. While the agent is overloaded, calls take long
// because they wait for a CPU, so their turns last longer.
func TestTurnsEnd(t *testing.T) {
	for name, tc := range map[string]struct {
		overloaded func(time.Duration) bool // at a time after the turn began
		open       bool                     // the call is open at once
		want       time.Duration
	}{
		"a call that waits for its application": {never, false, openingTime},
		"an open call":                          {never, true, 0},
		"overloaded":                            {always, false, maxOpeningTime},
		"an open call, overloaded":              {always, true, openingTime},
		"overloaded for a while": {func(d time.Duration) bool { return d < 4*openingTime+openingTime/2 }, false,
			5 * openingTime},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o, start := newOpenings(), time.Now()
				o.overloaded = func() bool { return tc.overloaded(time.Since(start)) }
				l := o.of("east")
				slot, err := o.await(t.Context(), nil, new(outboundConn), l, l.turns, l.hold)
				if err != nil {
					t.Fatal(err)
				}
				if tc.open {
					slot.opened()
				}
				for l.holds() > 0 && time.Since(start) < time.Hour {
					bubble.Pass(openingTime)
				}
				if took := time.Since(start); took != tc.want {
					t.Errorf("the turn ended after %v, want %v", took, tc.want)
				}
				slot.end()
				if n := l.holds(); n != 0 {
					t.Errorf("%d turns after the end", n)
				}
			})
		})
	}
}

func always(time.Duration) bool { return true }
func never(time.Duration) bool  { return false }

// holds returns how many calls are opening.
func (l *linkOpenings) holds() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.holding
}

func TestNewSessionsAt(t *testing.T) {
	for _, tc := range []struct {
		why  string
		cpus int
		rtt  time.Duration
		want int
	}{
		{"unknown round trip", 2, 0, 2},
		{"same site", 2, 300 * time.Microsecond, 2},
		{"a WAN", 2, 60 * time.Millisecond, 2 * (1 + 60)},
		{"a path that is slower than any", 1, time.Minute, 1 + 500},
	} {
		if got := newSessionsAt(tc.cpus, tc.rtt); got != tc.want {
			t.Errorf("%s: %d, want %d", tc.why, got, tc.want)
		}
	}
}

func TestOpeningsAt(t *testing.T) {
	for _, tc := range []struct {
		why  string
		cpus int
		rtt  time.Duration
		want int
	}{
		{"unknown round trip", 2, 0, 8},
		{"same site", 2, 300 * time.Microsecond, 8},
		{"a WAN", 2, 60 * time.Millisecond, 2 * (4 + 120)},
		{"a path that is slower than any", 1, time.Minute, 4 + 1000},
	} {
		if got := openingsAt(tc.cpus, tc.rtt); got != tc.want {
			t.Errorf("%s: %d, want %d", tc.why, got, tc.want)
		}
	}
}

// A shorter round trip counts at once, and a longer one slowly.
func TestOpeningsFollowTheRoundTrip(t *testing.T) {
	for name, measure := range map[string]func(*openings, string, time.Duration){
		"connect":   (*openings).measuredConnect,
		"handshake": (*openings).measuredHandshake,
	} {
		o := newOpenings()
		var most time.Duration
		o.most = func(rtt time.Duration) int { most = rtt; return 1 }
		for _, step := range []struct {
			rtt, want time.Duration
		}{
			{60 * time.Millisecond, 60 * time.Millisecond},
			{0, 60 * time.Millisecond},
			{10 * time.Millisecond, 10 * time.Millisecond},
			{330 * time.Millisecond, 20 * time.Millisecond},
		} {
			measure(o, "east", step.rtt)
			if most != step.want {
				t.Errorf("%s: after %v it is %v, want %v", name, step.rtt, most, step.want)
			}
		}
		if got := o.of("east").within(); got != openingTime+40*time.Millisecond {
			t.Errorf("%s: a call counts for %v", name, got)
		}
	}
}

// Behind a load balancer that terminates TCP, the handshake shows the whole path.
func TestOpeningsFollowTheHandshakeBehindLoadBalancer(t *testing.T) {
	o := newOpenings()
	var most time.Duration
	o.most = func(rtt time.Duration) int { most = rtt; return 1 }
	o.measuredConnect("east", time.Millisecond)
	o.measuredHandshake("east", 80*time.Millisecond)
	o.measuredConnect("east", time.Millisecond)
	if most != 80*time.Millisecond {
		t.Errorf("the bound follows %v, want the 80 ms of the handshake", most)
	}
}

// The handshakes of a busy node take long because its calls wait for each other, so they
// do not raise the bound of these calls.
func TestOpeningsIgnoreHandshakesOfBusyNode(t *testing.T) {
	o := newOpenings()
	var most time.Duration
	o.most = func(rtt time.Duration) int { most = rtt; return 1 }
	o.measuredHandshake("east", 2*time.Millisecond)
	o.of("east").hold(o.quiet + 1)
	for range 1000 {
		o.measuredHandshake("east", 100*time.Millisecond)
	}
	if most != 2*time.Millisecond {
		t.Errorf("the bound follows %v, want 2 ms", most)
	}
	o.of("east").hold(-1)
	o.measuredHandshake("east", 66*time.Millisecond)
	if most != 4*time.Millisecond {
		t.Errorf("the bound follows %v, want 4 ms", most)
	}
}

// Each handshake is measured, and each call that is open counts no longer as opening.
func TestHandshakeTimeReachesOpenings(t *testing.T) {
	w := newHarness(t, echo)
	if _, err := w.call(alice, "hello"); err != nil {
		t.Fatal(err)
	}
	l := w.west.openings.of(linkToEast)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.handshake <= 0 || l.holding != 0 {
		t.Errorf("handshake %v, %d calls are opening", l.handshake, l.holding)
	}
}
