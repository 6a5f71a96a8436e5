package vipguard

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-mesh/causeway/internal/bubble"
)

// fakeGate is a gate that writes down when it was moved.
type fakeGate struct {
	start time.Time
	moves []string
	fail  int // the next so many moves
}

func (r *fakeGate) move(what string) error {
	what += " at " + time.Since(r.start).String()
	if r.fail > 0 {
		r.fail--
		r.moves = append(r.moves, what+" failed")
		return errors.New("broken")
	}
	r.moves = append(r.moves, what)
	return nil
}

func (r *fakeGate) listen() error   { return r.move("listen") }
func (r *fakeGate) shutdown() error { return r.move("shut") }

func TestSupervisor(t *testing.T) {
	type step struct {
		after  time.Duration
		change presence // added to what is
	}
	agent, noAgent := presence{agents: 1}, presence{agents: -1}
	cases := map[string]struct {
		why   string
		begin presence
		fail  int
		steps []step
		moves []string
	}{
		"no agent ever": {
			why:   "callers of a node without an agent must not hang",
			moves: []string{"shut at 10s"},
		},
		"agent in time": {
			why:   "nothing is lost while an agent starts",
			steps: []step{{10*time.Second - 1, agent}},
			moves: []string{"listen at 9.999999999s"},
		},
		"agent restarts in time": {
			why:   "a crash of the agent must not lose queued callers",
			steps: []step{{time.Second, agent}, {time.Second, noAgent}, {10*time.Second - 1, agent}},
			moves: []string{"listen at 1s", "listen at 11.999999999s"},
		},
		"agent gone": {
			why:   "10 s from its going, not from the start",
			steps: []step{{15 * time.Second, agent}, {15 * time.Second, noAgent}},
			moves: []string{"shut at 10s", "listen at 15s", "shut at 40s"},
		},
		"flapping agent": {
			why: "each going starts the wait anew",
			steps: []step{
				{time.Second, agent}, {time.Second, noAgent}, {9 * time.Second, agent}, {time.Second, noAgent},
			},
			moves: []string{"listen at 1s", "listen at 11s", "shut at 22s"},
		},
		"newer guard serves": {
			why:   "the listeners are shared: shutting ours shuts the newer guard's",
			begin: presence{agents: 1},
			steps: []step{{time.Second, presence{newer: 1}}, {time.Second, noAgent}},
		},
		"newer guard dies": {
			why:   "who is left must refuse callers",
			begin: presence{agents: 1},
			steps: []step{{time.Second, presence{newer: 1}}, {time.Second, noAgent}, {20 * time.Second, presence{newer: -1}}},
			moves: []string{"shut at 32s"},
		},
		"older guard serves": {
			why:   "a new guard whose agent is not up yet has no say",
			begin: presence{older: 1},
			steps: []step{{30 * time.Second, agent}},
			moves: []string{"listen at 30s"},
		},
		"older guard goes before our agent comes": {
			why:   "then nobody else would refuse callers",
			begin: presence{older: 1},
			steps: []step{{30 * time.Second, presence{older: -1}}},
			moves: []string{"shut at 40s"},
		},
		"revival fails": {
			why: "it is tried again", fail: 2,
			begin: presence{older: 1},
			steps: []step{{time.Second, agent}},
			moves: []string{"listen at 1s failed", "listen at 2s failed", "listen at 3s"},
		},
		"shutting down fails": {
			why: "it is tried again", fail: 1,
			moves: []string{"shut at 10s failed", "shut at 11s"},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				gate := &fakeGate{start: time.Now(), fail: tc.fail}
				k := &supervisor{
					gate: gate, grace: 10 * time.Second, log: slog.New(slog.DiscardHandler),
					updates: make(chan func(*presence)), onChange: func(presence) {}, onMove: func(error) {},
				}
				done := make(chan struct{})
				go func() { k.run(ctx, tc.begin); close(done) }()
				for _, s := range tc.steps {
					bubble.Pass(s.after)
					k.update(ctx, func(p *presence) {
						p.agents += s.change.agents
						p.newer += s.change.newer
						p.older += s.change.older
					})
				}
				bubble.Pass(time.Minute)
				cancel()
				<-done
				if diff := cmp.Diff(tc.moves, gate.moves); diff != "" {
					t.Errorf("%s (-want +got):\n%s", tc.why, diff)
				}
			})
		})
	}
}

// Of guards that know each other exactly one is in charge.
func TestOneGuardIsInCharge(t *testing.T) {
	for _, oldAgent := range []int{0, 1} {
		for _, newAgent := range []int{0, 1} {
			older := presence{agents: oldAgent, newer: newAgent}
			newer := presence{agents: newAgent, older: 1}
			if older.inCharge() == newer.inCharge() {
				t.Errorf("old agent %d, new agent %d: both or neither in charge", oldAgent, newAgent)
			}
		}
	}
}
