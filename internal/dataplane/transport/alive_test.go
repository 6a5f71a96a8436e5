package transport

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestLastReceived(t *testing.T) {
	start := time.Now()
	near, far := pair(t)
	opened, err := LastReceived(near)
	if err != nil || opened.Before(start.Add(-3*clockTick)) || opened.After(time.Now()) {
		t.Errorf("after the handshake: %v, %v, want about now", opened.Sub(start), err)
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for last := opened; !last.After(opened); <-tick.C {
		if time.Since(start) > testTimeout {
			t.Fatal("data does not count as received")
		}
		far.Write([]byte("x"))
		if last, err = LastReceived(near); err != nil || last.After(time.Now()) {
			t.Fatalf("after data: %v, %v", last, err)
		}
	}
	near.Close()
	if _, err := LastReceived(near); err == nil {
		t.Error("a closed connection has received something")
	}
}

func TestLastByte(t *testing.T) {
	near, far := pair(t)
	want := func(why string, received bool) {
		t.Helper()
		at, err := LastByte(near, time.Now())
		late := received && time.Since(at) > testTimeout
		if err != nil || at.IsZero() == received || at.After(time.Now()) || late {
			t.Errorf("%s: %v, %v", why, at, err)
		}
	}
	want("a handshake brings no byte", false)
	far.CloseWrite()
	if _, err := near.Read(make([]byte, 1)); err != io.EOF {
		t.Fatal(err)
	}
	want("an end is no byte", false)
	near, far = pair(t)
	far.Write([]byte("ab"))
	if _, err := io.ReadFull(near, make([]byte, 2)); err != nil {
		t.Fatal(err)
	}
	want("data", true)
	near.Close()
	if _, err := LastByte(near, time.Now()); err == nil {
		t.Error("a closed connection has received something")
	}
}

func TestAwaitSegment(t *testing.T) {
	cases := map[string]struct {
		why  string
		do   func(t *testing.T, near, far *net.TCPConn)
		want error
	}{
		"open": {
			why: "the kernel of a live process acknowledges the probe",
			do:  func(*testing.T, *net.TCPConn, *net.TCPConn) {},
		},
		"half-closed": {
			why: "it does so after the process has sent its FIN",
			do:  func(_ *testing.T, _, far *net.TCPConn) { far.CloseWrite() },
		},
		"closed": {
			why: "and after the process has ended, while the connection is not",
			do:  func(_ *testing.T, _, far *net.TCPConn) { far.Close() },
		},
		"unknown there": {
			why:  "the kernel of a pod that got the address later does not know the connection",
			want: ErrConnectionGone,
			do: func(t *testing.T, near, far *net.TCPConn) {
				undo := dropPackets(t, near)
				Reset(far) // near does not receive the reset
				undo()
			},
		},
		"silent": {
			why:  "a host that answers nothing proves nothing",
			want: ErrNoAnswer,
			do:   func(t *testing.T, near, _ *net.TCPConn) { dropPackets(t, near) },
		},
		"reset before": {
			why:  "the caller has gone",
			want: ErrConnectionGone,
			do:   func(_ *testing.T, _, far *net.TCPConn) { Reset(far) },
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			near, far := pair(t)
			tc.do(t, near, far)
			// From here on only the answer to a probe counts.
			start := time.Now().Add(2 * clockTick)
			err := AwaitSegment(t.Context(), near, start)
			if !errors.Is(err, tc.want) {
				t.Errorf("%s: got %v, want %v", tc.why, err, tc.want)
			}
			if took := time.Since(start); took > segmentTimeout+time.Second {
				t.Errorf("it took %v", took)
			}
			if tc.want == nil {
				wantTuned(t, near)
			}
		})
	}
}

func TestAwaitSegmentEnds(t *testing.T) {
	near, _ := pair(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := AwaitSegment(ctx, near, time.Now().Add(time.Hour)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	near.Close()
	if err := AwaitSegment(t.Context(), near, time.Now()); err == nil {
		t.Error("a closed connection is alive")
	}
}

// dropPackets makes the kernel drop what comes for c, until undo is called.
func dropPackets(t *testing.T, c *net.TCPConn) (undo func()) {
	t.Helper()
	all := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
	err := control(c, func(fd int) error {
		return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: 1, Filter: &all[0]})
	})
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		err := control(c, func(fd int) error {
			return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
