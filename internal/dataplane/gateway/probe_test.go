package gateway

import (
	"fmt"
	"testing"

	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// A probe of any linked peer is led to some agent, which learns nothing of a pod; the
// peer learns nothing of how many agents there are.
func TestProbesReachAgents(t *testing.T) {
	r := newHarness(t, 3, nil)
	controller := upstream("controller/c-1", "127.0.0.1:1", make([]byte, len(route.HopKey{})))
	r.push(r.view(controller))
	reached := map[int]bool{}
	for i := range 60 {
		link := []string{"west", "north"}[i%2]
		c := r.call(r.label(link, route.Probe, route.Hint{}))
		wantEcho(t, c)
		for b := range r.backends {
			select {
			case got := <-r.backends[b].got:
				reached[b] = true
				if h := got.header; got.err != nil || !h.Probe() || h.Link != link || len(h.Ready) > 0 ||
					h.ReadyCount > 0 || h.Endpoint != (route.EndpointID{}) {
					t.Fatalf("header %+v, %v", h, got.err)
				}
			default:
			}
		}
	}
	if len(reached) != len(r.backends) {
		t.Errorf("60 probes reached %d of %d agents", len(reached), len(r.backends))
	}
}

func TestProbeRow(t *testing.T) {
	for agents := range 8 {
		resources := map[string]*wire.Resource{}
		for i := range agents {
			name := fmt.Sprintf("agent/n%d", i)
			resources["upstream/"+name] = upstream(name, "10.0.0.1:4144", make([]byte, len(route.HopKey{})))
		}
		s, err := newState(resources, noneRevoked, nil)
		if err != nil {
			t.Fatal(err)
		}
		for first := range max(agents, 1) {
			row := s.probeRow(func(int) int { return first })
			distinct := map[string]bool{}
			for _, e := range row.Endpoints {
				distinct[e.Backend.Name] = true
			}
			if want := min(agents, maxEndpointsTried); len(row.Endpoints) != want || len(distinct) != want {
				t.Errorf("of %d agents from %d on: %v, want %d", agents, first, distinct, want)
			}
		}
	}
}
