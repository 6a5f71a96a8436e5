package transport

import (
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
)

var windowTime = time.Unix(1_000, 0)

func at(after time.Duration) func() time.Time {
	return func() time.Time { return windowTime.Add(after) }
}

// simulation is a sender, a path and a receiver in steps of 100 µs of fake time.
type simulation struct {
	rtt                   time.Duration
	source, path, drained int // most bytes per step: of the sender, the path, the application
	memory                *testMemory
}

// run returns the receiver's window and the bytes taken after a while.
func (sim simulation) run(t *testing.T, steps int) (window int, taken int64) {
	t.Helper()
	s, r := newSendWindow(unlimited{}, 0), newReceiveWindow(sim.memory)
	now, half := windowTime, int(sim.rtt/step/2)
	data, credits := make([]int, half+1), make([]*tunnel.Credit, half+1)
	queued, arrived := 0, int64(0)
	for i := range steps {
		now = now.Add(step)
		slot := i % (half + 1)
		if c := credits[slot]; c != nil {
			if _, err := s.onCredit(*c); err != nil {
				t.Fatal(err)
			}
			r.onOwn(s.own)
		}
		arrived += int64(data[slot])
		n := min(s.available(), sim.source)
		s.underWay += n
		queued += n
		data[slot] = min(queued, sim.path)
		queued -= data[slot]
		if n := min(int(arrived), sim.drained); n > 0 { // toPlain reads as fast as it writes
			arrived -= int64(n)
			if err := r.receive(n, func() time.Time { return now }); err != nil {
				t.Fatal(err)
			}
			r.taken += int64(n)
		}
		credits[slot] = nil
		if r.due() {
			taken, window := r.credit(now)
			credits[slot] = &tunnel.Credit{Taken: taken, Window: window}
		}
	}
	window = r.window
	r.release()
	if used, _ := sim.memory.get(); used != 0 {
		t.Errorf("%d bytes are still reserved", used)
	}
	return window, r.taken
}

const step = 100 * time.Microsecond

func TestReceiveWindowGrows(t *testing.T) {
	const gigabit, rtt = 12_500, 60 * time.Millisecond // bytes in a step
	const much = 1 << 30
	for name, tc := range map[string]struct {
		why      string
		sim      simulation
		min, max int
	}{
		"1 Gbit/s and 60 ms":   {"the window is all that limits", simulation{rtt, much, gigabit, much, nil}, MaxWindow, MaxWindow},
		"100 Mbit/s and 60 ms": {"it grows to a few times what the path holds", simulation{rtt, much, gigabit / 10, much, nil}, 1 << 20, 4 << 20},
		"a slow source":        {"it is told no more", simulation{rtt, gigabit / 100, gigabit, much, nil}, 1 << 16, 1 << 18},
		"a slow application":   {"it needs no more", simulation{rtt, much, gigabit, gigabit / 100, nil}, 1 << 16, 1 << 18},
		"1 Gbit/s nearby":      {"few CREDITs cost little", simulation{step, much, gigabit, much, nil}, 1 << 18, 1 << 20},
		"4 Gbit/s and 4 ms":    {"busy processors delay bytes and credit as a long path does", simulation{4 * time.Millisecond, much, 4 * gigabit, much, nil}, 4 << 20, MaxWindow},
		"4 Gbit/s nearby":      {"the far side never waits", simulation{step, much, 4 * gigabit, much, nil}, 1 << 20, 1 << 20},
		"little memory":        {"it grows within the budget", simulation{rtt, much, gigabit, much, &testMemory{most: 200 << 10}}, 1 << 18, 1 << 18},
	} {
		if tc.sim.memory == nil {
			tc.sim.memory = &testMemory{most: much}
		}
		window, taken := tc.sim.run(t, 50_000)
		t.Logf("%s: window %d, %d MB in 5 s", name, window, taken/1e6)
		if window < tc.min || window > tc.max {
			t.Errorf("%s: window %d, want %d to %d: %s", name, window, tc.min, tc.max, tc.why)
		}
	}
}

// Over a long path, windows should grow about as fast as TCP's congestion window in slow
// start, which limits a new connection in any case.
func TestReceiveWindowFollowsSlowStart(t *testing.T) {
	for _, path := range []int{2_700, 5_000, 12_500} { // bytes in a step: 27, 50 and 125 MB/s
		limited, free := downloadTime(t, path, false), downloadTime(t, path, true)
		t.Logf("%d MB/s and 60 ms: 64 MB in %v, without flow control in %v", path/100, limited, free)
		if most := 150 * time.Millisecond; limited-free > most {
			t.Errorf("%d MB/s: %v longer than without flow control, want at most %v", path/100, limited-free, most)
		}
	}
}

// downloadTime simulates a download of 64 MB over a new TCP connection with a round trip of
// 60 ms, in fake time. free makes the windows the largest ones from the beginning.
func downloadTime(t *testing.T, path int, free bool) time.Duration {
	t.Helper()
	const half = 30 * time.Millisecond / step
	s, r := newSendWindow(unlimited{}, 0), newReceiveWindow(unlimited{})
	if free {
		s.own, s.peer = MaxWindow, MaxWindow
		r.window, r.peerOwn, r.limit = MaxWindow, MaxWindow, MaxWindow
	}
	var data, acks [half + 1]int
	var credits [half + 1]*tunnel.Credit
	unsent, unacked, queued, congestionWindow := 0, 0, 0, 10*1448
	now := windowTime
	for i := 0; r.taken < 64e6; i++ {
		now = now.Add(step)
		slot := i % len(data)
		if c := credits[slot]; c != nil {
			if _, err := s.onCredit(*c); err != nil {
				t.Fatal(err)
			}
			r.onOwn(s.own)
		}
		if unacked >= congestionWindow/2 { // otherwise Linux does not enlarge it
			congestionWindow += acks[slot]
		}
		unacked -= acks[slot]
		n := s.available()
		s.underWay += n
		unsent += n
		n = max(0, min(unsent, congestionWindow-unacked))
		unsent, unacked, queued = unsent-n, unacked+n, queued+n
		arrived := data[slot]
		data[slot] = min(queued, path)
		queued -= data[slot]
		acks[slot], credits[slot] = arrived, nil
		if arrived > 0 {
			if err := r.receive(arrived, func() time.Time { return now }); err != nil {
				t.Fatal(err)
			}
			r.taken += int64(arrived)
		}
		if r.due() {
			taken, window := r.credit(now)
			credits[slot] = &tunnel.Credit{Taken: taken, Window: window}
		}
	}
	return now.Sub(windowTime)
}

func TestReceiveWindowWaitsForSender(t *testing.T) {
	w := newReceiveWindow(unlimited{})
	for range 40 {
		if n := w.window / 2; w.receive(n, at(0)) == nil {
			w.taken += int64(n)
		}
		if w.due() {
			w.credit(windowTime)
		}
	}
	if w.window != 4*assuredWindow {
		t.Errorf("a window of %d for a sender that uses %d", w.window, assuredWindow)
	}
	w.taken = w.credited + assuredWindow/2
	if !w.due() {
		t.Error("the sender waits, and gets no CREDIT")
	}
}

func TestReceiveWindowRejectsExcess(t *testing.T) {
	w := newReceiveWindow(unlimited{})
	if err := w.receive(assuredWindow, at(0)); err != nil {
		t.Error(err)
	}
	if err := w.receive(1, at(0)); !errors.Is(err, ErrFlowControl) {
		t.Errorf("%v, want %v", err, ErrFlowControl)
	}
}

func TestSendWindow(t *testing.T) {
	credit := func(taken, window int) tunnel.Credit {
		return tunnel.Credit{Taken: uint32(taken), Window: uint32(window), Own: assuredWindow}
	}
	memory := &testMemory{most: 1 << 20}
	w := newSendWindow(memory, 1000)
	if got := w.available(); got != assuredWindow-1000 {
		t.Errorf("%d bytes at first", got)
	}
	w.underWay = assuredWindow - 3
	if got := w.available(); got != 0 {
		t.Errorf("%d bytes: they would make a small frame", got)
	}
	if changed, err := w.onCredit(credit(1000, 1<<20)); !changed || err != nil || w.own != 1<<20 {
		t.Errorf("own window %d, %v, %v", w.own, changed, err)
	}
	if changed, err := w.onCredit(credit(0, 4<<20)); changed || err != nil || w.own != 1<<20 {
		t.Errorf("own window %d without memory for it, %v, %v", w.own, changed, err)
	}
	if _, err := w.onCredit(credit(1<<20, 4<<20)); !errors.Is(err, ErrFlowControl) {
		t.Errorf("more acknowledged than sent: %v", err)
	}
	w.underWay = 600 << 10
	if !w.shrink() || w.available() != 0 {
		t.Error("a window that shrinks permits nothing beyond it")
	}
	if used, _ := memory.get(); used != 600<<10-assuredWindow {
		t.Errorf("%d bytes are reserved, want those that are under way", used)
	}
	w.onCredit(credit(600<<10, 4<<20)) // it crossed
	if w.own != assuredWindow || w.peer != assuredWindow {
		t.Errorf("own %d and peer %d by a frame from before", w.own, w.peer)
	}
	w.onCredit(credit(0, assuredWindow)) // the answer
	w.onCredit(credit(0, 2*assuredWindow))
	if w.own != 2*assuredWindow {
		t.Errorf("own window %d, want it to grow again", w.own)
	}
	w.release()
	if used, _ := memory.get(); used != 0 {
		t.Errorf("%d bytes are still reserved", used)
	}
}

// Two windows that exchange frames in order, each delayed at random, never violate the
// rules, never lock up, and reserve at least what is under way.
func TestWindowsAgree(t *testing.T) {
	for range 200 {
		sends := &testMemory{most: rand.IntN(MaxWindow)}
		receives := &testMemory{most: rand.IntN(MaxWindow)}
		s, r := newSendWindow(sends, 0), newReceiveWindow(receives)
		var data []tunnel.Credit // Taken is DATA's length, or Own alone counts
		var credits []tunnel.Credit
		pending, moved, now := int64(0), 0, windowTime
		clock := func() time.Time { return now }
		for idle := 0; moved < 64<<20; {
			now = now.Add(time.Duration(rand.IntN(200)) * time.Microsecond)
			idle++
			switch rand.IntN(5) {
			case 0:
				if n := s.available(); n > 0 {
					n = rand.IntN(min(n, bufferSize)) + 1
					s.underWay += n
					data = append(data, tunnel.Credit{Taken: uint32(n)})
				}
			case 1:
				if len(data) == 0 {
					break
				}
				f := data[0]
				data = data[1:]
				if f.Own != 0 {
					r.onOwn(int(f.Own))
				} else if err := r.receive(int(f.Taken), clock); err != nil {
					t.Fatal(err)
				}
				pending = r.received - r.taken
			case 2:
				if pending > 0 {
					n := rand.Int64N(pending) + 1
					r.taken += n
					pending -= n
					moved += int(n)
					idle = 0
				}
			case 3:
				if r.due() {
					taken, window := r.credit(now)
					credits = append(credits, tunnel.Credit{Taken: taken, Window: window})
				}
				if len(credits) == 0 {
					break
				}
				changed, err := s.onCredit(credits[0])
				if credits = credits[1:]; err != nil {
					t.Fatal(err)
				}
				if changed {
					data = append(data, tunnel.Credit{Own: uint32(s.own)})
				}
			case 4:
				if rand.IntN(100) == 0 && s.shrink() {
					data = append(data, tunnel.Credit{Own: uint32(s.own)})
				}
			}
			if s.underWay > s.reserved+assuredWindow || r.limit-r.taken > int64(r.reserved+assuredWindow) {
				t.Fatalf("sender %+v, receiver %+v: more than is reserved may be under way", s, r)
			}
			if idle > 10_000 {
				t.Fatalf("sender %+v, receiver %+v: nothing moves", s, r)
			}
		}
		s.release()
		r.release()
		if a, _ := sends.get(); a != 0 {
			t.Fatalf("%d bytes are still reserved", a)
		}
		if a, _ := receives.get(); a != 0 {
			t.Fatalf("%d bytes are still reserved", a)
		}
	}
}
