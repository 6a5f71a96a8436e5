package controller

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/causeway-mesh/causeway/internal/clusterid/clusteridtest"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/peering"
)

// dayKeys are the keys of a Link in what a node was told.
func dayKeys(t *testing.T, v nodestream.View, name string) []route.DatedKey {
	t.Helper()
	var out []route.DatedKey
	for _, r := range v {
		if l := r.GetLink(); l != nil && l.Name == name {
			for _, k := range l.DayKeys {
				out = append(out, route.DatedKey{Day: k.Day, Key: route.DayKey(k.Key)})
			}
		}
	}
	if len(out) == 0 {
		t.Fatalf("no keys for %s", name)
	}
	return out
}

// toldTo is what the replica's hub has for a node.
func (r *replica) toldTo(t *testing.T, to nodestream.Recipient) nodestream.View {
	t.Helper()
	v, ok, _ := r.hub.Read(to)
	if !ok {
		t.Fatalf("nothing is told to %s", to)
	}
	return v
}

// as makes r a replica of another cluster.
func (r *replica) as(o *clusteridtest.Cluster) *replica {
	r.identity, r.leader.identity = o.Identity, o.Identity
	r.peers.ConfigureForTest(func(c *peering.Config) { c.Identity = o.Identity })
	return r
}

// TestMidnight: both controllers think in fake time over a midnight; a label that west's agent seals is opened by east's gateway in every
// minute, however the clocks of the two are off by what the Window allows, and whoever of the two is cut off from its controller for two days.
func TestMidnight(t *testing.T) {
	west()
	east()
	synctest.Test(t, func(t *testing.T) {
		w := newReplica(t, newAPI(t, linkTo("east", east()), shop(), agentPod()))
		e := newReplica(t, newAPI(t, linkTo("west", west()), shop(), agentPod())).as(east())
		w.during(t, func() {
			e.during(t, func() {
				time.Sleep(time.Until(time.Date(2000, 1, 1, 23, 57, 0, 0, time.UTC)))
				overMidnight(t, w, e)
			})
		})
	})
}

func overMidnight(t *testing.T, w, e *replica) {
	agent, gateway := nodestream.Agent("node-1"), nodestream.Gateway
	// What those had been told who are cut off from now on.
	oldAgent, oldGateway := w.toldTo(t, agent), e.toldTo(t, gateway)
	start := time.Now()
	for _, c := range []struct {
		why              string
		after            time.Duration // until
		step             time.Duration
		oldAgent, oldGwy bool
		want             error
	}{
		{why: "each minute, and both are told", after: 10 * time.Minute, step: time.Minute},
		{why: "the agent is cut off over midnight", after: 20 * time.Minute, step: time.Minute, oldAgent: true},
		{why: "the gateway is cut off over midnight", after: 30 * time.Minute, step: time.Minute, oldGwy: true},
		{why: "the agent is cut off for two days", after: 48 * time.Hour, step: time.Hour, oldAgent: true},
		{why: "both are", after: 48*time.Hour + 2*time.Minute, step: time.Minute, oldAgent: true, oldGwy: true},
		{why: "an agent whose last key is over says so itself", after: 49 * time.Hour, step: time.Hour, oldAgent: true, want: route.ErrNoDayKey},
		{why: "what was told goes on", after: 72*time.Hour + 10*time.Minute, step: time.Hour},
	} {
		for time.Since(start) < c.after {
			time.Sleep(min(c.step, c.after-time.Since(start)))
			synctest.Wait()
			sealedBy, openedBy := w.toldTo(t, agent), e.toldTo(t, gateway)
			if c.oldAgent {
				sealedBy = oldAgent
			}
			if c.oldGwy {
				openedBy = oldGateway
			}
			for _, skew := range skews(c.want == nil && c.after < time.Hour) {
				at := time.Now()
				err := carried(t, dayKeys(t, sealedBy, "east"), dayKeys(t, openedBy, "west"), at.Add(skew[0]), at.Add(skew[1]))
				if !errors.Is(err, c.want) || err != nil && c.want == nil {
					t.Errorf("%s: at %s, clocks off by %v: %v, want %v", c.why, at.Format(time.DateTime), skew, err, c.want)
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

// carried seals a label by one's keys and clock and opens it by another's.
func carried(t *testing.T, sealer, opener []route.DatedKey, sealed, opened time.Time) error {
	t.Helper()
	sni, err := route.NewSealer(sealer...).Seal(route.FirstService, route.Wish{}, sealed)
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
