package agent

import (
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

func TestTTLMap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newTTLMap[string, int](3, time.Hour)
		put := func(key string, v int) {
			f.update(key, func(int, time.Duration, bool) (int, bool) { return v, true })
		}
		want := func(why string, within time.Duration, want map[string]int) {
			t.Helper()
			got := make(map[string]int)
			for _, key := range []string{"a", "b", "c", "d"} {
				if v, ok := f.get(key, within); ok {
					got[key] = v
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s (-want +got)\n%s", why, diff)
			}
		}
		put("a", 1)
		put("b", 2)
		put("c", 3)
		put("a", 4)
		put("d", 5)
		want("the oldest put goes", time.Hour, map[string]int{"a": 4, "c": 3, "d": 5})
		bubble.Pass(time.Minute - 1)
		put("d", 6)
		want("a tick before", time.Minute, map[string]int{"a": 4, "c": 3, "d": 6})
		bubble.Pass(time.Nanosecond)
		want("who asks for newer things", time.Minute, map[string]int{"d": 6})
		f.update("c", func(was int, age time.Duration, there bool) (int, bool) {
			if was != 3 || age != time.Minute || !there {
				t.Errorf("it was %d, %v ago, %v", was, age, there)
			}
			return 0, false
		})
		bubble.Pass(time.Hour - time.Minute)
		want("its age is over, and was not made new by a change that was none", 2*time.Hour, map[string]int{"d": 6})
		f.update("c", func(was int, age time.Duration, there bool) (int, bool) {
			if was != 0 || age != 0 || there {
				t.Errorf("it was %d, %v ago, %v: what is over counts on", was, age, there)
			}
			return 7, !there
		})
		want("what is over is not there", time.Hour, map[string]int{"c": 7, "d": 6})
		f.delete("d")
		f.delete("d")
		if len(f.entries) != 1 || f.oldest.Len() != 1 {
			t.Errorf("%d and %d entries are kept, want one", len(f.entries), f.oldest.Len())
		}
	})
}

func ids(names ...byte) (out []route.EndpointID) {
	for _, n := range names {
		out = append(out, route.EndpointID{n})
	}
	return out
}

// While a peer replaces its gateways, some answers have zones and some do not. The zones
// must not come and go with them.
func TestZonesHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, to, alice := newEndpointCache(), remotePort{"uid", "shop", "bar", 80}, account{"shop", "alice"}
		answer := func(generation uint64, zones []string, names ...byte) {
			c.recordAnswer(alice, to, tunnel.Answer{
				Ready: ids(names...), ReadyCount: 4, Generation: generation, Zones: zones,
			}, "a")
		}
		expect := func(why string, want ...route.EndpointID) {
			t.Helper()
			if got, _ := c.lookup(alice, to); !slices.Equal(got.near, want) {
				t.Errorf("%s: near %v, want %v", why, got.near, want)
			}
		}
		answer(5, []string{"a", "b", "a"}, 1, 2, 3)
		expect("zones are reported", ids(1, 3)...)
		answer(5, nil, 1, 2, 3)
		expect("a gateway without zones", ids(1, 3)...)
		answer(6, nil, 2, 3, 4)
		expect("endpoints change meanwhile", ids(3)...)
		answer(6, []string{"b", "a", ""}, 2, 3, 4)
		expect("one zone is not known", ids(3)...)
		answer(6, []string{"b", "b", "a"}, 2, 3, 4)
		expect("a zone changes", ids(4)...)
		bubble.Pass(zoneHold - 1)
		answer(6, nil, 2, 3, 4)
		expect("no zones for nearly zoneHold", ids(4)...)
		bubble.Pass(1)
		answer(6, nil, 2, 3, 4)
		expect("the peer reports no zones any more")
	})
}

func TestEndpointSets(t *testing.T) {
	type timedAnswer struct {
		after time.Duration
		tunnel.Answer
	}
	answer := func(after time.Duration, generation uint64, count uint32, names ...byte) timedAnswer {
		return timedAnswer{after, tunnel.Answer{Ready: ids(names...), ReadyCount: count, Generation: generation}}
	}
	many := make([]byte, 0, 250)
	for i := range byte(250) {
		many = append(many, i)
	}
	cases := map[string]struct {
		why      string
		received []timedAnswer
		want     endpointSet
	}{
		"one":       {why: "the answer is all that is known", received: []timedAnswer{answer(0, 5, 2, 1, 2)}, want: endpointSet{ready: ids(1, 2), count: 2, generation: 5}},
		"more":      {why: "an answer names some of many", received: []timedAnswer{answer(0, 5, 4, 1, 2), answer(0, 5, 4, 3, 2)}, want: endpointSet{ready: ids(3, 2, 1), count: 4, generation: 5}},
		"newer":     {why: "what is gone is not named again", received: []timedAnswer{answer(0, 5, 2, 1, 2), answer(0, 6, 1, 3)}, want: endpointSet{ready: ids(3), count: 1, generation: 6}},
		"late":      {why: "an older answer overtaken by a newer one", received: []timedAnswer{answer(0, 6, 1, 3), answer(staleGenerationAge-1, 5, 2, 1, 2)}, want: endpointSet{ready: ids(3), count: 1, generation: 6}},
		"went back": {why: "the peer's clock was set back", received: []timedAnswer{answer(0, 6, 1, 3), answer(staleGenerationAge, 5, 2, 1, 2)}, want: endpointSet{ready: ids(1, 2), count: 2, generation: 5}},
		"old":       {why: "what is old is nothing", received: []timedAnswer{answer(0, 6, 1, 3), answer(setAge, 6, 1, 4)}, want: endpointSet{ready: ids(4), count: 1, generation: 6}},
		"bounded":   {why: "a peer that makes ids up costs no more", received: []timedAnswer{answer(0, 5, 9, many...), answer(0, 5, 9, 250, 251, 252, 253, 254, 255)}, want: endpointSet{ready: ids(append([]byte{250, 251, 252, 253, 254, 255}, many...)...), count: 9, generation: 5}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, to := newEndpointCache(), remotePort{"uid", "shop", "bar", 80}
				for _, n := range tc.received {
					bubble.Pass(n.after)
					l.recordAnswer(account{"shop", "alice"}, to, n.Answer, "")
				}
				got, ok := l.lookup(account{"shop", "alice"}, to)
				if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(endpointSet{})); diff != "" || !ok || len(got.ready) > maxSetIDs {
					t.Errorf("%s (-want +got)\n%s", tc.why, diff)
				}
				if _, ok := l.lookup(account{"shop", "bob"}, to); ok {
					t.Error("another account has learnt it")
				}
			})
		})
	}
}

func TestEndpointCacheAffinity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, to := newEndpointCache(), remotePort{"uid", "shop", "bar", 80}
		other := remotePort{"uid", "shop", "bar", 81}
		none, one := route.EndpointID{}, route.EndpointID{1}
		want := func(why, pod string, to remotePort, affinity time.Duration, want route.EndpointID) {
			t.Helper()
			if got := l.lastVisited(pod, to, affinity); got != want {
				t.Errorf("%s: %v, want %v", why, got, want)
			}
		}
		l.recordVisit("a", to, none)
		want("an endpoint without id", "a", to, time.Hour, none)
		l.recordVisit("a", to, one)
		want("its last", "a", to, time.Hour, one)
		want("another pod's", "b", to, time.Hour, none)
		want("another port's", "a", other, time.Hour, none)
		want("without affinity", "a", to, 0, none)
		bubble.Pass(time.Hour - 1)
		want("a tick before its time is over", "a", to, time.Hour, one)
		bubble.Pass(time.Nanosecond)
		want("its time is over", "a", to, time.Hour, none)
		l.recordVisit("a", to, one)
		l.recordRefusal("a", to, one)
		want("it was turned away", "a", to, time.Hour, none)
	})
}

// An endpoint that did not take a call is passed over for a while, unless there is no
// other.
func TestExcludedEndpoints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, to := newEndpointCache(), remotePort{"uid", "shop", "bar", 80}
		all := ids(1, 2)
		l.recordRefusal("a", to, all[0])
		if got := l.available(all, to); !slices.Equal(got, all[1:]) {
			t.Errorf("%v, want the other one", got)
		}
		if got := l.available(all, remotePort{"uid", "shop", "bar", 81}); len(got) != 2 {
			t.Errorf("%v of another port, want both", got)
		}
		l.recordRefusal("a", to, all[1])
		if got := l.available(all, to); len(got) != 2 {
			t.Errorf("%v, want both: there is no better one", got)
		}
		bubble.Pass(refusedExclusion)
		if got := l.available(all, to); len(got) != 2 {
			t.Errorf("%v after a while, want both", got)
		}
	})
}

// addSecondEndpoint adds another ready pod to the Service in east, which says its name.
func (w *harness) addSecondEndpoint() {
	w.addSecondEndpointThat(func(c *net.TCPConn) {
		io.ReadAll(c)
		io.WriteString(c, "bar-1")
	})
}

// addSecondEndpointThat adds another ready pod to the Service in east. do serves each of
// its connections and need not close it.
func (w *harness) addSecondEndpointThat(do func(*net.TCPConn)) {
	app := listen(w.TB, nextToBar)
	w.serving.Go(func() {
		var conns sync.WaitGroup
		defer conns.Wait()
		for {
			c, err := app.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer c.Close()
				do(c.(*net.TCPConn))
			})
		}
	})
	w.Cleanup(func() { app.Close() })
	port := uint32(app.Addr().(*net.TCPAddr).Port)
	w.eastView = maps.Clone(w.eastView)
	maps.Copy(w.eastView, w.view(&wire.Resource{Body: &wire.Resource_Pod{Pod: &wire.Pod{
		Uid: "bar-1", Namespace: "shop", Name: "bar-1", ServiceAccount: "bar", Ips: []string{nextToBar}, Live: true}}}))
	w.edit(&w.eastView, "export/shop/bar", func(r *wire.Resource) {
		r.GetExport().Pods = append(r.GetExport().Pods, &wire.ExportPod{Uid: "bar-1", Ready: true, Accepts: true, Targets: map[uint32]uint32{80: port}})
	})
	w.edit(&w.gatewayView, "route/1024", func(r *wire.Resource) {
		r.GetRoute().Endpoints = append(r.GetRoute().Endpoints, &wire.Endpoint{Id: []byte("the next"), PodUid: "bar-1", Upstream: "agent/node"})
	})
	w.push()
}

// setAffinity gives west's mirror session affinity, as its state says.
func (w *harness) setAffinity(d time.Duration) {
	s := *w.west.state.Load()
	s.mirrors = maps.Clone(s.mirrors)
	at := netip.MustParseAddr(vip)
	m := *s.mirrors[at]
	m.affinity = d
	s.mirrors[at] = &m
	w.west.state.Store(&s)
}

// Without affinity the gateway spreads; with it a pod stays with the endpoint that it
// had, as long as that is there.
func TestSessionAffinity(t *testing.T) {
	w := newHarness(t, func(c *net.TCPConn) { io.ReadAll(c); io.WriteString(c, "bar-0") })
	w.addSecondEndpoint()
	reached := func(pod string, calls int) []string {
		t.Helper()
		seen := map[string]bool{}
		for range calls {
			answer, err := w.call(pod, "hello")
			if err != nil {
				t.Fatal(err)
			}
			seen[answer] = true
		}
		return slices.Sorted(maps.Keys(seen))
	}
	if got := reached(alice, 40); len(got) != 2 {
		t.Errorf("without affinity 40 calls reach %v alone", got)
	}
	w.setAffinity(time.Hour)
	stays := reached(alice, 20)
	if len(stays) != 1 {
		t.Fatalf("with affinity 20 calls reach %v", stays)
	}
	w.edit(&w.gatewayView, "route/1024", func(r *wire.Resource) {
		r.GetRoute().Endpoints = slices.DeleteFunc(r.GetRoute().Endpoints, func(e *wire.Endpoint) bool { return e.PodUid == stays[0] })
	})
	w.edit(&w.eastView, "pod/"+stays[0], func(r *wire.Resource) { r.GetPod().Terminating = true })
	w.edit(&w.eastView, "export/shop/bar", func(r *wire.Resource) {
		for _, p := range r.GetExport().Pods {
			p.Accepts = p.Uid != stays[0]
		}
	})
	w.push()
	w.setAffinity(time.Hour)
	if got := reached(alice, 5); len(got) != 1 || got[0] == stays[0] {
		t.Errorf("after %s has gone, calls reach %v", stays[0], got)
	}
	set, ok := w.west.endpointCache.lookup(account{"shop", "alice"}, remotePort{"link-to-east", "shop", "bar", 80})
	if !ok || set.count == 0 || len(set.ready) == 0 {
		t.Errorf("of what answers told, %v is known", fmt.Sprint(set))
	}
}
