package agent

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/podid"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// wait waits for longer than the kernel's clock for sockets is inaccurate.
func (w *harness) wait() {
	w.Helper()
	start := time.Now()
	eventually(w.TB, "time passes", func() bool { return time.Since(start) > 100*time.Millisecond })
}

// takeAddress takes alice's address from her pod, and giveAddress gives it to a pod.
func (w *harness) takeAddress() {
	w.Helper()
	w.change(&w.westView, "pod/alice-0", func(r *wire.Resource) { r.GetPod().Ips = nil })
}

func (w *harness) giveAddress(pod string) {
	w.Helper()
	w.change(&w.westView, "pod/"+pod, func(r *wire.Resource) { r.GetPod().Ips = []string{alice} })
}

// A connection that waits while its pod goes, and another pod gets the address, belongs
// to neither: not to the pod that is gone, and least of all to its heir.
func TestNewOwnerOfAddressGetsNoOldConnection(t *testing.T) {
	w := newHarness(t, echo)
	w.nodes[0].check.Store(callerCheck{
		lastReceived: transport.LastReceived,
		awaitSegment: func(context.Context, *net.TCPConn, time.Time) error { // as the heir's kernel answers
			return transport.ErrConnectionGone
		},
	})
	w.takeAddress()
	c := w.dial(alice)
	io.WriteString(c, "from alice")
	c.CloseWrite()
	w.wait()
	w.giveAddress("bob-0")
	answer, err := io.ReadAll(c)
	wantReset(t, "alice's connection, answered "+string(answer), err)
	w.wantRefusal(w.west, outbound, reasonStale)
	if n := w.dials.Load(); n != 0 {
		t.Error("the app got a connection of a pod that is gone")
	}
}

// The pod that made the connection answers for itself, also after it has sent its FIN.
// The kernel's own probe and answer are used.
func TestRecordNewerThanConnectionNeedsProbe(t *testing.T) {
	for name, half := range map[string]bool{"open": false, "half-closed": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newHarness(t, echo)
			w.nodes[0].check.Store(kernelCheck)
			w.takeAddress()
			c := w.dial(alice)
			io.WriteString(c, "from alice")
			if half {
				c.CloseWrite()
			}
			w.wait()
			w.giveAddress("alice-0")
			if !half {
				eventually(t, "the app is dialed", func() bool { return w.dials.Load() == 1 })
				c.CloseWrite()
			}
			if answer, err := io.ReadAll(c); err != nil || string(answer) != "you said from alice" {
				t.Errorf("answered %q, %v", answer, err)
			}
		})
	}
}

// Only connections that waited pay for a sign of life.
func TestRecordOlderThanConnectionNeedsNoProbe(t *testing.T) {
	w := newHarness(t, echo)
	w.nodes[0].check.Store(callerCheck{
		lastReceived: transport.LastReceived,
		awaitSegment: func(context.Context, *net.TCPConn, time.Time) error {
			t.Error("a sign of life is demanded")
			return transport.ErrNoAnswer
		},
	})
	w.wait()
	if answer, err := w.call(alice, "hello"); err != nil || answer != "you said hello" {
		t.Errorf("answered %q, %v", answer, err)
	}
}

// Each reason why an address stands for no pod is counted. Those that time alone may
// change are asked for again.
func TestPodLookupRefusal(t *testing.T) {
	cases := map[error]struct {
		reason string
		again  bool
	}{
		podid.ErrNoPod:          {reason: reasonUnknownCaller},
		podid.ErrSeveralPods:    {reason: reasonUnknownCaller},
		podid.ErrMoved:          {reason: reasonPodMoved, again: true},
		podid.ErrAmbiguous:      {reason: reasonAmbiguousPod, again: true},
		podid.ErrNotLocated:     {reason: reasonPodNotLocated, again: true},
		podid.ErrTooManyLookups: {reason: reasonTooManyLookups, again: true},
	}
	for err, want := range cases {
		r := podLookupRefusal(reasonUnknownCaller, fmt.Errorf("address 10.0.0.1: %w", err))
		if r.reason != want.reason || r.retry != want.again || r.final {
			t.Errorf("%v: reason %s, again %v, final %v", err, r.reason, r.retry, r.final)
		}
		if !slices.Contains(reasons(outbound), r.reason) {
			t.Errorf("%v: %s is not on the closed list", err, r.reason)
		}
	}
}

// The address may move while the sign of life is awaited.
func TestCallerIsResolvedAgainAfterProbe(t *testing.T) {
	w := newHarness(t, echo)
	w.nodes[0].check.Store(callerCheck{
		lastReceived: transport.LastReceived,
		awaitSegment: func(context.Context, *net.TCPConn, time.Time) error {
			w.nodes[0].find.Store(foundAt(bridge + 1))
			return nil
		},
	})
	w.takeAddress()
	c := w.dial(alice)
	io.WriteString(c, "from alice")
	w.wait()
	w.giveAddress("alice-0")
	_, err := io.ReadAll(c)
	wantReset(t, "the address is at another place now", err)
	w.wantRefusal(w.west, outbound, reasonPodMoved)
}
