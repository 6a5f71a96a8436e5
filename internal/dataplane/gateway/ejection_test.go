package gateway

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/route"
)

var backendA = netip.MustParseAddrPort("10.0.0.1:4144")

func TestEjections(t *testing.T) {
	cases := map[string]struct {
		why string
		// Steps: f failed, s succeeded, + not ejected, - ejected, a number: seconds
		// later.
		steps string
	}{
		"one failure":    {why: "a connection may fail by chance", steps: "+ f +"},
		"two failures":   {why: "a node without power takes nothing", steps: "f f - 4 - 1 +"},
		"not in a row":   {why: "it takes most connections", steps: "f s f +"},
		"one trial":      {why: "one connection tries it, not all", steps: "f f 5 + - - 1 - 1 + -"},
		"trial succeeds": {why: "the node is back", steps: "f f 5 + s + + f +"},
		"trial fails":    {why: "each one is longer", steps: "f f 5 + f - 9 - 1 + f 19 - 1 +"},
		"at most a minute": {
			why:   "a node that is back gets its share soon",
			steps: "f f 5 + f 10 + f 20 + f 40 + f 59 - 1 + f 59 - 1 +",
		},
		"late failures":       {why: "they began before the ejection", steps: "f f f f f 4 - 1 +"},
		"last resort succeed": {why: "it was tried because all others had failed", steps: "f f - s +"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			e, now := newEjections(), time.Unix(1e9, 0)
			for i, step := range strings.Fields(tc.steps) {
				var seconds int
				switch step {
				case "f":
					e.failed(backendA, now)
				case "s":
					e.succeeded(backendA)
				case "+", "-":
					if got := e.ejected(backendA, now); got != (step == "-") {
						t.Errorf("%s: step %d of %q: ejected: %v", tc.why, i+1, tc.steps, got)
					}
				default:
					fmt.Sscan(step, &seconds)
					now = now.Add(time.Duration(seconds) * time.Second)
				}
			}
		})
	}
}

func TestEjectionsAreBounded(t *testing.T) {
	e := newEjections()
	for i := range 2 * maxFailing {
		backend := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		e.failed(netip.AddrPortFrom(backend, 4144), time.Now())
	}
	if n := e.failing.Len(); n != maxFailing {
		t.Errorf("%d backends are remembered, want %d", n, maxFailing)
	}
}

// rowOfBackends returns a row with an endpoint on each of n backends.
func rowOfBackends(n int) route.Row {
	var row route.Row
	for i := range n {
		address := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), 4144)
		row.Endpoints = append(row.Endpoints, route.Endpoint{
			ID:      route.EndpointID{byte(i + 1)},
			Backend: route.Backend{Address: address},
		})
	}
	return row
}

func TestOrderPutsEjectedLast(t *testing.T) {
	e, row := newEjections(), rowOfBackends(4)
	for range failuresToEject {
		e.failed(row.Endpoints[1].Backend.Address, time.Now())
	}
	hints := map[string]route.Hint{
		"no hint":              {},
		"hint for the ejected": route.ForEndpoint(row.Endpoints[1].ID),
	}
	for name, hint := range hints {
		for range 50 {
			var got []route.EndpointID
			for endpoint := range e.order(row, hint) {
				got = append(got, endpoint.ID)
			}
			if len(got) != 4 || got[3] != row.Endpoints[1].ID {
				t.Fatalf("%s: %v, want all, and the ejected one last", name, got)
			}
			slices.SortFunc(got, func(a, b route.EndpointID) int { return slices.Compare(a[:], b[:]) })
			if len(slices.Compact(got)) != 4 {
				t.Fatalf("%s: an endpoint is tried twice: %v", name, got)
			}
		}
	}
	for endpoint := range e.order(row, route.ForEndpoint(row.Endpoints[2].ID)) {
		if endpoint.ID != row.Endpoints[2].ID {
			t.Errorf("%v is tried first, not the hinted one", endpoint.ID)
		}
		break
	}
	row.Endpoints[1].Host = route.HostHash("db-1")
	for endpoint := range e.order(row, route.ForHost("db-1")) {
		if endpoint.ID != row.Endpoints[1].ID {
			t.Errorf("a hint for one pod leads to %v", endpoint.ID)
		}
	}
}

// The load of a dead endpoint spreads over all others, not onto the next one.
func TestRetriesSpreadOverEndpoints(t *testing.T) {
	e, row := newEjections(), rowOfBackends(5)
	dead := row.Endpoints[rand.IntN(5)].ID
	second := map[route.EndpointID]int{}
	const rounds = 4000
	for range rounds {
		var got []route.EndpointID
		for endpoint := range e.order(row, route.ForEndpoint(dead)) {
			got = append(got, endpoint.ID)
		}
		second[got[1]]++
	}
	for id, n := range second {
		if n < rounds/8 || n > rounds/2 {
			t.Errorf("%v gets %d of %d retries, want about a quarter", id, n, rounds)
		}
	}
	if len(second) != 4 {
		t.Errorf("%d endpoints get retries, want 4", len(second))
	}
}
