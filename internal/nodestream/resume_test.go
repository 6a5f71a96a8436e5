package nodestream

import (
	"context"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/causeway-mesh/causeway/internal/bubble"
)

// countDials makes w's client count its connections.
func (w *world) countDials() *int {
	n := 0
	w.co.Dial = func(ctx context.Context, _ string) (net.Conn, error) {
		n++
		return w.ln.DialContext(ctx)
	}
	return &n
}

func TestStreamIsResumed(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		dials := w.countDials()
		states := 0
		w.co.OnState = func(View) { states++ }
		w.serve()
		v := w.publish(Gateways, upstream("a", "1:1"))
		c := w.client()
		wantState(t, "first", c, v)
		bubble.Pass(31 * time.Minute)
		if n := lost(c, lostEnded); n < 1 || n > 2 {
			t.Fatalf("%v streams ended in 31 min, want 1 or 2", n)
		}
		if got, want := testutil.ToFloat64(w.server.metrics.resumed), lost(c, lostEnded); got != want {
			t.Errorf("%v of %v streams were resumed", got, want)
		}
		if *dials != 1 || states != 1 {
			t.Errorf("a resumed stream needs no connection and no snapshot: %d connections, %d states",
				*dials, states)
		}
		wantState(t, "change on a resumed stream", c, w.publish(Gateways, upstream("b", "1:1")))
		if states != 2 || c.Age() > 5*time.Second {
			t.Errorf("after a change there were %d states, and the age is %v", states, c.Age())
		}
		bubble.Pass(3 * time.Hour)
		if *dials < 2 {
			t.Error("a client must connect again some time, so that clients spread over the replicas")
		}
	})
}

func TestParking(t *testing.T) {
	n1 := Subject{Role: RoleAgent, Node: "n1", PodUID: "pod"}
	cases := map[string]struct {
		why      string
		do       func(h *Hub, p *parking, src *source)
		subject  Subject
		received uint64
		resumed  bool
	}{
		"resumed": {why: "this is the usual case", subject: n1, received: 3, resumed: true},
		"another pod": {
			why:      "a token must not give access",
			subject:  Subject{Role: RoleAgent, Node: "n1", PodUID: "other"},
			received: 3,
		},
		"another node": {
			why:      "a token must not give access",
			subject:  Subject{Role: RoleAgent, Node: "n2", PodUID: "pod"},
			received: 3,
		},
		"an Update is missing": {why: "the client would lack what was in it", subject: n1, received: 2},
		"in time": {
			why: "clients reconnect within seconds", subject: n1, received: 3, resumed: true,
			do: func(*Hub, *parking, *source) { bubble.Pass(parkTime - 1) },
		},
		"too late": {
			why: "a source that is not read keeps tombstones", subject: n1, received: 3,
			do: func(*Hub, *parking, *source) { bubble.Pass(parkTime); synctest.Wait() },
		},
		"node removed": {
			why: "the source reads a scope that is gone", subject: n1, received: 3,
			do: func(h *Hub, _ *parking, _ *source) { h.RemoveNode("n1"); h.AddNode("n1") },
		},
		"resumed already": {
			why: "two streams must not share a source", subject: n1, received: 3,
			do: func(_ *Hub, p *parking, src *source) { p.take(src.token, n1, 3) },
		},
		"stopped": {
			why: "a server that stops closes its sources", subject: n1, received: 3,
			do: func(_ *Hub, p *parking, _ *source) { p.clear() },
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := NewHub()
				h.SetReady()
				h.AddNode("n1")
				if err := h.Apply(Change{Scope: Node("n1"), Resource: upstream("a", "1:1")}); err != nil {
					t.Fatal(err)
				}
				src, err := h.open(n1.scopes())
				if err != nil {
					t.Fatal(err)
				}
				src.sent = 3
				var p parking
				defer p.clear()
				if !p.put(src, n1, 1) {
					t.Fatal("there is room for one source")
				}
				if p.put(&source{token: []byte("another")}, n1, 1) {
					t.Error("there is room for one source only")
				}
				if tc.do != nil {
					tc.do(h, &p, src)
				}
				if got := p.take(src.token, tc.subject, tc.received); (got == src) != tc.resumed {
					t.Errorf("%s: resumed %v, want %v", tc.why, got == src, tc.resumed)
				}
			})
		})
	}
}
