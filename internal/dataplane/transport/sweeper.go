package transport

import (
	"sync"
	"time"
)

const (
	// sweepInterval is how often a sweeper calls each function.
	sweepInterval = 5 * time.Second
	// sweepSlots spread the calls over the interval: 50,000 at once would be a burst.
	sweepSlots = 20
)

// sweeper calls each function that was added to it once in each sweepInterval. It has one
// timer, which is set only while there are functions. The zero value is ready to use.
type sweeper struct {
	slots [sweepSlots]sweepSlot

	mu       sync.Mutex // guards what follows
	entries  int
	nextSlot int // the slot of the next entry
	nextTick int // the slot of the next tick
	timer    *time.Timer
}

// sweepSlot holds the entries whose functions are called in the same tick.
type sweepSlot struct {
	mu      sync.Mutex // held while the functions run
	entries map[*sweepEntry]struct{}
}

// sweepEntry is a function that a sweeper calls.
type sweepEntry struct {
	call func()
	slot *sweepSlot
}

// add starts the calls of a function. The function must neither block nor use the
// sweeper.
func (s *sweeper) add(call func()) *sweepEntry {
	s.mu.Lock()
	e := &sweepEntry{call, &s.slots[s.nextSlot]}
	s.nextSlot = (s.nextSlot + 1) % sweepSlots
	if s.entries++; s.entries == 1 {
		s.timer = time.AfterFunc(sweepInterval/sweepSlots, s.tick)
	}
	s.mu.Unlock()

	e.slot.mu.Lock()
	defer e.slot.mu.Unlock()
	if e.slot.entries == nil {
		e.slot.entries = make(map[*sweepEntry]struct{})
	}
	e.slot.entries[e] = struct{}{}
	return e
}

// remove ends the calls of a function. It must be called once. It waits for a running
// call.
func (s *sweeper) remove(e *sweepEntry) {
	e.slot.mu.Lock()
	delete(e.slot.entries, e)
	e.slot.mu.Unlock()

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.entries--; s.entries == 0 {
		s.timer.Stop()
	}
}

// tick calls the functions of one slot and sets the timer for the next. The timer calls
// it.
func (s *sweeper) tick() {
	s.mu.Lock()
	slot := &s.slots[s.nextTick]
	s.nextTick = (s.nextTick + 1) % sweepSlots
	s.mu.Unlock()

	slot.callAll()

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.entries > 0 {
		s.timer.Reset(sweepInterval / sweepSlots)
	}
}

func (s *sweepSlot) callAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for e := range s.entries {
		e.call()
	}
}
