package session

import (
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a session that notes its end.
type fake struct {
	at      route.EndpointID
	broken  atomic.Bool
	retired atomic.Bool
}

func (f *fake) Endpoint() route.EndpointID { return f.at }
func (f *fake) Healthy() bool              { return !f.broken.Load() }
func (f *fake) Retire()                    { f.retired.Store(true) }

var (
	one, two, three = route.EndpointID{1}, route.EndpointID{2}, route.EndpointID{3}
	bounds          = Bounds{MaxIdle: 6, IdleTimeout: 90 * time.Second, CheckInterval: 5 * time.Second, Endpoints: 16, Spare: 2}
)

// withPool runs do in a bubble, with a pool that is closed at its end.
func withPool(t *testing.T, do func(t *testing.T, p *Pool[string, *fake])) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		p := New[string, *fake](bounds)
		defer p.Close()
		do(t, p)
	})
}

func put(t *testing.T, p *Pool[string, *fake], key string, at route.EndpointID) *fake {
	t.Helper()
	f := &fake{at: at}
	if !p.Put(key, f, nil) {
		t.Fatal("the pool is closed")
	}
	return f
}

func TestTakeReturnsMostRecentlyUsed(t *testing.T) {
	withPool(t, func(t *testing.T, p *Pool[string, *fake]) {
		put(t, p, "a", one)
		last := put(t, p, "a", one)
		put(t, p, "a", two)
		if got, ok := p.Take("a", one); !ok || got != last {
			t.Error("another than the last used one was taken: the others would never become too old")
		}
		if _, ok := p.Take("b", one); ok {
			t.Error("a session was used for another key")
		}
		if _, ok := p.Take("a", three); ok {
			t.Error("a session with another endpoint was taken")
		}
		for range 2 {
			if _, ok := p.Take("a", route.EndpointID{}); !ok {
				t.Error("any endpoint will do")
			}
		}
		if _, ok := p.Take("a", route.EndpointID{}); ok {
			t.Error("a session was taken twice")
		}
	})
}

func TestIdleSessionsAreBounded(t *testing.T) {
	t.Run("by key", func(t *testing.T) {
		withPool(t, func(t *testing.T, p *Pool[string, *fake]) {
			first := put(t, p, "a", one)
			put(t, p, "a", one)
			put(t, p, "a", one)
			if first.retired.Load() {
				t.Error("there was room: one for the endpoint, and two to spare")
			}
			put(t, p, "a", one)
			if !first.retired.Load() || len(p.Idle()) != 3 {
				t.Errorf("%d are idle, want 3, without the longest idle", len(p.Idle()))
			}
		})
	})
	t.Run("by need", func(t *testing.T) {
		withPool(t, func(t *testing.T, p *Pool[string, *fake]) {
			var leave []func()
			for range 4 {
				leave = append(leave, p.StartExchange("a", one))
			}
			for _, l := range leave {
				l()
				put(t, p, "a", one)
			}
			if n := len(p.Idle()); n != 4 {
				t.Errorf("%d are idle where 4 were needed at a time", n)
			}
			bubble.Pass(PeakPeriod / 2)
			for range 4 { // the next four find all of them
				if _, ok := p.Take("a", one); !ok {
					t.Error("a connection of as many as there were lately finds no session")
				}
			}
		})
	})
	t.Run("in all", func(t *testing.T) {
		withPool(t, func(t *testing.T, p *Pool[string, *fake]) {
			first := put(t, p, "first", one)
			for _, key := range []string{"a", "b", "c", "d", "e", "f"} {
				put(t, p, key, one)
			}
			if !first.retired.Load() || len(p.Idle()) != bounds.MaxIdle {
				t.Errorf("%d are idle, want %d", len(p.Idle()), bounds.MaxIdle)
			}
		})
	})
	t.Run("in time", func(t *testing.T) {
		withPool(t, func(t *testing.T, p *Pool[string, *fake]) {
			old := put(t, p, "a", one)
			bubble.Pass(bounds.IdleTimeout - bounds.CheckInterval)
			young := put(t, p, "a", one)
			bubble.Pass(bounds.CheckInterval)
			if !old.retired.Load() || young.retired.Load() {
				t.Errorf("the old one was retired: %v, the young one: %v", old.retired.Load(), young.retired.Load())
			}
			bubble.Pass(bounds.IdleTimeout)
			if !young.retired.Load() {
				t.Error("the young one is old by now")
			}
		})
	})
}

func TestCheckRetiresUnhealthySessions(t *testing.T) {
	withPool(t, func(t *testing.T, p *Pool[string, *fake]) {
		broken, healthy := put(t, p, "a", one), put(t, p, "a", one)
		broken.broken.Store(true)
		bubble.Pass(bounds.CheckInterval)
		if !broken.retired.Load() || healthy.retired.Load() {
			t.Errorf("the broken one was retired: %v, the sound one: %v", broken.retired.Load(), healthy.retired.Load())
		}
	})
}

func TestPickPrefersLessLoadedEndpoint(t *testing.T) {
	withPool(t, func(t *testing.T, p *Pool[string, *fake]) {
		if got := p.Pick("a", nil); got != (route.EndpointID{}) {
			t.Errorf("%v of none", got)
		}
		seen := map[route.EndpointID]int{}
		for range 600 {
			seen[p.Pick("a", []route.EndpointID{one, two, three})]++
		}
		for _, e := range []route.EndpointID{one, two, three} {
			if seen[e] < 120 {
				t.Errorf("of 600 picks, %v is %d", e, seen[e])
			}
		}
		leave := p.StartExchange("a", one)
		defer leave()
		for range 100 {
			if got := p.Pick("a", []route.EndpointID{one, two}); got != two {
				t.Fatal("the one with an exchange was picked before the one without")
			}
		}
		if got := p.Pick("b", []route.EndpointID{one}); got != one {
			t.Errorf("%v of one", got)
		}
	})
}

func TestMissing(t *testing.T) {
	withPool(t, func(t *testing.T, p *Pool[string, *fake]) {
		all := []route.EndpointID{one, two, three}
		put(t, p, "a", one)
		leave := p.StartExchange("a", two)
		if got := p.Missing("a", all); !slices.Equal(got, []route.EndpointID{three}) {
			t.Errorf("%v, want the third: one is idle, and one in use", got)
		}
		leave()
		if got := p.Missing("b", all); len(got) != 3 {
			t.Errorf("%v of a key without sessions", got)
		}
	})
}

func TestReserve(t *testing.T) {
	withPool(t, func(t *testing.T, p *Pool[string, *fake]) {
		leave := p.StartExchange("a", one)
		if !p.Reserve("a", one) || p.Reserve("a", one) {
			t.Error("one beside the one in use, and not more")
		}
		put(t, p, "a", one)
		p.Unreserve("a", one)
		if p.Reserve("a", one) {
			t.Error("one is idle already")
		}
		leave()
		// Three were needed at a time, and the sessions of two broke.
		kept := put(t, p, "b", one)
		var leaves []func()
		for range 3 {
			leaves = append(leaves, p.StartExchange("b", one))
		}
		for _, l := range leaves {
			l()
		}
		for i := range 2 {
			if !p.Reserve("b", one) {
				t.Errorf("%d are there where 3 were needed lately", i+1)
			}
		}
		if p.Reserve("b", one) {
			t.Error("more than were needed")
		}
		p.Unreserve("b", one)
		p.Unreserve("b", one)
		p.Drop("b", kept)
	})
}

func TestReservedSessionsCountAsIdle(t *testing.T) {
	withPool(t, func(t *testing.T, p *Pool[string, *fake]) {
		for i := range bounds.MaxIdle {
			if !p.ReserveExtra("a", one) {
				t.Fatalf("no room for the %dth", i)
			}
		}
		if p.ReserveExtra("b", one) || p.Reserve("b", one) {
			t.Error("more than the agent may hold")
		}
		p.Unreserve("a", one)
		if !p.Reserve("b", one) {
			t.Error("room that was given back is not taken")
		}
		p.Unreserve("b", one)
		for range bounds.MaxIdle - 1 {
			p.Unreserve("a", one)
		}
	})
}

func TestClosedPoolRejectsSessions(t *testing.T) {
	withPool(t, func(t *testing.T, p *Pool[string, *fake]) {
		f := put(t, p, "a", one)
		if !p.Reserve("b", one) {
			t.Fatal("no room")
		}
		closed := make(chan struct{})
		go func() { defer close(closed); p.Close() }()
		bubble.Pass(time.Second)
		select {
		case <-closed:
			t.Error("it did not wait for the session that is being made")
		default:
		}
		if p.Put("b", &fake{at: one}, func() { t.Error("it was armed") }) {
			t.Error("a session was put into a closed pool")
		}
		if p.Reserve("b", one) || p.ReserveExtra("b", one) {
			t.Error("a session is made for a closed pool")
		}
		p.Unreserve("b", one)
		<-closed
		if !f.retired.Load() {
			t.Error("an idle session was not retired")
		}
	})
}

func TestDrop(t *testing.T) {
	withPool(t, func(t *testing.T, p *Pool[string, *fake]) {
		f := put(t, p, "a", one)
		if !p.Drop("a", f) || p.Drop("a", f) || f.retired.Load() {
			t.Error("a session is dropped once, and its end left to the caller")
		}
	})
}

func BenchmarkTakePut(b *testing.B) {
	p := New[string, *fake](Bounds{MaxIdle: 1000, IdleTimeout: time.Hour, CheckInterval: time.Hour, Spare: 100})
	defer p.Close()
	for range 50 {
		p.Put("a", &fake{at: one}, nil)
	}
	endpoints := []route.EndpointID{one, two}
	b.ReportAllocs()
	for b.Loop() {
		p.Pick("a", endpoints)
		f, _ := p.Take("a", one)
		p.StartExchange("a", one)()
		p.Put("a", f, nil)
	}
}
