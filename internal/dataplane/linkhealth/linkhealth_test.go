package linkhealth

import (
	"slices"
	"testing"
	"time"
)

var start = time.Date(2026, 3, 14, 12, 0, 0, 0, time.UTC)

// path is what happens to a probe of an address: after a time it is answered, or fails.
type path struct {
	took   time.Duration
	failed bool
}

// Common paths. A lost probe ends with its timeout.
var (
	fast    = path{took: 4 * time.Millisecond}
	far     = path{took: 240 * time.Millisecond} // 60 ms of round trip
	refused = path{took: time.Millisecond, failed: true}
	lost    = path{failed: true}
)

// world runs a Link in fake time.
type world struct {
	Link
	now    time.Time
	at     func(address string, since time.Duration) path
	most   int
	ends   []event // not sorted
	counts struct{ heartbeats, probes int }
	// turns are when the link became unusable or usable, since the start.
	turns []time.Duration
}

type event struct {
	at time.Time
	do func()
}

func newWorld(at func(address string, since time.Duration) path, addresses ...string) *world {
	w := &world{now: start, at: at, most: 50}
	w.SetAddresses(addresses)
	return w
}

func (w *world) since() time.Duration { return w.now.Sub(start) }

// begin makes one probe or heartbeat, which ends by end.
func (w *world) begin(address string, timeout time.Duration, end func(failed bool)) {
	p := w.at(address, w.since())
	if p.took == 0 || p.took > timeout {
		p.took, p.failed = timeout, true
	}
	w.ends = append(w.ends, event{w.now.Add(p.took), func() {
		if !p.failed {
			w.Measured(p.took / 4)
			w.Received(w.now)
		}
		end(p.failed)
	}})
}

// run goes on until a time since the start.
func (w *world) run(until time.Duration) {
	for {
		usable := w.Usable()
		work, next := w.Next(w.now, w.most, func() float64 { return 0.5 })
		if w.Usable() != usable {
			w.turns = append(w.turns, w.since())
		}
		if work.Heartbeat {
			w.counts.heartbeats++
			ended := func(failed bool) { w.HeartbeatEnded(failed, w.now) }
			w.begin(w.addresses[0].name, w.HeartbeatLife(), ended)
		}
		for _, address := range work.Probes {
			w.counts.probes++
			w.begin(address, w.AttemptTimeout(), func(failed bool) { w.ProbeEnded(address, failed) })
		}
		first := -1
		for i, e := range w.ends {
			if first < 0 || e.at.Before(w.ends[first].at) {
				first = i
			}
		}
		end := start.Add(until)
		switch {
		case first >= 0 && !w.ends[first].at.After(end) && (next.IsZero() || !next.Before(w.ends[first].at)):
			e := w.ends[first]
			w.ends = slices.Delete(w.ends, first, first+1)
			w.now = e.at
			usable := w.Usable()
			e.do()
			if w.Usable() != usable {
				w.turns = append(w.turns, w.since())
			}
		case !next.IsZero() && !next.After(end):
			if !next.After(w.now) && !work.Heartbeat && len(work.Probes) == 0 && usable == w.Usable() {
				panic("Next asks to be called at once, and does nothing")
			}
			w.now = next
		default:
			w.now = end
			return
		}
	}
}

func always(p path) func(string, time.Duration) path {
	return func(string, time.Duration) path { return p }
}

// outage is a path that is another one for a time.
func outage(p, bad path, from, to time.Duration) func(string, time.Duration) path {
	return func(_ string, since time.Duration) path {
		if since >= from && since < to {
			return bad
		}
		return p
	}
}

func TestUnusedLinkCostsNothing(t *testing.T) {
	w := newWorld(always(lost), "a", "b")
	w.run(time.Hour)
	if w.counts.heartbeats+w.counts.probes > 0 || w.Watched() || !w.Usable() {
		t.Errorf("%+v", w.counts)
	}
}

func TestHeartbeatsOfAUsedLink(t *testing.T) {
	w := newWorld(always(fast), "a", "b")
	w.Use(w.now)
	w.run(time.Hour)
	if n := w.counts.heartbeats; n < 295 || n > 301 || w.counts.probes > 0 {
		t.Errorf("%+v, want a heartbeat each second for 5 minutes and no probe", w.counts)
	}
	if w.Watched() || !w.Usable() {
		t.Error("it is watched an hour after its last use")
	}
}

func TestTrafficReplacesHeartbeats(t *testing.T) {
	w := newWorld(always(fast), "a")
	for since := time.Duration(0); since < time.Minute; since += 100 * time.Millisecond {
		w.run(since)
		w.Use(w.now)
		w.Received(w.now)
	}
	if w.counts.heartbeats > 1 || w.counts.probes > 0 {
		t.Errorf("%+v with traffic", w.counts)
	}
}

// Whenever an outage begins, the link is unusable within 3 s, and usable within 1 s and
// one probe after its end.
func TestOutage(t *testing.T) {
	for name, c := range map[string]struct {
		path, bad path
		within    time.Duration
	}{
		"near": {fast, lost, 2700 * time.Millisecond},
		// An answer may be under way for 240 ms when the outage begins.
		"60 ms":   {far, lost, 3050 * time.Millisecond},
		"refused": {fast, refused, 2500 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			for phase := time.Duration(0); phase < 1100*time.Millisecond; phase += 10 * time.Millisecond {
				from, to := 10*time.Second+phase, 40*time.Second+7*phase
				w := newWorld(outage(c.path, c.bad, from, to), "a", "b")
				w.Use(w.now)
				w.run(time.Minute)
				if len(w.turns) != 2 {
					t.Fatalf("turns %v, want unusable and usable", w.turns)
				}
				if late := w.turns[0] - from; late < Silence-HeartbeatInterval || late > c.within {
					t.Errorf("phase %v: unusable %v after the outage began, want %v", phase, late, c.within)
				}
				if late := w.turns[1] - to; late < 0 || late > ProbeInterval+c.path.took {
					t.Errorf("phase %v: usable %v after the outage ended", phase, late)
				}
				if most := 2 * 2 * int((to-from)/time.Second); w.counts.probes > most {
					t.Errorf("phase %v: %d probes in an outage of %v", phase, w.counts.probes, to-from)
				}
			}
		})
	}
}

// A link is not unusable before Silence, and an address that answers is enough.
func TestStaysUsable(t *testing.T) {
	cases := map[string]struct {
		why string
		at  func(address string, since time.Duration) path
	}{
		"short outage": {
			why: "no byte may come for 2 s",
			at:  outage(fast, lost, 10*time.Second, 10900*time.Millisecond),
		},
		"gateway restarts": {
			why: "refused connections fail at once, but not for 2 s",
			at:  outage(fast, refused, 10*time.Second, 10800*time.Millisecond),
		},
		"one dead address": {
			why: "the other one answers",
			at: func(address string, since time.Duration) path {
				if address == "a" && since > 10*time.Second {
					return lost
				}
				return fast
			},
		},
		"every second probe is lost": {
			why: "an answer resets the failures",
			at: func(_ string, since time.Duration) path {
				if (since/time.Second)%2 == 1 {
					return lost
				}
				return fast
			},
		},
		"long round trips": {
			why: "the timeouts grow with them",
			at:  always(path{took: 1200 * time.Millisecond}),
		},
		"round trip of 2 s": {
			why: "the first byte comes after two round trips, before any is measured",
			at:  always(path{took: 4100 * time.Millisecond}),
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			w := newWorld(c.at, "a", "b")
			for since := time.Duration(0); since <= time.Minute; since += time.Second {
				w.Use(w.now)
				w.run(since)
			}
			if len(w.turns) > 0 {
				t.Errorf("turns %v: %s", w.turns, c.why)
			}
		})
	}
}

func TestFirstUseInAnOutage(t *testing.T) {
	w := newWorld(always(lost), "a")
	w.run(time.Hour)
	w.Use(w.now)
	w.run(time.Hour + 10*time.Second)
	if len(w.turns) != 1 || w.turns[0] < time.Hour+Silence || w.turns[0] > time.Hour+5*time.Second {
		t.Errorf("turns %v, want unusable within 5 s of the first use", w.turns)
	}
}

// What the controller finds dead is tested without a use, and then left alone if it
// answers.
func TestSuspectedWithoutUse(t *testing.T) {
	for _, p := range []path{fast, lost} {
		w := newWorld(always(p), "a", "b")
		w.Suspect(w.now)
		w.run(time.Hour)
		if w.Usable() == p.failed || w.Watched() != p.failed {
			t.Errorf("path %+v: usable %v, watched %v", p, w.Usable(), w.Watched())
		}
		if !p.failed && (w.counts.probes > 4 || w.counts.heartbeats > 1) {
			t.Errorf("path %+v: %+v", p, w.counts)
		}
	}
}

// While the caller may make no probe, nothing is decided, and it is asked again.
func TestNoBudget(t *testing.T) {
	w := newWorld(always(lost), "a")
	w.most = 0
	w.Use(w.now)
	w.Suspect(w.now)
	w.run(10 * time.Second)
	if w.counts.probes > 0 || !w.Usable() {
		t.Errorf("%+v, usable %v without a probe", w.counts, w.Usable())
	}
	w.most = 1
	w.run(20 * time.Second)
	if w.Usable() {
		t.Error("it is usable after probes failed")
	}
	w.most = 0
	w.run(30 * time.Second)
	w.most, w.at = 1, always(fast)
	w.run(31500 * time.Millisecond)
	if !w.Usable() {
		t.Error("it is unusable after a probe was answered")
	}
}

// A link that no pod used when it became unusable is usable again as soon as any other
// link. Its callers are refused meanwhile, and a refused call does not count as use.
func TestUnusedUnusableLinkRecovers(t *testing.T) {
	w := newWorld(always(lost), "a")
	w.Suspect(w.now)
	w.run(10 * time.Second)
	if w.Usable() || !w.Unused() {
		t.Fatalf("after probes failed: usable %v, unused %v", w.Usable(), w.Unused())
	}
	before := w.counts.probes
	w.run(10*time.Second + time.Hour)
	if n := w.counts.probes - before; n < 3600 || n > 4800 {
		t.Errorf("%d probes in an hour, want one each 0.75 to 1 s", n)
	}
	w.at = always(fast)
	w.run(11500*time.Millisecond + time.Hour)
	if !w.Usable() || w.Unused() {
		t.Errorf("1.5 s after the outage: usable %v, unused %v", w.Usable(), w.Unused())
	}
}

// Every address of a link is probed in turn while it is unusable.
func TestManyAddresses(t *testing.T) {
	names := []string{"a", "b", "c", "d", "e", "f", "g"}
	w := newWorld(func(address string, since time.Duration) path {
		if address == "g" && since > 20*time.Second {
			return fast
		}
		return lost
	}, names...)
	w.Use(w.now)
	w.run(time.Minute)
	if len(w.turns) != 2 || w.turns[1] > 23*time.Second {
		t.Errorf("turns %v, want usable by way of the last address", w.turns)
	}
}

func TestReceived(t *testing.T) {
	w := newWorld(always(lost), "a")
	w.Use(w.now)
	w.run(10 * time.Second)
	if w.Usable() {
		t.Fatal("it is usable")
	}
	w.Received(start.Add(w.turns[0]))
	w.Received(time.Time{})
	if w.Usable() {
		t.Error("a byte from before makes it usable")
	}
	w.Received(w.now)
	if !w.Usable() {
		t.Error("a byte from now does not make it usable")
	}
}

// A process that did not run for some seconds finds that its probes have timed out. It
// takes no link for unusable because of that.
func TestStalled(t *testing.T) {
	w := newWorld(outage(fast, lost, 10*time.Second, 13*time.Second), "a", "b")
	w.Use(w.now)
	w.run(11400 * time.Millisecond)
	w.now = w.now.Add(1700 * time.Millisecond) // in which nothing ran
	w.Stalled(w.now)
	w.run(time.Minute)
	if len(w.turns) > 0 {
		t.Errorf("turns %v", w.turns)
	}
	w = newWorld(always(lost), "a")
	w.Stalled(w.now)
	if w.Watched() {
		t.Error("an unused link is watched")
	}
	w.Use(w.now)
	w.run(10 * time.Second)
	w.Stalled(w.now)
	w.run(20 * time.Second)
	if w.Usable() {
		t.Error("an unusable link is usable without a byte")
	}
}

func TestSetAddresses(t *testing.T) {
	w := newWorld(always(lost), "a")
	w.Use(w.now)
	w.run(10 * time.Second)
	w.SetAddresses([]string{"b", "a"})
	if w.Usable() || w.addresses[1].failures == 0 {
		t.Error("another address makes it usable without a byte")
	}
	w.SetAddresses(nil)
	if !w.Usable() || w.Watched() {
		t.Error("it has no address, and is judged by it")
	}
	w.Use(w.now)
	w.Suspect(w.now)
	w.run(20 * time.Second)
	if !w.Usable() || w.Watched() {
		t.Error("it has no address, and is watched")
	}
}
