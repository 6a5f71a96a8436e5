package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/causeway-mesh/causeway/internal/dataplane/balance"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// zonedHarness is a harness whose Service has bar-0 in zone b and bar-1 in zone a, and
// prefers the zone of the caller, which is a.
type zonedHarness struct {
	*harness
	// broken makes bar-1 close the connection of each request.
	broken atomic.Bool
}

func newZonedHarness(t *testing.T) *zonedHarness {
	w := &zonedHarness{}
	w.harness = newHarness(t, serveHTTP(func(rw http.ResponseWriter, r *http.Request) { io.WriteString(rw, "bar-0") }))
	w.addSecondEndpointThat(serveHTTP(func(rw http.ResponseWriter, r *http.Request) {
		if w.broken.Load() {
			panic(http.ErrAbortHandler)
		}
		io.WriteString(rw, "bar-1")
	}))
	w.setZones()
	return w
}

// setZones puts bar-1 into the zone of the callers, and bar-0 into another one.
func (w *harness) setZones() {
	node := w.gatewayView["upstream/agent/node"].GetUpstream()
	w.gatewayView = maps.Clone(w.gatewayView)
	maps.Copy(w.gatewayView, w.view(&wire.Resource{Body: &wire.Resource_Upstream{Upstream: &wire.Upstream{
		Name: "agent/near", Address: node.Address, HopKey: node.HopKey, Zone: "a", ReadsZones: true}}}))
	w.edit(&w.gatewayView, "upstream/agent/node", func(r *wire.Resource) {
		r.GetUpstream().Zone, r.GetUpstream().ReadsZones = "b", true
	})
	w.edit(&w.gatewayView, "route/1024", func(r *wire.Resource) {
		r.GetRoute().Zones = true
		r.GetRoute().Endpoints[1].Upstream = "agent/near"
	})
	w.edit(&w.westView, "cluster", func(r *wire.Resource) { r.GetCluster().Zone = "a" })
	w.preferSameZone(true)
}

// preferSameZone changes the setting of the Service in the state of the callers' agent.
func (w *harness) preferSameZone(prefer bool) {
	w.change(&w.westView, "frontend/shop/bar-east", func(r *wire.Resource) {
		backendOf(r).Settings = &wire.TrafficSettings{PreferSameZone: prefer}
	})
}

// reached makes requests, each of which must succeed, and returns who answered them.
func reached(t *testing.T, c *http.Client, requests int) []string {
	t.Helper()
	seen := make(map[string]bool)
	for range requests {
		resp, err := c.Get("http://bar-east/")
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s, %q, %v", resp.Status, body, err)
		}
		seen[string(body)] = true
	}
	return slices.Sorted(maps.Keys(seen))
}

var both, near, far = []string{"bar-0", "bar-1"}, []string{"bar-1"}, []string{"bar-0"}

// Requests go only to endpoints in the caller's zone, from the first one on. An open
// connection follows a change of the setting.
func TestRequestsPreferSameZone(t *testing.T) {
	eachVersion(t, func(t *testing.T, h2 bool) {
		w := newZonedHarness(t)
		for _, pod := range []string{alice, bob} {
			c := w.client(pod, h2)
			if got := reached(t, c, 60); !slices.Equal(got, near) {
				t.Errorf("requests reach %v, want the endpoint in the zone alone", got)
			}
		}
		c := w.client(alice, h2)
		w.preferSameZone(false)
		eventually(t, "without the preference requests reach both", func() bool { return slices.Equal(reached(t, c, 30), both) })
		w.preferSameZone(true)
		eventually(t, "the preference is in force again", func() bool { return slices.Equal(reached(t, c, 30), near) })
		if got := reached(t, c, 30); !slices.Equal(got, near) {
			t.Errorf("requests reach %v, want the endpoint in the zone alone", got)
		}
	})
}

// If the endpoints in the zone are removed or fail, requests reach the other endpoints,
// and no request fails.
func TestRequestsLeaveZone(t *testing.T) {
	eachVersion(t, func(t *testing.T, h2 bool) {
		t.Run("fails", func(t *testing.T) {
			w := newZonedHarness(t)
			c := w.client(alice, h2)
			if got := reached(t, c, 10); !slices.Equal(got, near) {
				t.Fatalf("requests reach %v", got)
			}
			w.broken.Store(true)
			if got := reached(t, c, 30); !slices.Equal(got, far) {
				t.Errorf("requests reach %v, although one endpoint fails", got)
			}
			w.broken.Store(false)
			eventually(t, "the endpoint in the zone is used again", func() bool { return slices.Equal(reached(t, c, 10), near) })
		})
		t.Run("goes", func(t *testing.T) {
			w := newZonedHarness(t)
			c := w.client(alice, h2)
			if got := reached(t, c, 10); !slices.Equal(got, near) {
				t.Fatalf("requests reach %v", got)
			}
			var gone *wire.Endpoint
			w.edit(&w.eastView, "export/shop/bar", func(r *wire.Resource) { r.GetExport().Pods[1].Accepts = false })
			w.change(&w.gatewayView, "route/1024", func(r *wire.Resource) {
				row := r.GetRoute()
				gone = row.Endpoints[1]
				row.Endpoints = row.Endpoints[:1]
				row.Generation++
			})
			eventually(t, "requests reach the other zone", func() bool { return slices.Equal(reached(t, c, 10), far) })
			w.edit(&w.eastView, "export/shop/bar", func(r *wire.Resource) { r.GetExport().Pods[1].Accepts = true })
			w.change(&w.gatewayView, "route/1024", func(r *wire.Resource) {
				row, next := r.GetRoute(), proto.Clone(gone).(*wire.Endpoint)
				next.Id = []byte("the last") // a new pod has a new id
				row.Endpoints = append(row.Endpoints, next)
				row.Generation++
			})
			eventually(t, "a new endpoint in the zone is used", func() bool { return slices.Equal(reached(t, c, 10), near) })
		})
	})
}

// If the agent does not know the zones, requests reach all endpoints.
func TestRequestsWithoutZones(t *testing.T) {
	cases := map[string]struct {
		why  string
		edit func(w *harness)
	}{
		"the zone of the node is not known": {"it has no label", func(w *harness) {
			w.edit(&w.westView, "cluster", func(r *wire.Resource) { r.GetCluster().Zone = "" })
		}},
		"no endpoint is in the zone": {"the clusters have no zone in common", func(w *harness) {
			w.edit(&w.westView, "cluster", func(r *wire.Resource) { r.GetCluster().Zone = "c" })
		}},
		"zones do not cross": {"the exporter's Service does not ask for it", func(w *harness) {
			w.edit(&w.gatewayView, "route/1024", func(r *wire.Resource) { r.GetRoute().Zones = false })
		}},
		"older agents": {"they would refuse the header", func(w *harness) {
			for _, key := range []string{"upstream/agent/node", "upstream/agent/near"} {
				w.edit(&w.gatewayView, key, func(r *wire.Resource) { r.GetUpstream().ReadsZones = false })
			}
		}},
		"zones that are not valid": {"a peer may send anything", func(w *harness) {
			w.edit(&w.westView, "cluster", func(r *wire.Resource) { r.GetCluster().Zone = "a b" })
			w.edit(&w.gatewayView, "upstream/agent/near", func(r *wire.Resource) { r.GetUpstream().Zone = "a b" })
		}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			w := newZonedHarness(t)
			c.edit(w.harness)
			w.push()
			client := w.client(alice, false)
			eventually(t, "requests reach both: "+c.why, func() bool { return slices.Equal(reached(t, client, 30), both) })
			set, ok := w.west.endpointCache.lookup(aliceAccount, aliceBar)
			if !ok || len(set.near) > 0 {
				t.Errorf("%v of %v are in the zone", set.near, set.ready)
			}
		})
	}
}

// Opaque connections prefer the zone, too, once the agent knows the endpoints.
func TestConnectionsPreferSameZone(t *testing.T) {
	w := newHarness(t, func(c *net.TCPConn) { io.ReadAll(c); io.WriteString(c, "bar-0") })
	w.addSecondEndpoint()
	w.setZones()
	if _, err := w.call(alice, "hello"); err != nil {
		t.Fatal(err)
	}
	for range 30 {
		if got, err := w.call(alice, "hello"); err != nil || got != "bar-1" {
			t.Fatalf("a connection reaches %q, %v", got, err)
		}
	}
}

// An answer may list only a part of a large set. The agent keeps the zones of the
// endpoints that it does not list.
func TestEndpointSetsWithZones(t *testing.T) {
	id := func(n byte) route.EndpointID { return route.EndpointID{n} }
	l, to := newEndpointCache(), remotePort{"uid", "shop", "bar", 80}
	record := func(generation uint64, own string, zones map[byte]string) {
		a := tunnel.Answer{Generation: generation, ReadyCount: 9}
		for _, n := range slices.Sorted(maps.Keys(zones)) {
			a.Ready, a.Zones = append(a.Ready, id(n)), append(a.Zones, zones[n])
		}
		l.recordAnswer(aliceAccount, to, a, own)
	}
	want := func(why string, near ...byte) {
		t.Helper()
		var ids []route.EndpointID
		for _, n := range near {
			ids = append(ids, id(n))
		}
		set, _ := l.lookup(aliceAccount, to)
		if diff := cmp.Diff(ids, set.near); diff != "" {
			t.Errorf("%s (-want +got):\n%s", why, diff)
		}
	}
	record(4, "a", map[byte]string{1: "a", 2: "b", 3: ""})
	want("one of three is in no known zone, so it may be as near")
	record(5, "a", map[byte]string{1: "a", 2: "b", 3: "c"})
	want("one of three", 1)
	record(5, "a", map[byte]string{4: "a", 5: "b"})
	want("another part", 4, 1)
	record(5, "a", map[byte]string{1: "b"})
	want("a node got another zone", 4)
	record(5, "b", map[byte]string{4: "a", 5: "b"})
	want("this node got another zone", 5)
	record(5, "", map[byte]string{4: "", 5: "b"})
	want("this node has no zone")
	record(6, "a", map[byte]string{7: "a"})
	want("a new generation", 7)
	for n := range byte(40) {
		record(7, "a", map[byte]string{n: fmt.Sprint("z", n)})
	}
	want("none")
}

// A request waits for a session in its zone only if it has not been in the making for
// long.
func TestDialIsLate(t *testing.T) {
	now := time.Now()
	at := route.EndpointID{1}
	g := &requestGroup{dials: map[route.EndpointID]*sessionDial{at: {began: now}}}
	if g.isDialLate(at, now.Add(affinityWait-1)) || !g.isDialLate(at, now.Add(affinityWait)) {
		t.Errorf("a dial is not late after %v, or earlier", affinityWait)
	}
	if g.isDialLate(route.EndpointID{2}, now.Add(time.Hour)) {
		t.Error("a dial that has not begun is late")
	}
}

// What a request cannot blame on an endpoint must not eject it.
func TestOutcomeOfDial(t *testing.T) {
	waiting, cancel := context.WithCancel(t.Context())
	cancel()
	cases := map[string]struct {
		wait context.Context
		err  error
		want balance.Outcome
	}{
		"no session":           {t.Context(), errors.New("connection refused"), balance.Failure},
		"refused":              {t.Context(), refuse(reasonNoSVID, errors.New("none")), balance.Failure},
		"the wait is over":     {waiting, context.DeadlineExceeded, balance.Neutral},
		"too many wait":        {t.Context(), refuse(reasonCircuitOpen, errors.New("8 requests wait")), balance.Neutral},
		"gateways refuse":      {t.Context(), refuse(reasonUnreachable, syscall.ECONNREFUSED), balance.Neutral},
		"no gateway":           {t.Context(), refuse(reasonNoGateway, errors.New("none")), balance.Neutral},
		"the agent is leaving": {t.Context(), refuse(reasonOther, errNoSession), balance.Neutral},
	}
	for name, tc := range cases {
		if got := outcomeOfDial(tc.wait, tc.err); got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}
