package controller

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/clusterid/clusteridtest"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/link"
)

func (a *api) kept(t testing.TB, p link.Peer) uint64 {
	t.Helper()
	var k v1alpha1.PeerTrust
	a.MustGet(t, system, p.Name, &k)
	list, _ := applied(p, &k)
	return list.Number
}

func TestLearn(t *testing.T) {
	again := linkTo("east", east())
	again.UID = "another"
	for name, c := range map[string]struct {
		why  string
		had  []byte
		link *v1alpha1.Link
		sent []byte
		want uint64 // kept afterwards
		err  error
	}{
		"first":     {why: "nothing was known", sent: east().SignedList(3), want: 3},
		"higher":    {why: "rotation announces itself by a higher number", had: east().SignedList(3), sent: east().SignedList(4), want: 4},
		"same":      {why: "each replica signs its own bytes of one number", had: east().SignedList(3), sent: east().SignedList(3), want: 3},
		"lower":     {why: "a dropped issuer must not come back", had: east().SignedList(3), sent: east().SignedList(2), want: 3, err: errOlder},
		"not its":   {why: "a peer vouches for its own trust domain only", had: east().SignedList(3), sent: west().SignedList(9), want: 3, err: identity.ErrIssuerList},
		"garbage":   {why: "bytes of a stranger", had: east().SignedList(3), sent: []byte("x"), want: 3, err: identity.ErrIssuerList},
		"new Link":  {why: "trust learnt for another Link of the name counts for nothing", had: east().SignedList(3), link: again, sent: east().SignedList(2), want: 2},
		"no list":   {why: "an empty list takes nobody's trust away", had: east().SignedList(3), want: 3, err: identity.ErrIssuerList},
		"bad store": {why: "what somebody has broken by hand is learnt anew", had: []byte("x"), sent: east().SignedList(1), want: 1},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t)
			first := peerOf(t, linkTo("east", east()))
			if c.had != nil {
				kept := &v1alpha1.PeerTrust{Spec: v1alpha1.PeerTrustSpec{LinkUID: first.UID, IssuerList: c.had}}
				kept.Namespace, kept.Name = system, "east"
				if err := a.Create(t.Context(), kept); err != nil {
					t.Fatal(err)
				}
			}
			p := first
			if c.link != nil {
				p = peerOf(t, c.link)
			}
			// A new process each time: nothing is remembered but what is stored.
			_, err := trusts{a, system}.learn(t.Context(), p, c.sent)
			if !errors.Is(err, c.err) {
				t.Errorf("%s: error %v, want %v", c.why, err, c.err)
			}
			if got := a.kept(t, p); got != c.want {
				t.Errorf("%s: list %d is kept, want %d", c.why, got, c.want)
			}
		})
	}
}

func TestLearnAtOnce(t *testing.T) {
	a, p := newAPI(t), peerOf(t, linkTo("east", east()))
	// Both look before either writes.
	var looked sync.WaitGroup
	looked.Add(2)
	var mu sync.Mutex
	looks := 0
	a.Refuse(func(verb string, _ client.Object) error {
		if verb != "get" {
			return nil
		}
		mu.Lock()
		looks++
		early := looks <= 2
		mu.Unlock()
		if early {
			looked.Done()
			looked.Wait()
		}
		return nil
	})
	var both sync.WaitGroup
	for _, number := range []uint64{1, 2} {
		both.Go(func() {
			_, err := trusts{a, system}.learn(t.Context(), p, east().SignedList(number))
			if err != nil && !errors.Is(err, errOlder) {
				t.Error(err)
			}
		})
	}
	both.Wait()
	if got := a.kept(t, p); got != 2 {
		t.Errorf("of two replicas that learn lists 1 and 2 at once the newer must stay, kept %d", got)
	}
}

// meetEast starts peers that know east and dial nobody.
func meetEast(t *testing.T, a *api, gateways ...string) (*peers, *peerState, context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	p := newPeers(a, &wire.Board{}, func() {})
	if err := p.board.SetHello(hello(west(), 1)); err != nil { // else streams fail at once
		t.Fatal(err)
	}
	p.set(ctx, map[string]link.Peer{"east": peerOf(t, linkTo("east", east(), gateways...))})
	return p, p.links["east"], func() { cancel(); p.running.Wait() }
}

func hello(o *clusteridtest.Cluster, number uint64) *wire.Hello {
	return &wire.Hello{Version: "v9", IssuerList: o.SignedList(number), LinkPublicKey: o.LinkKey().Public()}
}

func TestRepeatedHellosCostNothing(t *testing.T) {
	east() // keys are made by the real clock
	west()
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(t)
		p, _, end := meetEast(t, a)
		defer end()
		sink, h := inboundSink{p}, hello(east(), 2)
		for range 1000 {
			if n := sink.Hello("east", h, 0); n != 2 {
				t.Fatalf("the peer is told that list %d is applied, want 2", n)
			}
		}
		if got := a.Reads(); got != 1 {
			t.Errorf("1000 Hellos with one list read the API %d times, want 1", got)
		}
		for n := range uint64(100) {
			sink.Hello("east", hello(east(), 3+n), 0)
		}
		if got := a.Reads(); got > 10 {
			t.Errorf("100 Hellos at once, each with its own list, read the API %d times", got)
		}
	})
}

func TestOlderListIsRefusedOnce(t *testing.T) {
	a := newAPI(t)
	p, s, end := meetEast(t, a)
	defer end()
	sink, old := inboundSink{p}, hello(east(), 1)
	sink.Hello("east", hello(east(), 2), 0)
	before := a.Reads()
	for range 3 {
		if n := sink.Hello("east", old, 0); n != 2 {
			t.Errorf("list %d is told to be applied, want 2", n)
		}
	}
	if a.Reads() != before {
		t.Error("an old list costs no read of the API")
	}
	if got := a.kept(t, s.peer); got != 2 {
		t.Errorf("list %d is kept, want 2", got)
	}
}

func TestRecall(t *testing.T) {
	west()
	h := hello(east(), 2)
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(t)
		p, s, end := meetEast(t, a)
		defer end()
		// The API server is away while the peer says hello.
		a.Refuse(func(string, client.Object) error { return errors.New("no route to host") })
		inboundSink{p}.Hello("east", h, 0)
		p.recall(nil)
		p.recall(nil) // one goroutine, however often it is asked for
		time.Sleep(10 * time.Second)
		a.Refuse(nil)
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := a.kept(t, s.peer); got != 2 {
			t.Fatalf("list %d is kept after the API server came back, want 2", got)
		}
		// Somebody deletes it by hand.
		var k v1alpha1.PeerTrust
		a.MustGet(t, system, "east", &k)
		if err := a.Delete(t.Context(), &k); err != nil {
			t.Fatal(err)
		}
		a.Writes()
		p.recall(map[string]uint64{})
		time.Sleep(time.Minute)
		if got := a.kept(t, s.peer); got != 2 {
			t.Errorf("list %d is kept after it was deleted by hand, want 2", got)
		}
		a.Writes()
		p.recall(map[string]uint64{"east": 2})
		time.Sleep(time.Minute)
		if w := a.Writes(); len(w) > 0 {
			t.Errorf("nothing was lost, and yet: %v", w)
		}
	})
}

func TestRecallNeverGoesBack(t *testing.T) {
	west()
	h := hello(east(), 1)
	newer := east().SignedList(5)
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(t)
		p, s, end := meetEast(t, a)
		defer end()
		inboundSink{p}.Hello("east", h, 0)
		// Another replica learns list 5; this one's cache shows nothing of all that yet.
		if _, err := (trusts{a, system}).learn(t.Context(), s.peer, newer); err != nil {
			t.Fatal(err)
		}
		a.Writes()
		for range 3 {
			p.recall(nil)
			time.Sleep(time.Minute)
		}
		if got := a.kept(t, s.peer); got != 5 || len(a.Writes()) > 0 {
			t.Errorf("list %d is kept, want 5, and nothing written", got)
		}
	})
}

func TestLinkMadeAnewUnderAStream(t *testing.T) {
	west()
	h := hello(east(), 2)
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(t)
		p, _, end := meetEast(t, a)
		defer end()
		inboundSink{p}.Hello("east", h, 0)
		anew := linkTo("east", east())
		anew.UID = types.UID("another")
		p.set(t.Context(), map[string]link.Peer{"east": peerOf(t, anew)})
		if heard := p.heard("east"); !heard.inbound || heard.hello != h {
			t.Fatal("the stream goes on and says hello but once: what it said must hold for the new Link")
		}
		p.recall(nil)
		time.Sleep(time.Minute)
		if got := a.kept(t, peerOf(t, anew)); got != 2 {
			t.Errorf("list %d is kept for the new Link, want 2", got)
		}
		inboundSink{p}.Disconnected("east", nil)
		if p.heard("east").inbound {
			t.Error("the stream has ended")
		}
		p.set(t.Context(), nil)
	})
}

func TestLinkTellsOfThePeersRoot(t *testing.T) {
	for name, c := range map[string]struct {
		why    string
		peer   *clusteridtest.Cluster
		reason string
		trusts bool
	}{
		"as pinned": {"the ordinary case", east(), "Trusted", true},
		"followed":  {"the old Link is good, and is to be applied anew in time", east().Rotated(false), "RootFollowed", true},
		"revoked":   {"the old stream still stands, but who speaks there is not believed", east().Rotated(true), "IssuersRefused", false},
	} {
		t.Run(name, func(t *testing.T) {
			r := newReplica(t, newAPI(t, linkTo("east", east())))
			r.leading.Store(true)
			ctx, cancel := context.WithCancel(t.Context())
			defer func() { cancel(); r.peers.running.Wait(); r.leader.running.Wait() }()
			think := func() {
				t.Helper()
				if err := r.think(ctx, time.Now()); err != nil {
					t.Fatal(err)
				}
			}
			think()
			sink := inboundSink{r.peers}
			if c.reason == "IssuersRefused" { // what stood before
				sink.Hello("east", hello(east(), 1), 0)
			}
			h := &wire.Hello{Version: "v9", IssuerList: c.peer.Hello().IssuerList, LinkPublicKey: c.peer.LinkKey().Public()}
			sink.Hello("east", h, 0)
			think()
			think()
			var l v1alpha1.Link
			r.MustGet(t, "", "east", &l)
			snap, err := gather(ctx, r.api, system, false)
			if err != nil {
				t.Fatal(err)
			}
			th := &thought{snapshot: snap, now: time.Now(), peers: map[string]link.Peer{"east": peerOf(t, &l)}}
			j := r.job(th, &l, true)
			status, _ := link.Status(&l, j.seen, time.Now())
			got := meta.FindStatusCondition(status.Conditions, v1alpha1.LinkTrusted)
			if got == nil || got.Reason != c.reason || (got.Status == metav1.ConditionTrue) != c.trusts {
				t.Errorf("%+v, want %s: %s", got, c.reason, c.why)
			}
		})
	}
}
