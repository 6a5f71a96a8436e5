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

func TestReceiveWindowGrows(t *testing.T) {
	for name, tc := range map[string]struct {
		why   string
		every time.Duration // between two CREDITs
		most  int           // of memory
		want  int
	}{
		"at once":       {"a fast application deserves the largest window", 0, MaxWindow, MaxWindow},
		"in a trip":     {"a window limits the rate if it is taken in two round trips", 30 * time.Millisecond, MaxWindow, MaxWindow},
		"slow":          {"a slow application needs no more", 90 * time.Millisecond, MaxWindow, assuredWindow},
		"little memory": {"it grows within the budget", 0, 200 << 10, 4 * assuredWindow},
	} {
		memory := &testMemory{most: tc.most}
		w := newReceiveWindow(memory, 60*time.Millisecond)
		now := windowTime
		for range 40 {
			n := w.window / 2
			if err := w.receive(n, func() time.Time { return now }); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			w.taken += int64(n)
			if !w.due() {
				t.Fatalf("%s: half a window is no reason for CREDIT", name)
			}
			now = now.Add(tc.every)
			w.credit(now)
			w.onOwn(w.window) // the far side follows
		}
		if used, _ := memory.get(); w.window != tc.want || used != tc.want-assuredWindow {
			t.Errorf("%s: window %d with %d reserved, want %d: %s", name, w.window, used, tc.want, tc.why)
		}
		w.release()
		if used, _ := memory.get(); used != 0 {
			t.Errorf("%s: %d bytes are still reserved", name, used)
		}
	}
}

func TestReceiveWindowWaitsForSender(t *testing.T) {
	w := newReceiveWindow(unlimited{}, 0)
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
	w := newReceiveWindow(unlimited{}, 0)
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
		s, r := newSendWindow(sends, 0), newReceiveWindow(receives, time.Millisecond)
		var forth []tunnel.Credit // Taken is DATA's length, or Own alone counts
		var back []tunnel.Credit
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
					forth = append(forth, tunnel.Credit{Taken: uint32(n)})
				}
			case 1:
				if len(forth) == 0 {
					break
				}
				f := forth[0]
				forth = forth[1:]
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
					back = append(back, tunnel.Credit{Taken: taken, Window: window})
				}
				if len(back) == 0 {
					break
				}
				changed, err := s.onCredit(back[0])
				if back = back[1:]; err != nil {
					t.Fatal(err)
				}
				if changed {
					forth = append(forth, tunnel.Credit{Own: uint32(s.own)})
				}
			case 4:
				if rand.IntN(100) == 0 && s.shrink() {
					forth = append(forth, tunnel.Credit{Own: uint32(s.own)})
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
