package transport

import (
	"errors"
	"fmt"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
)

// MaxWindow is the most bytes that one direction of an exchange may have under way. It
// fills a path of 1 Gbit/s with a round trip of 60 ms.
const MaxWindow = 8 << 20

const assuredWindow = tunnel.AssuredWindow

// ErrFlowControl reports a peer that sent more than it may, or acknowledged more than
// was sent.
var ErrFlowControl = errors.New("the far side violates flow control")

// Memory is a budget from which windows are reserved. It must be safe for concurrent use
// and must not block.
type Memory interface {
	// Reserve reserves n bytes, or returns false.
	Reserve(n int) bool
	// Release returns n bytes.
	Release(n int)
}

// unlimited is the budget of an exchange that has none.
type unlimited struct{}

func (unlimited) Reserve(int) bool { return true }
func (unlimited) Release(int)      {}

// sendWindow bounds the bytes that this side has under way. Make it with newSendWindow.
type sendWindow struct {
	memory   Memory
	own      int // what this side permits itself
	peer     int // what the far side permits
	underWay int // sent and not yet taken
	reserved int // of memory, beyond assuredWindow
	// shrunk means that own became smaller and the far side has not acknowledged it yet.
	// Until then the windows in its CREDIT frames are out of date and ignored.
	shrunk bool
}

// newSendWindow returns a window of which early bytes are in use.
func newSendWindow(memory Memory, early int) sendWindow {
	return sendWindow{memory: memory, own: assuredWindow, peer: assuredWindow, underWay: early}
}

// available returns how many bytes may be sent now. It returns 0 if less than a quarter
// of the window is free, because small frames are inefficient. More than a quarter always
// becomes free again, because the far side sends CREDIT before it has taken half of the
// window.
func (w *sendWindow) available() int {
	window := min(w.own, w.peer)
	if free := window - w.underWay; free >= window/4 {
		return free
	}
	return 0
}

// onCredit records CREDIT of the far side. It reports whether own has changed, which the
// far side must learn.
func (w *sendWindow) onCredit(c tunnel.Credit) (changed bool, err error) {
	taken := int(c.Taken)
	if taken > w.underWay {
		return false, fmt.Errorf("%d bytes acknowledged of %d under way: %w", taken, w.underWay, ErrFlowControl)
	}
	w.underWay -= taken
	w.trim()
	if w.shrunk {
		w.shrunk = int(c.Window) != assuredWindow
		return false, nil
	}
	w.peer = int(c.Window)
	target := min(w.peer, MaxWindow)
	if more := target - assuredWindow - w.reserved; target <= w.own || more > 0 && !w.memory.Reserve(more) {
		return false, nil
	}
	w.own, w.reserved = target, max(w.reserved, target-assuredWindow)
	return true, nil
}

// shrink returns to the assured window. It reports whether own has changed.
func (w *sendWindow) shrink() bool {
	if w.own == assuredWindow {
		return false
	}
	w.own, w.peer, w.shrunk = assuredWindow, assuredWindow, true
	w.trim()
	return true
}

// trim releases what is neither permitted nor under way.
func (w *sendWindow) trim() { trim(w.memory, &w.reserved, max(w.own, w.underWay)) }

// release releases all memory.
func (w *sendWindow) release() { trim(w.memory, &w.reserved, 0) }

// receiveWindow bounds the bytes that the far side has under way. Make it with
// newReceiveWindow.
//
// The window grows when it limits the rate. To detect this, it measures trips. A trip
// begins with a CREDIT and ends when the first byte arrives that this CREDIT permitted.
// The bytes that arrive during a trip were permitted before it. If the far side waits for
// credit, the rate during a trip is lower than the average rate. If the far side, the
// path or the application limits the rate, both rates are equal.
type receiveWindow struct {
	memory   Memory
	window   int
	peerOwn  int   // how much the far side permits itself
	received int64 // bytes that have come
	limit    int64 // received may not exceed it
	taken    int64 // bytes that the application has taken
	credited int64 // of these, those that the far side knows of
	reserved int   // of memory, beyond assuredWindow
	answer   bool  // the far side has shrunk its window, and CREDIT must acknowledge it

	epoch      time.Time // when the measured window began; zero: not yet
	epochTaken int64     // taken at that time
	// tripStart is when the current trip began, or zero if there is none. At that time
	// tripBytes were permitted and had not arrived. The trip ends when received exceeds
	// tripLimit. tripRate is the rate of the last trip, in bytes per second.
	tripStart            time.Time
	tripBytes, tripLimit int64
	tripRate             float64
	// shortestTrip is the shortest trip so far, or zero before the first one. No trip is
	// shorter than a round trip.
	shortestTrip time.Duration
}

const (
	// A window below cheapWindow that the application takes within fastWindow also grows,
	// because larger windows need fewer CREDITs. A larger window grows only if the far
	// side waits for credit, because it takes more of the processor's cache.
	fastWindow  = 5 * time.Millisecond
	cheapWindow = 1 << 20
	// slowWindow is the longest time in which the application may take a window for that
	// window to grow. A slower direction must not reserve much memory, and longer round
	// trips are rare.
	slowWindow = 500 * time.Millisecond
	// waitFactor is by how much the average rate must exceed the rate of a trip for the
	// window to count as the limit.
	waitFactor = 1.05
	// farFactor is by how much it must exceed it for the far side to wait most of the time.
	farFactor = 2
	// maxUncredited bounds what is taken before CREDIT at the largest window.
	maxUncredited = 512 << 10
)

// newReceiveWindow returns the window of an exchange that begins.
func newReceiveWindow(memory Memory) receiveWindow {
	return receiveWindow{
		memory:  memory,
		window:  assuredWindow,
		peerOwn: assuredWindow,
		limit:   assuredWindow,
	}
}

// receive records n bytes of DATA that have come.
func (w *receiveWindow) receive(n int, now func() time.Time) error {
	if w.received += int64(n); w.received > w.limit {
		return fmt.Errorf("%d bytes more than permitted: %w", w.received-w.limit, ErrFlowControl)
	}
	if w.epoch.IsZero() {
		w.epoch = now()
	}
	if !w.tripStart.IsZero() && w.received > w.tripLimit {
		trip := now().Sub(w.tripStart)
		w.tripRate = float64(w.tripBytes) / trip.Seconds()
		if w.tripStart = (time.Time{}); w.shortestTrip == 0 || trip < w.shortestTrip {
			w.shortestTrip = trip
		}
	}
	return nil
}

// onOwn records own, which is how much the far side permits itself. If own has become
// smaller, the window shrinks at once, because the far side obeys own from this frame on.
func (w *receiveWindow) onOwn(own int) {
	if own < w.peerOwn {
		w.window, w.answer = assuredWindow, true
		w.limit = max(w.received, w.credited+assuredWindow)
		w.trim()
	}
	w.peerOwn = own
}

// due reports whether CREDIT must be sent: when the application has taken almost half of
// the window, or almost half of what the far side permits itself if that is less. For the
// largest window the limit is maxUncredited. The application takes whole records, so
// CREDIT is due one record before the half. Otherwise a sender that has used its window
// could lack a few bytes of credit and wait for a round trip.
func (w *receiveWindow) due() bool {
	return w.answer || w.taken-w.credited >= creditAt(min(w.window, w.peerOwn))
}

func creditAt(window int) int64 {
	if window == MaxWindow {
		return maxUncredited
	}
	return int64(window/2 - maxRecord)
}

// credit returns what CREDIT says about this direction, and takes it as sent.
func (w *receiveWindow) credit(now time.Time) (taken, window uint32) {
	if n := w.taken - w.epochTaken; n >= 2*creditAt(w.window) {
		if factor := w.growth(n, now.Sub(w.epoch)); factor > 1 && !w.answer {
			w.grow(factor)
		}
		w.epoch, w.epochTaken = now, w.taken
	}
	if left := w.limit - w.received; w.tripStart.IsZero() && left > 0 {
		w.tripStart, w.tripBytes, w.tripLimit = now, left, w.limit
	}
	w.answer = false
	taken = uint32(w.taken - w.credited)
	w.credited = w.taken
	w.limit = max(w.received, w.credited+int64(w.window))
	w.trim()
	return taken, uint32(w.window)
}

// growth returns by which factor the window should grow, after n bytes of it were taken
// within a time. It is 1 if the window neither limits the rate nor is too small to be
// cheap. A window below cheapWindow grows faster if the far side waits for credit most of
// the time. Otherwise a new connection over a long path would be slower than TCP permits.
func (w *receiveWindow) growth(n int64, within time.Duration) int {
	switch {
	case within <= fastWindow && w.window < cheapWindow:
		return 2
	case w.tripRate == 0 || within > slowWindow:
		return 1
	}
	switch faster := float64(n) / within.Seconds() / w.tripRate; {
	case faster > farFactor && w.window < cheapWindow && w.shortestTrip >= fastWindow:
		return 4
	case faster > waitFactor:
		return 2
	}
	return 1
}

// grow enlarges the window by a factor, or by half of it if the far side permits itself
// too little or if the memory budget is used up. It may then do nothing.
func (w *receiveWindow) grow(factor int) {
	for ; factor > 1; factor /= 2 {
		more := max(0, factor*w.window-assuredWindow-w.reserved)
		if factor*w.window <= min(MaxWindow, 4*w.peerOwn) && w.memory.Reserve(more) {
			w.window *= factor
			w.reserved += more
			return
		}
	}
}

// end records that the far side sends no more.
func (w *receiveWindow) end() {
	w.window, w.limit = assuredWindow, w.received
	w.trim()
}

// trim releases what the far side can no longer use.
func (w *receiveWindow) trim() {
	trim(w.memory, &w.reserved, max(w.window, int(w.limit-w.taken)))
}

// release releases all memory.
func (w *receiveWindow) release() { trim(w.memory, &w.reserved, 0) }

// trim releases the memory that a window of need bytes does not use. The first
// assuredWindow bytes of a window are never reserved.
func trim(memory Memory, reserved *int, need int) {
	if more := *reserved - max(0, need-assuredWindow); more > 0 {
		memory.Release(more)
		*reserved -= more
	}
}
