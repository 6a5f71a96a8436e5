package nodestream

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

func TestAsk(t *testing.T) {
	cases := map[string]struct {
		why string
		// answer is how the agent answers; nil: its version does not answer questions.
		answer func(context.Context) *wire.ReportRequest
		// body: the answer arrives, after took.
		body bool
		took time.Duration
	}{
		"answered": {
			why:    "an agent that has a stream answers",
			answer: func(context.Context) *wire.ReportRequest { return &wire.ReportRequest{StateAgeMs: 7} },
			body:   true,
		},
		"an older agent": {why: "a missing answer is reported in bounded time", took: 3 * time.Second},
		"a slow agent": {
			why: "the operator does not wait forever",
			answer: func(ctx context.Context) *wire.ReportRequest {
				<-ctx.Done()
				return &wire.ReportRequest{}
			},
			took: 3 * time.Second,
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T, w *world) {
				w.co.OnQuestion, w.co.Version = tc.answer, "v1"
				w.publish(Node("n1"))
				w.setToken("agent/n1")
				w.serve()
				w.client()
				bubble.Pass(time.Second)
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
				defer cancel()
				start := time.Now()
				got, err := w.server.Ask(ctx)
				if err != nil || len(got) != 1 || got[0].Node != "n1" || got[0].Version != "v1" ||
					(got[0].Body != nil) != tc.body {
					t.Fatalf("%s: got %+v", tc.why, got)
				}
				if tc.body && got[0].Body.GetStateAgeMs() != 7 {
					t.Errorf("%s: got %v", tc.why, got[0].Body)
				}
				if took := time.Since(start); took != tc.took {
					t.Errorf("%s: it took %v, want %v", tc.why, took, tc.took)
				}
			})
		})
	}
}

// TestReportRefused covers gateways, which get no questions, and unsolicited reports.
func TestReportRefused(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.co.OnQuestion = func(context.Context) *wire.ReportRequest { return &wire.ReportRequest{} }
		w.publish(Gateways)
		w.publish(Node("n1"))
		w.serve()
		c := w.client()
		bubble.Pass(time.Second)
		if got, err := w.server.Ask(t.Context()); err != nil || len(got) != 0 {
			t.Errorf("a gateway was asked: %+v", got)
		}
		conn, err := c.connection("controller.test")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		report := func(question uint64) codes.Code {
			_, err := wire.NewNodeStreamClient(conn).Report(t.Context(),
				&wire.ReportRequest{Question: question})
			return status.Code(err)
		}
		if got := report(1); got != codes.PermissionDenied || w.refused(refusedRole) != 1 {
			t.Errorf("a gateway reports: %v", got)
		}
		w.setToken("agent/n1")
		if got := report(1); got != codes.FailedPrecondition || w.refused(refusedReport) != 1 {
			t.Errorf("an unsolicited report: %v", got)
		}
		for why, long := range map[string]*wire.ReportRequest{
			"more addresses than any node dials": {Reaches: make([]*wire.Reach, maxReaches+1)},
			"more probes than any node makes": {
				Reaches: []*wire.Reach{{Probes: make([]*wire.PathProbe, maxProbes+1)}},
			},
			"more faults than a node can have": {Faults: make([]string, maxFaults+1)},
			"a fault that is too long":         {Faults: []string{strings.Repeat("x", maxFault+1)}},
			"more unusable Links than a report lists": {
				Unusable: make([]*wire.UnusableLink, maxUnusable+1),
			},
			"an error that is too long": {
				Unusable: []*wire.UnusableLink{{Error: strings.Repeat("x", maxFault+1)}},
			},
		} {
			if bounded(long) {
				t.Errorf("%s is accepted", why)
			}
		}
	})
}

// TestQuestionsTakeTurns asks two questions at once: each gets its own answers.
func TestQuestionsTakeTurns(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		asked := 0
		w.co.OnQuestion = func(ctx context.Context) *wire.ReportRequest {
			asked++
			bubble.Pass(time.Second)
			return &wire.ReportRequest{}
		}
		w.publish(Node("n1"))
		w.setToken("agent/n1")
		w.serve()
		w.client()
		bubble.Pass(time.Second)
		answered := make(chan int, 2)
		for range 2 {
			w.tasks.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				n := 0
				reports, err := w.server.Ask(ctx)
				if err != nil {
					t.Error(err)
				}
				for _, r := range reports {
					if r.Body != nil {
						n++
					}
				}
				answered <- n
			})
		}
		if a, b := <-answered, <-answered; a != 1 || b != 1 {
			t.Errorf("got %d and %d answers of one agent, want one each", a, b)
		}
		synctest.Wait()
		if asked != 2 {
			t.Errorf("the agent was asked %d times, want twice", asked)
		}
	})
}
