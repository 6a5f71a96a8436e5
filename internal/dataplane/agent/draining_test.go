package agent

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
)

// sendDrainNotice sends east's agent the notice of a gateway, and waits until the agent
// has it.
func (w *harness) sendDrainNotice(key route.HopKey) {
	w.Helper()
	c := w.dialHop()
	from, to := netip.MustParseAddrPort(c.LocalAddr().String()), netip.MustParseAddrPort(c.RemoteAddr().String())
	c.Write(must(route.MarshalDraining(key, from, to, time.Now()))(w.TB))
	c.CloseWrite()
	c.Read(make([]byte, 1))
	c.Close()
}

// TestDrainNoticeReachesSessionsBeingAccepted: the notice of a gateway may arrive while
// the agent accepts a session through it. The client can already have the answer to HELLO
// then.
func TestDrainNoticeReachesSessionsBeingAccepted(t *testing.T) {
	gateway, other := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	var conns inboundConns
	in, elsewhere, rejected := &inboundConn{from: gateway}, &inboundConn{from: other}, &inboundConn{from: gateway}
	for _, in := range []*inboundConn{in, elsewhere, rejected} {
		conns.accept(in)
	}
	conns.reject(rejected)
	conns.drainVia(gateway)
	if !in.retiring.Load() || elsewhere.retiring.Load() || rejected.retiring.Load() {
		t.Errorf("retiring: %v, want true; by another gateway: %v; rejected: %v", in.retiring.Load(), elsewhere.retiring.Load(), rejected.retiring.Load())
	}
	if len(conns.accepting) != 2 {
		t.Errorf("%d sessions are being accepted, want 2", len(conns.accepting))
	}
}

// Sessions leave a gateway that drains between two exchanges, and nothing is lost: no
// open exchange, and no OPEN that is on its way.
func TestSessionsLeaveDrainingGateway(t *testing.T) {
	session := func(t *testing.T, w *harness) *tunnel.Conn {
		s := must(w.dialSession(w.newHopClient()))(t)
		must(s.ExchangeHello(t.Context(), barHello))(t)
		if err := s.OpenNext(t.Context(), 0, []byte("hello")); err != nil {
			t.Fatal(err)
		}
		return s
	}
	ended := func(t *testing.T, s *tunnel.Conn) {
		t.Helper()
		if _, _, err := s.Next(); err != io.EOF {
			t.Errorf("%v, want close_notify", err)
		}
		transport.RawOf(s).Reset()
	}
	t.Run("idle", func(t *testing.T) {
		w := newHarness(t, echo)
		s := session(t, w)
		exchange(t, s)
		eventually(t, "it waits", func() bool { return w.east.waiting.Load() == 1 })
		w.sendDrainNotice(w.eastTrust.hop)
		ended(t, s)
	})
	t.Run("in an exchange", func(t *testing.T) {
		w := newHarness(t, echo)
		s := session(t, w)
		w.sendDrainNotice(w.eastTrust.hop)
		exchange(t, s)
		ended(t, s)
	})
	t.Run("before its first OPEN", func(t *testing.T) {
		w := newHarness(t, echo)
		s := must(w.dialSession(w.newHopClient()))(t)
		must(s.ExchangeHello(t.Context(), barHello))(t)
		w.sendDrainNotice(w.eastTrust.hop)
		if err := s.OpenNext(t.Context(), 0, []byte("hello")); err != nil {
			t.Fatalf("an OPEN that was on its way: %v", err)
		}
		exchange(t, s)
		ended(t, s)
	})
	t.Run("but not by a stranger's word", func(t *testing.T) {
		w := newHarness(t, echo)
		s := session(t, w)
		exchange(t, s)
		w.sendDrainNotice(route.HopKey{1, 2, 3})
		if err := s.OpenNext(t.Context(), 0, []byte("hello")); err != nil {
			t.Fatal(err)
		}
		exchange(t, s)
		s.Close()
		w.wantRefusal(w.east, inbound, "header_bad_mac")
	})
}

// A whole gateway drains: callers notice nothing, whose calls go by what the other has
// made.
func TestCallsLeaveDrainingGateway(t *testing.T) {
	w := newHarnessAfterCall(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	drained := make(chan struct{})
	go func() { defer close(drained); w.gateway.AnnounceDrain(ctx) }()
	eventually(t, "idle sessions have ended", func() bool { return w.healthySessions() == 0 })
	for range 10 {
		if answer, err := w.call(alice, "hello"); err != nil || answer != "you said hello" {
			t.Fatalf("%q, %v", answer, err)
		}
	}
	cancel()
	<-drained
}

// An agent that drains resets nothing before its drain period is over, and waits no longer
// than connections are open.
func TestAgentAwaitsOpenConnections(t *testing.T) {
	const period = time.Minute
	for name, tc := range map[string]struct {
		lasts, want time.Duration
		cause       error
		logged      int
	}{
		"within the drain period": {period - 1, period - 1, nil, 0},
		"longer":                  {time.Hour, period, transport.ErrDrained, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log := &logBuffer{}
				a := New(t.Context(), failing, slog.New(slog.NewJSONHandler(log, nil)), prometheus.NewRegistry())
				a.drain = period
				ctx, reset := context.WithCancelCause(t.Context())
				var open sync.WaitGroup
				var cause error
				open.Go(func() {
					select {
					case <-ctx.Done():
					case <-time.After(tc.lasts):
					}
					cause = context.Cause(ctx)
				})
				start := time.Now()
				a.drainConnections(&open, reset)
				if took := time.Since(start); took != tc.want || cause != tc.cause {
					t.Errorf("it waited %v and the connection ended by %v, want %v and %v", took, cause, tc.want, tc.cause)
				}
				if n := len(log.all(drainedMessage, "connections")); n != tc.logged {
					t.Errorf("%d messages about connections that were reset, want %d", n, tc.logged)
				}
			})
		})
	}
}

const drainedMessage = "drain period is over, open connections were reset"

// Connections that outlast the drain period of an agent are reset. This agent counts them
// as drained, and logs how many they were, because Prometheus cannot read the metrics of a
// process that has ended. The other agent counts them as reset.
func TestAgentResetsWhatOutlastsItsDrain(t *testing.T) {
	for i, side := range []struct{ name, direction, link string }{
		{"caller's agent", outbound, "east"},
		{"called agent", inbound, "west"},
	} {
		t.Run(side.name, func(t *testing.T) {
			w := newHarness(t, echoLines)
			var callers []*net.TCPConn
			for _, pod := range []string{alice, alice, bob} {
				c := w.dial(pod)
				must(io.WriteString(c, "x"))(t)
				must(io.ReadFull(c, make([]byte, 1)))(t)
				callers = append(callers, c)
			}
			agents := [2]*Agent{w.west, w.east}
			a, other := agents[i], agents[1-i]
			a.drain = 50 * time.Millisecond
			w.stop()
			w.accepting.Wait()
			a.stopAccepting()
			a.sessions.Close()
			a.drainConnections(&w.open, w.reset[i])
			for _, c := range callers {
				_, err := c.Read(make([]byte, 1))
				wantReset(t, "caller", err)
			}
			n := testutil.ToFloat64(a.metrics.ends.WithLabelValues(side.direction, side.link, "drained"))
			if n != 3 || other.metrics.drained.Load() != 0 {
				t.Errorf("%v connections are counted as drained, and %d by the other agent, want 3 and 0", n, other.metrics.drained.Load())
			}
			if got := w.logs[i].all(drainedMessage, "connections"); len(got) != 1 || got[0] != "3" {
				t.Errorf("logged %q, want 3 connections", got)
			}
		})
	}
}
