package agent

import (
	"testing"
	"time"
)

// The calls of a pod that connects in a loop wait for each other, and another pod's
// call does not wait for all of them.
func TestOpeningsAreFairToPods(t *testing.T) {
	w := newHarness(t, echo, func(w *harness) { w.west.openings.most = func(time.Duration) int { return 1 } })
	turns := w.west.openings.of("link-to-east").turns
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
}

func TestOpeningsAt(t *testing.T) {
	for _, tc := range []struct {
		why  string
		cpus int
		rtt  time.Duration
		want int
	}{
		{"unknown round trip", 2, 0, 32},
		{"same site", 2, 300 * time.Microsecond, 32},
		{"a WAN", 2, 60 * time.Millisecond, 2 * (16 + 120)},
		{"a path that is slower than any", 1, time.Minute, 16 + 1000},
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
	l := w.west.openings.of("link-to-east")
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.handshake <= 0 || l.holding != 0 {
		t.Errorf("handshake %v, %d calls are opening", l.handshake, l.holding)
	}
}
