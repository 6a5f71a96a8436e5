package agent

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// before puts a middlebox before the gateway and returns its address. It hands on a
// connection if admit, which gets the length of the first TLS record, says so.
func (w *harness) before(admit func(length int) bool) string {
	ln := listen(w.TB, "127.0.0.1")
	w.Cleanup(func() { ln.Close() })
	w.serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			w.serving.Go(func() { w.pass(c.(*net.TCPConn), admit) })
		}
	})
	return ln.Addr().String()
}

// pass hands one connection on, or resets it. It closes the connection.
func (w *harness) pass(c *net.TCPConn, admit func(length int) bool) {
	header := make([]byte, 5)
	if _, err := io.ReadFull(c, header); err != nil || !admit(int(binary.BigEndian.Uint16(header[3:]))) {
		transport.Reset(c)
		return
	}
	to, err := net.Dial("tcp", w.peers.Addr().String())
	if err != nil { // the world has ended, and a session is still being made ahead
		transport.Reset(c)
		return
	}
	transport.Splice(w.Context(), c, to.(*net.TCPConn), header) // closes both
}

// outline is what a path probe shows, for comparison.
func outline(probes []*wire.PathProbe) (out []string) {
	for _, p := range probes {
		segments, hello := "full", "short"
		if p.GetSmallSegments() {
			segments = "small"
		}
		if p.GetPostQuantum() {
			hello = "long"
		}
		line := fmt.Sprintf("%s segments, %s hello: %s", segments, hello, p.GetStage())
		if p.GetReceived() {
			line += ", received"
		}
		if p.GetTimedOut() {
			line += ", timed out"
		}
		out = append(out, line)
	}
	return out
}

func TestProbePath(t *testing.T) {
	for name, tc := range map[string]struct {
		why   string
		k     identity.KeyExchange
		admit func(length int) bool // nil: no middlebox
		edit  func(*harness)
		want  []string
	}{
		"good": {
			why:  "one probe proves everything",
			want: []string{"full segments, long hello: answered, received"},
		},
		"good, without the post-quantum key share": {
			why:  "a probe is as a call",
			k:    identity.Classical,
			want: []string{"full segments, short hello: answered, received"},
		},
		"a middlebox resets long hellos": {
			why:   "short ones pass it",
			admit: func(length int) bool { return length < 1400 },
			want: []string{
				"full segments, long hello: tls",
				"full segments, long hello: tls",
				"small segments, short hello: answered, received",
				"small segments, long hello: tls",
			},
		},
		"a middlebox resets long hellos, and there are none": {
			why:   "the chart's value helps",
			k:     identity.Classical,
			admit: func(length int) bool { return length < 1400 },
			want:  []string{"full segments, short hello: answered, received"},
		},
		"the gateway rejects the label": {
			why:  "that is no fault of the path",
			k:    identity.Classical,
			edit: func(w *harness) { w.edit(&w.gatewayView, "link/west", nil) },
			want: []string{
				"full segments, short hello: tls, received",
				"full segments, short hello: tls, received",
				"small segments, short hello: tls, received",
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newHarness(t, echo, func(w *harness) { w.west.keyExchange = tc.k })
			w.awaitProbes()
			address := w.peers.Addr().String()
			if tc.admit != nil {
				address = w.before(tc.admit)
			}
			if tc.edit != nil {
				tc.edit(w)
				w.push()
			}
			s := must(w.west.current())(t)
			got := w.west.probePath(t.Context(), s.links["east"], address)
			if diff := cmp.Diff(tc.want, outline(got)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tc.why, diff)
			}
			for _, p := range got {
				if (p.GetStage() == "answered") != (p.GetError() == "") {
					t.Errorf("%v: want an error if and only if it failed", p)
				}
			}
		})
	}
}

// Calls offer what the chart's value says.
func TestCallsUseTheConfiguredKeyExchange(t *testing.T) {
	w := newHarness(t, echo, func(w *harness) { w.west.keyExchange = identity.Classical })
	address := w.before(func(length int) bool { return length < 1400 })
	w.edit(&w.westView, "link/east", func(r *wire.Resource) { r.GetLink().Gateways[0].Address = address })
	w.push()
	if got, err := w.call(alice, "hello"); got != "you said hello" || err != nil {
		t.Errorf("a call through a middlebox that resets long hellos: %q, %v", got, err)
	}
}

// What an operator's question dials are the addresses of the state, and no others.
func TestCheckGateways(t *testing.T) {
	w := newHarness(t, func(c *net.TCPConn) { c.Close() })
	w.awaitProbes()
	got := w.west.checkGateways(t.Context())
	if len(got) != 1 || got[0].Link != "east" || got[0].Error != "" || got[0].Address != w.peers.Addr().String() {
		t.Fatalf("west has one peer with one gateway, which answers; got %v", got)
	}
	want := []string{"full segments, long hello: answered, received"}
	if diff := cmp.Diff(want, outline(got[0].Probes)); diff != "" {
		t.Errorf("probes (-want +got):\n%s", diff)
	}
}

// TestDialTestsEndInTime: a controller waits 5 s for a report. What takes longer is
// left out of it, so that many dead addresses do not hide everything else.
func TestDialTestsEndInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &Agent{dialer: transport.Dialer{Dial: func(ctx context.Context, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}}}
		dead := &peer{name: "east"}
		for i := range maxGatewayChecks {
			dead.gateways = append(dead.gateways, fmt.Sprintf("192.0.2.%d:4143", i))
		}
		a.state.Store(&state{links: map[string]*peer{"east": dead}})
		start := time.Now()
		got := a.checkGateways(t.Context())
		if took := time.Since(start); took != allReaches {
			t.Errorf("it took %v, want %v", took, allReaches)
		}
		if want := 3 * gatewayChecksAtOnce; len(got) != want {
			t.Errorf("%d addresses are reported, want those of three rounds: %d", len(got), want)
		}
		for _, r := range got {
			if r.GetError() == "" {
				t.Errorf("%s is reported as reached", r.GetAddress())
			}
		}
	})
}
