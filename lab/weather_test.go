package lab

import (
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestTollHoldsUpForHalfARoundTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newToll(Weather{RTT: 60 * time.Millisecond})
		got := make(chan time.Duration, 3)
		start := time.Now()
		ctx := t.Context()
		go w.release(ctx, func([]byte) error { got <- time.Since(start); return nil })
		w.take([]byte("one"), time.Now())
		w.take([]byte("two"), time.Now())
		if first, second := <-got, <-got; first != 30*time.Millisecond || second != first {
			t.Errorf("packets came after %v and %v, want 30 ms", first, second)
		}
		w.take([]byte("three"), time.Now())
		if third := <-got; third != 60*time.Millisecond {
			t.Errorf("a packet taken after 30 ms came after %v, want 60 ms: the wait for none was not ended", third)
		}
	})
}

func TestTollLosesItsShare(t *testing.T) {
	w := newToll(Weather{Loss: 25})
	rolls := []float64{0.1, 0.25, 0.9, 0.2499}
	w.random = func() float64 { r := rolls[0]; rolls = rolls[1:]; return r }
	now := time.Now()
	for _, p := range []string{"lost", "kept", "kept too", "lost too"} {
		w.take([]byte(p), now)
	}
	packets, _ := w.due(now)
	if diff := cmp.Diff([][]byte{[]byte("kept"), []byte("kept too")}, packets); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestTollIsBounded(t *testing.T) {
	w := newToll(Weather{RTT: time.Second})
	now := time.Now()
	for range tollQueue + 10 {
		w.take(nil, now)
	}
	if packets, _ := w.due(now.Add(time.Second)); len(packets) != tollQueue {
		t.Errorf("%d packets were held up, want %d at most", len(packets), tollQueue)
	}
}

// brokenTun takes no packet back, and gives one.
type brokenTun struct{ io.ReadCloser }

func (brokenTun) Write([]byte) (int, error) { return 0, errors.New("broken") }

// A forwarder that can give no packet back must end: whoever looks for the process would take it for one that works.
func TestTollEndsWhenItCannotWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		device, kernel := net.Pipe()
		ended := make(chan error, 1)
		go func() { ended <- newToll(Weather{}).carry(t.Context(), brokenTun{device}) }()
		kernel.Write([]byte("a packet"))
		time.Sleep(time.Minute)
		select {
		case err := <-ended:
			if err == nil {
				t.Error("it ended as if all were well")
			}
		default:
			t.Error("after a minute it waits for packets that it cannot give back")
			device.Close()
			<-ended
		}
	})
}
