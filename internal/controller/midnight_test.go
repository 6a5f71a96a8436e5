package controller

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/nodestream"
)

// dayKeys are the keys of a Link in a scope of the hub.
func dayKeys(t *testing.T, v nodestream.View, name string) []route.DatedKey {
	t.Helper()
	var out []route.DatedKey
	for _, k := range v["link/"+name].GetLink().GetDayKeys() {
		out = append(out, route.DatedKey{Day: k.Day, Key: route.DayKey(k.Key)})
	}
	if len(out) == 0 {
		t.Fatalf("no keys for %s", name)
	}
	return out
}

// TestMidnight runs the controllers of both clusters over midnight. In every minute, a
// label that west's agent seals is opened by east's gateway, also if the clocks of the
// two differ by what route.Window allows, or if either has lost its controller for two
// days.
func TestMidnight(t *testing.T) {
	west()
	east()
	synctest.Test(t, func(t *testing.T) {
		w := newReplica(t, newAPI(east().Link("east"), shop(), agentPod("n1")))
		e := newReplicaOf(t, east(), newAPI(west().Link("west"), shop(), agentPod("n1")))
		w.during(t, func() {
			e.during(t, func() {
				bubble.Pass(time.Until(time.Date(2000, 1, 1, 23, 57, 0, 0, time.UTC)))
				overMidnight(t, w, e)
			})
		})
	})
}

func overMidnight(t *testing.T, w, e *replica) {
	scope := func(r *replica, s nodestream.Scope) nodestream.View {
		v, _ := r.hub.View(s)
		return v
	}
	// What those know who have lost their controller from now on.
	oldAgent, oldGateway := scope(w, nodestream.Agents), scope(e, nodestream.Gateways)
	start := time.Now()
	for _, c := range []struct {
		why                  string
		after                time.Duration // until
		step                 time.Duration
		oldAgent, oldGateway bool
		want                 error
	}{
		{why: "each minute, both with a controller", after: 10 * time.Minute, step: time.Minute},
		{why: "the agent has none over midnight", after: 20 * time.Minute, step: time.Minute, oldAgent: true},
		{
			why:        "the gateway has none over midnight",
			after:      30 * time.Minute,
			step:       time.Minute,
			oldGateway: true,
		},
		{why: "the agent has none for two days", after: 48 * time.Hour, step: time.Hour, oldAgent: true},
		{
			why:        "neither has one",
			after:      48*time.Hour + 2*time.Minute,
			step:       time.Minute,
			oldAgent:   true,
			oldGateway: true,
		},
		{
			why:      "an agent whose last key has ended says so",
			after:    49 * time.Hour,
			step:     time.Hour,
			oldAgent: true,
			want:     route.ErrNoDayKey,
		},
		{why: "those with a controller go on", after: 72*time.Hour + 10*time.Minute, step: time.Hour},
	} {
		for time.Since(start) < c.after {
			bubble.Pass(min(c.step, c.after-time.Since(start)))
			sealer, opener := scope(w, nodestream.Agents), scope(e, nodestream.Gateways)
			if c.oldAgent {
				sealer = oldAgent
			}
			if c.oldGateway {
				opener = oldGateway
			}
			for _, skew := range skews(c.want == nil && c.after < time.Hour) {
				at := time.Now()
				err := sealAndOpen(dayKeys(t, sealer, "east"), dayKeys(t, opener, "west"), at.Add(skew[0]),
					at.Add(skew[1]))
				if !errors.Is(err, c.want) || err != nil && c.want == nil {
					t.Errorf("%s: at %s, clocks off by %v: %v, want %v", c.why, at.Format(time.DateTime),
						skew, err, c.want)
				}
			}
		}
	}
}

// skews are how agent's and gateway's clocks are off: wide, or not at all.
func skews(wide bool) [][2]time.Duration {
	if !wide {
		return [][2]time.Duration{{}}
	}
	var out [][2]time.Duration
	for _, a := range []time.Duration{-6 * time.Minute, 0, 6 * time.Minute} {
		for _, g := range []time.Duration{-6 * time.Minute, 0, 6 * time.Minute} {
			out = append(out, [2]time.Duration{a, g})
		}
	}
	return out
}

// sealAndOpen seals a label by the keys and the clock of one, and opens it by another's.
func sealAndOpen(sealer, opener []route.DatedKey, sealed, opened time.Time) error {
	sni, err := route.NewSealer(sealer...).Seal(route.FirstService, route.Hint{}, sealed)
	if err != nil {
		return err
	}
	keys := make([]route.LinkKey, 0, len(opener))
	for _, k := range opener {
		keys = append(keys, route.LinkKey{Link: "west", DatedKey: k})
	}
	link, label, err := route.NewKeyring(keys...).Open(sni, opened)
	if err == nil && (link != "west" || label.Route != route.FirstService) {
		err = fmt.Errorf("opened as %s's %+v", link, label)
	}
	return err
}
