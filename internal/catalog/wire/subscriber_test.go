package wire

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/catalog"
)

func names(d Delta) (upserts, removed []string) {
	for _, s := range d.Upserts {
		upserts = append(upserts, s.Name)
	}
	for _, k := range d.Removed {
		removed = append(removed, k.Name)
	}
	return upserts, removed
}

// wantDelta checks the newest of n deltas.
func (w *world) wantDelta(why string, n int, upserts, removed []string) {
	w.t.Helper()
	synctest.Wait()
	if _, got, _ := w.atWest.counts(); got != n {
		w.t.Fatalf("%s: the sink received %d deltas, want %d", why, got, n)
	}
	u, r := names(w.atWest.lastDelta())
	if !slices.Equal(u, upserts) || !slices.Equal(r, removed) {
		w.t.Errorf("%s: got upserts %v and removed %v, want %v and %v", why, u, r, upserts, removed)
	}
}

func TestSinkReceivesDifferencesOnly(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.serve()
		w.client()
		w.publish(catalogOf(service("a", 1), service("b", 1), service("c", 1)))
		w.wantDelta("the first catalog is complete", 1, []string{"a", "b", "c"}, nil)
		bubble.Pass(time.Second)
		w.publish(catalogOf(service("a", 2), service("c", 1)))
		w.wantDelta("a change", 2, []string{"a"}, []string{"b"})
		w.cutAll()
		bubble.Pass(time.Minute)
		w.wantDelta("the snapshot of a new stream changes nothing", 2, []string{"a"}, []string{"b"})
		w.strangers.Store(true)
		bubble.Pass(3 * time.Second)
		w.publish(catalogOf(service("a", 3), service("d", 1)))
		w.strangers.Store(false)
		bubble.Pass(time.Minute)
		w.wantDelta("after an outage only the differences arrive", 3, []string{"a", "d"}, []string{"c"})
		if w.seenHints()[0] != (ReplicaID{}) {
			t.Errorf("without a reason no replica is asked for: %v", w.seenHints())
		}
	})
}

func TestEmptyCatalogIsHandedOver(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.serve()
		w.client()
		w.publish(catalogOf())
		w.wantDelta("an importer must learn that the peer exports nothing", 1, nil, nil)
	})
}

func TestChangesAreMerged(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.serve()
		w.client()
		w.publish(catalogOf(service("a", 1)))
		synctest.Wait()
		bubble.Pass(time.Second)
		start := time.Now()
		for i := range 95 {
			w.publish(catalogOf(service("a", 2+i)))
			bubble.Pass(10 * time.Millisecond)
		}
		bubble.Pass(time.Second)
		w.wantCatalog("the last change arrives", catalogOf(service("a", 96)))
		w.atWest.mu.Lock()
		defer w.atWest.mu.Unlock()
		times := w.atWest.times[1:]
		if times[0] != start {
			t.Errorf("the first change after a pause must arrive at once, it took %v", times[0].Sub(start))
		}
		if n := len(times); n < 9 || n > 12 {
			t.Errorf("95 changes in 950 ms make %d calls, want about 10", n)
		}
		for i := 1; i < len(times); i++ {
			if d := times[i].Sub(times[i-1]); d < 100*time.Millisecond {
				t.Errorf("call %d comes %v after the one before", i, d)
			}
		}
	})
}

func TestPendingChangesSurviveTheStream(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.serve()
		ctx, cancel := context.WithCancel(w.ctx)
		w.clientFor(ctx)
		w.publish(catalogOf(service("a", 1)))
		synctest.Wait()
		w.publish(catalogOf(service("a", 2)))
		synctest.Wait()
		cancel()
		w.wantDelta("what was complete when the stream ended counts", 2, []string{"a"}, nil)
		bubble.Pass(time.Minute)
	})
}

func TestFaultyServices(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		faulty, foreign := service("faulty", 1), service("foreign", 1)
		faulty.Ports[0].Port = 0
		foreign.Identities = []string{"spiffe://north/ns/shop/sa/bar"}
		w.serve()
		w.client()
		w.publish(catalogOf(service("good", 1), service("faulty", 1), foreign))
		synctest.Wait()
		bubble.Pass(time.Second)
		w.publish(catalogOf(service("good", 1), faulty, foreign))
		w.wantDelta("a Service that cannot be used is removed", 2, nil, []string{"faulty"})
		reasons := map[string]string{}
		for k, p := range w.atWest.problems {
			reasons[k.Name] = p[0].Reason
		}
		want := map[string]string{"faulty": catalog.InvalidPorts, "foreign": catalog.ForeignIdentity}
		if diff := cmp.Diff(want, reasons); diff != "" {
			t.Errorf("each fault is named (-want +got):\n%s", diff)
		}
		if d := w.atWest.lastDelta(); len(d.Problems) != 1 {
			t.Errorf("only what changed is validated again, got problems %v", d.Problems)
		}
		bubble.Pass(time.Second)
		w.publish(catalogOf(service("good", 1), service("faulty", 1), service("foreign", 1)))
		synctest.Wait()
		if len(w.atWest.problems) != 0 {
			t.Errorf("a mended Service has no problem any more: %v", w.atWest.problems)
		}
	})
}

func TestResetIsNotALoss(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.serverImpl = script(func(s Catalog_SyncServer) error {
			_ = s.Send(&Message{Body: &Message_Hello{Hello: hello("east")}})
			one := update(1, true, encode(service("a", 1)), encode(service("b", 1)))
			one.GetUpdate().Version = Version{"e", 1}.message()
			two := update(2, false, encode(service("a", 1)))
			two.GetUpdate().Reset_ = true
			three := update(3, true, encode(service("c", 1)))
			three.GetUpdate().Version = Version{"e", 2}.message()
			for m := (*Message)(nil); m.GetSubscribe() == nil; {
				var err error
				if m, err = s.Recv(); err != nil {
					return err
				}
			}
			for _, m := range []*Message{one, two, three} {
				_ = s.Send(m)
				backoff.Sleep(s.Context(), time.Second)
			}
			<-s.Context().Done()
			return nil
		})
		w.serve()
		w.client()
		bubble.Pass(500 * time.Millisecond)
		w.wantDelta("the snapshot", 1, []string{"a", "b"}, nil)
		bubble.Pass(time.Second)
		w.wantDelta("a reset alone removes nothing", 1, []string{"a", "b"}, nil)
		bubble.Pass(time.Second)
		w.wantDelta("the new snapshot is compared with the old one", 2, []string{"c"}, []string{"b"})
		if v := w.atWest.lastDelta().Version; v != (Version{"e", 2}) {
			t.Errorf("the version belongs to the catalog, got %v", v)
		}
	})
}

// subscriptions returns how many of east's streams carry a catalog to west.
func (w *world) subscriptions() int {
	synctest.Wait()
	w.east.mu.RLock()
	defer w.east.mu.RUnlock()
	return len(w.east.links["west"].announced)
}

// inbound returns how many streams of west are open at east.
func (w *world) inbound() int {
	synctest.Wait()
	w.server.mu.Lock()
	defer w.server.mu.Unlock()
	return w.server.links["west"].streams
}

// holder returns the Client of west whose stream is subscribed; nil: none.
func (w *world) holder() *Client {
	synctest.Wait()
	w.subscriber.mu.Lock()
	defer w.subscriber.mu.Unlock()
	if w.subscriber.holder == nil {
		return nil
	}
	return w.subscriber.holder.client
}

func TestOneStreamIsSubscribed(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		want := w.publish(catalogOf(service("a", 1)))
		w.serve()
		ctx, cancel := context.WithCancel(w.ctx)
		w.clientFor(ctx)
		synctest.Wait()
		w.client()
		w.client()
		if n, all := w.subscriptions(), w.inbound(); n != 1 || all != 3 {
			t.Errorf("of %d streams %d are subscribed, want 1 of 3", all, n)
		}
		w.wantCatalog("first", want)
		cancel()
		if n, all := w.subscriptions(), w.inbound(); n != 1 || all != 2 {
			t.Errorf("another stream must take over at once: %d of %d are subscribed", n, all)
		}
		w.wantDelta("which changes nothing", 1, []string{"a"}, nil)
		bubble.Pass(time.Second)
		w.wantCatalog("and goes on", w.publish(catalogOf(service("b", 1))))
	})
}

func TestReopen(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.publish(catalogOf(service("a", 1)))
		w.serve()
		c := w.client()
		synctest.Wait()
		w.client()
		w.wantDelta("first", 1, []string{"a"}, nil)
		target := ReplicaID{7}
		c.Reopen(target)
		synctest.Wait()
		if got := w.lastHint(); got != target {
			t.Errorf("the handshake must ask for the replica, got %v", w.seenHints())
		}
		if n := w.ended(w.metricsC, outbound, endedReopened); n != 1 {
			t.Errorf("%v streams are counted as reopened, want 1", n)
		}
		if n := w.ended(w.metricsS, inbound, endedOrderly); n != 1 {
			t.Errorf("the server must see an end in good order, %v did", n)
		}
		if _, d, ends := w.atWest.counts(); d != 1 || ends != 0 {
			t.Errorf("the copy stays, and there is no outage: %d deltas, %d ends", d, ends)
		}
		if n := w.subscriptions(); w.holder() != c || n != 1 {
			t.Errorf("the reopened stream must get the subscription back, %d streams are subscribed", n)
		}
		bubble.Pass(time.Second)
		w.wantCatalog("the new stream works", w.publish(catalogOf(service("b", 1))))
		w.up.Store(false)
		c.Reopen(target)
		bubble.Pass(time.Second)
		if got := w.holder(); got == nil || got == c || w.subscriptions() != 1 {
			t.Error("if the stream cannot be reopened, another one must take over")
		}
		if _, _, ends := w.atWest.counts(); ends == 0 {
			t.Error("an attempt that fails must be told")
		}
		w.up.Store(true)
		bubble.Pass(20 * time.Second)
		if got := w.lastHint(); got != (ReplicaID{}) {
			t.Errorf("a replica is asked for once only, the last attempt asks for %v", got)
		}
		w.wantCatalog("nothing is lost", w.publish(catalogOf(service("c", 1))))
	})
}

func TestFreshnessCrosses(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.serve()
		w.client()
		bubble.Pass(9 * time.Second)
		if n := len(w.atWest.freshness); n != 0 {
			t.Errorf("a controller that does not know its freshness must not tell one, got %d", n)
		}
		w.east.SetFreshness(func() Freshness {
			return Freshness{
				Version: Version{"ignored", 9},
				Age:     time.Minute,
				Replica: ReplicaID{1},
				Fresher: ReplicaID{2},
			}
		})
		w.west.SetFreshness(func() Freshness { return Freshness{Replica: ReplicaID{3}} })
		if err := w.east.Publish(nil, Version{"e", 5}); err != nil {
			t.Fatal(err)
		}
		bubble.Pass(2 * time.Second)
		want := []Freshness{{
			Version: Version{"e", 5},
			Age:     time.Minute,
			Replica: ReplicaID{1},
			Fresher: ReplicaID{2},
		}}
		if diff := cmp.Diff(want, w.atWest.freshness); diff != "" {
			t.Errorf("each heartbeat tells it (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]Freshness{{Replica: ReplicaID{3}}}, w.atEast.freshness); diff != "" {
			t.Errorf("in both directions (-want +got):\n%s", diff)
		}
		w.east.SetReady("west")
		w.wantDelta("the version comes with the catalog", 1, nil, nil)
		if v := w.atWest.lastDelta().Version; v != (Version{"e", 5}) {
			t.Errorf("got version %v", v)
		}
		if err := w.east.Publish(nil, Version{"e", 6}); err != nil {
			t.Fatal(err)
		}
		bubble.Pass(2 * time.Second)
		w.wantDelta("a new version arrives with the next heartbeat", 2, nil, nil)
		if v := w.atWest.lastDelta().Version; v != (Version{"e", 6}) {
			t.Errorf("got version %v", v)
		}
	})
}

func TestSubscriptionMovesToAFresherReplica(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.east.SetFreshness(func() Freshness {
			return Freshness{
				Replica: ReplicaID{1},
				Fresher: ReplicaID{2},
			}
		})
		w.publish(catalogOf(service("a", 1)))
		w.serve()
		w.client()
		bubble.Pass(6 * time.Second)
		if len(w.seenHints()) != 1 {
			t.Errorf("too early: %v", w.seenHints())
		}
		bubble.Pass(3 * time.Second)
		if want := []ReplicaID{{}, {2}}; !slices.Equal(w.seenHints(), want) {
			t.Errorf("after 5 s the stream must be reopened towards the fresher replica, got %v",
				w.seenHints())
		}
		bubble.Pass(25 * time.Second)
		if len(w.seenHints()) != 2 {
			t.Errorf("the subscription must not flap: %v", w.seenHints())
		}
		w.wantDelta("and no catalog is lost", 1, []string{"a"}, nil)
	})
}

func TestExpiredServerIsDropped(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		want := w.publish(catalogOf(service("a", 1)))
		w.serve()
		w.client()
		w.wantCatalog("trusted", want)
		w.distrust.Store(true)
		bubble.Pass(2 * time.Second)
		if err := w.atWest.lastEnd(); !errors.Is(err, ErrNotTrusted) || reason(err) != endedNotTrusted {
			t.Errorf("a stream may outlive the peer's certificate by a heartbeat at most, got %v", err)
		}
	})
}

// TestRandomReplicas switches between two replicas and lets streams break at any time.
func TestRandomReplicas(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.serve()
		first, second := w.client(), w.client()
		for i := range 60 {
			s := services{}
			for j := range 10 {
				if (i*7+j*3)%4 > 0 {
					one := service(fmt.Sprint("s", j), i%5)
					s[one.Key()] = one
				}
			}
			w.publish(s)
			switch i % 7 {
			case 0:
				first.Reopen(ReplicaID{1})
			case 3:
				second.Reopen(ReplicaID{2})
			case 5:
				w.cutAll()
			}
			bubble.Pass(time.Duration(i*i%400) * time.Millisecond)
		}
		bubble.Pass(time.Minute)
		w.wantCatalog("the copy ends equal to the last catalog", w.published)
		for i, d := range w.atWest.deltas {
			for _, k := range d.Removed {
				if i > 0 && w.atWest.catalogs[i-1][k].IsZero() {
					t.Errorf("delta %d removes %v, which was not there", i, k)
				}
			}
			for _, s := range d.Upserts {
				if i > 0 && cmp.Equal(w.atWest.catalogs[i-1][s.Key()], s, cmpopts.EquateEmpty()) {
					t.Errorf("delta %d repeats %v", i, s.Key())
				}
			}
		}
	})
}

// BenchmarkReceive measures one changed Service among 10,000, from the Update to the
// sink.
func BenchmarkReceive(b *testing.B) {
	board := NewBoard()
	if err := board.SetHello(hello("west")); err != nil {
		b.Fatal(err)
	}
	sub := NewSubscriber("east", "east", board, discard{}, SubscriberOptions{Interval: time.Nanosecond})
	c := &clientStream{stream: &stream{protocolState: &protocolState{}, wakeup: make(chan struct{}, 1)}}
	if _, err := c.handle(&Message{Body: &Message_Hello{Hello: hello("east")}}); err != nil {
		b.Fatal(err)
	}
	sub.greeted(c)
	receive := func(revision int, list ...*Service) {
		e, err := c.handle(update(uint64(revision), true, list...))
		if err != nil {
			b.Fatal(err)
		}
		sub.received(c, e.complete)
	}
	var all []*Service
	for i := range 10_000 {
		all = append(all, encode(service(fmt.Sprint("s", i), 1)))
	}
	receive(1, all...)
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		receive(i+2, encode(service("s1", 2+i%2)))
	}
}

type discard struct{}

func (discard) Catalog(string, Delta) {}
