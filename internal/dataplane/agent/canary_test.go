package agent

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/netip"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/causeway-mesh/causeway/internal/canary"
)

// callCanary calls the canary's address from one of the node's own, and returns the
// agent's answer.
func callCanary(t *testing.T, w *harness, from string) canary.Answer {
	t.Helper()
	line := must(readCanary(t, w, from))(t)
	var a canary.Answer
	if err := json.Unmarshal(line, &a); err != nil || a.Protocol != canary.Protocol {
		t.Fatalf("the agent answers %q: %v", line, err)
	}
	return a
}

func readCanary(t *testing.T, w *harness, from string) ([]byte, error) {
	t.Helper()
	ln := listen(t, "127.78.0.1")
	ctx, stop := context.WithCancel(t.Context())
	w.serving.Go(func() {
		w.fail(w.west.serve(ctx, ctx, ln, &w.open, outbound, func(ctx context.Context, c *net.TCPConn) { w.west.serveOutbound(ctx, c, 0) }))
	})
	defer stop()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := d.DialContext(t.Context(), "tcp", ln.Addr().String())
	if err != nil {
		return nil, err // a reset may come before the dial has returned
	}
	defer c.Close()
	return io.ReadAll(c)
}

// The canary's address is no way around a pod's share of the agent's connections: who
// is not known is waited for.
func TestCanaryCallsUseSourceShare(t *testing.T) {
	w := newHarness(t, func(c *net.TCPConn) { c.Close() })
	for range defaultLimits.ConnectionsPerPod {
		leave, err := w.west.shares.acquireSource(netip.MustParseAddr(alice))
		if err != nil {
			t.Fatal(err)
		}
		defer leave()
	}
	line, err := readCanary(t, w, alice)
	if wantReset(t, "one more of alice's", err); len(line) > 0 {
		t.Errorf("she is told %q", line)
	}
	w.wantRefusal(w.west, outbound, reasonSourceShare)
	if a := callCanary(t, w, bob); a.UID == "" {
		t.Errorf("bob has all of his, and hears %+v", a)
	}
}

func TestCanary(t *testing.T) {
	w := newHarness(t, func(c *net.TCPConn) { c.Close() })
	if a := callCanary(t, w, alice); a.UID == "" || a.Refused != "" {
		t.Errorf("a pod is told who it is, got %+v", a)
	}
	if a := callCanary(t, w, "127.77.9.9"); a.UID != "" || a.Refused == "" {
		t.Errorf("who is no pod is told so, got %+v", a)
	}
	known, unknown := w.west.canaries.WithLabelValues("known"), w.west.canaries.WithLabelValues("unknown")
	if k, u := testutil.ToFloat64(known), testutil.ToFloat64(unknown); k != 1 || u != 1 {
		t.Errorf("each is counted: %v known, %v unknown", k, u)
	}
	if n := w.dials.Load(); n != 0 {
		t.Errorf("a canary goes nowhere, the application was dialled %d times", n)
	}
}
