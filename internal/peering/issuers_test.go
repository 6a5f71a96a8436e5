package peering

import (
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/kube/kubetest"
	"github.com/causeway-mesh/causeway/internal/link"
)

// storedNumber returns the number of the list that the PeerTrust of p holds.
func storedNumber(t testing.TB, a *kubetest.API, p link.Peer) uint64 {
	t.Helper()
	var trust v1alpha1.PeerTrust
	a.MustGet(t, system, p.Name, &trust)
	list, _ := StoredIssuers(p, &trust)
	return list.Number
}

// anotherEast is the peer of another Link to east with the same name.
func anotherEast() link.Peer {
	l := east().Link("east")
	l.UID = "another"
	return west().PeerOf(l)
}

func TestStoreIssuers(t *testing.T) {
	for name, c := range map[string]struct {
		why    string
		stored []byte
		peer   link.Peer
		sent   []byte
		want   uint64 // stored afterwards
		err    error
	}{
		"first": {why: "nothing was known", sent: east().SignedList(3), want: 3},
		"higher": {
			why:    "rotation announces itself by a higher number",
			stored: east().SignedList(3),
			sent:   east().SignedList(4),
			want:   4,
		},
		"same": {
			why:    "each replica signs its own bytes of one number",
			stored: east().SignedList(3),
			sent:   east().SignedList(3),
			want:   3,
		},
		"lower": {
			why:    "a dropped issuer must not return",
			stored: east().SignedList(3),
			sent:   east().SignedList(2),
			want:   3,
			err:    errOlderList,
		},
		"another cluster": {
			why:    "a peer may only send issuers of its own trust domain",
			stored: east().SignedList(3),
			sent:   west().SignedList(9),
			want:   3,
			err:    identity.ErrIssuerList,
		},
		"garbage": {
			why:    "the bytes come from outside",
			stored: east().SignedList(3),
			sent:   []byte("x"),
			want:   3,
			err:    identity.ErrIssuerList,
		},
		"another Link": {
			why:    "what was learned for another Link of the name does not count",
			stored: east().SignedList(3),
			peer:   anotherEast(),
			sent:   east().SignedList(2),
			want:   2,
		},
		"no list": {
			why:    "an empty list must not remove trust",
			stored: east().SignedList(3),
			want:   3,
			err:    identity.ErrIssuerList,
		},
		"damaged": {
			why:    "a list that was damaged by hand is learned again",
			stored: []byte("x"),
			sent:   east().SignedList(1),
			want:   1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := kubetest.New(nil)
			peer := eastPeer()
			if c.stored != nil {
				trust := &v1alpha1.PeerTrust{Spec: v1alpha1.PeerTrustSpec{
					LinkUID:    peer.UID,
					IssuerList: c.stored,
				}}
				trust.Namespace, trust.Name = system, "east"
				if err := a.Create(t.Context(), trust); err != nil {
					t.Fatal(err)
				}
			}
			if c.peer.Name != "" {
				peer = c.peer
			}
			_, err := trustStore{a, system}.storeIssuers(t.Context(), peer, c.sent)
			if !errors.Is(err, c.err) {
				t.Errorf("%s: error %v, want %v", c.why, err, c.err)
			}
			if got := storedNumber(t, a, peer); got != c.want {
				t.Errorf("%s: list %d is stored, want %d", c.why, got, c.want)
			}
		})
	}
}

func TestConcurrentStoresKeepTheNewerList(t *testing.T) {
	a, peer := kubetest.New(nil), eastPeer()
	// Both read before either writes.
	var both sync.WaitGroup
	both.Add(2)
	var mu sync.Mutex
	reads := 0
	a.Refuse(func(verb string, _ client.Object) error {
		if verb != "get" {
			return nil
		}
		mu.Lock()
		reads++
		early := reads <= 2
		mu.Unlock()
		if early {
			both.Done()
			both.Wait()
		}
		return nil
	})
	var storing sync.WaitGroup
	for _, number := range []uint64{1, 2} {
		storing.Go(func() {
			_, err := trustStore{a, system}.storeIssuers(t.Context(), peer, east().SignedList(number))
			if err != nil && !errors.Is(err, errOlderList) {
				t.Error(err)
			}
		})
	}
	storing.Wait()
	if got := storedNumber(t, a, peer); got != 2 {
		t.Errorf("two replicas stored lists 1 and 2 at once; list %d is stored, want 2", got)
	}
}

func TestRepeatedHellosReadTheAPIOnce(t *testing.T) {
	west()
	h := hello(east(), 2)
	synctest.Test(t, func(t *testing.T) {
		a := kubetest.New(nil)
		p, end := setEast(t, a)
		defer end()
		stream := p.StreamForTest("east", "")
		for range 1000 {
			if n := stream.Hello(h); n != 2 {
				t.Fatalf("the peer learns that list %d is applied, want 2", n)
			}
		}
		if got := a.Reads(); got != 1 {
			t.Errorf("1000 Hellos with one list read the API %d times, want 1", got)
		}
		for n := range uint64(100) {
			stream.Hello(hello(east(), 3+n))
		}
		if got := a.Reads(); got > 10 {
			t.Errorf("100 Hellos at once with different lists read the API %d times", got)
		}
	})
}

func TestOlderListIsRejectedFromMemory(t *testing.T) {
	a := kubetest.New(nil)
	p, end := setEast(t, a)
	defer end()
	stream, old := p.StreamForTest("east", ""), hello(east(), 1)
	stream.Hello(hello(east(), 2))
	before := a.Reads()
	for range 3 {
		if n := stream.Hello(old); n != 2 {
			t.Errorf("the peer learns that list %d is applied, want 2", n)
		}
	}
	if a.Reads() != before {
		t.Error("an older list must not cost a read of the API")
	}
	if got := storedNumber(t, a, eastPeer()); got != 2 {
		t.Errorf("list %d is stored, want 2", got)
	}
	if reason := p.Snapshots()["east"].IssuersRejected; reason != "" {
		t.Errorf("a replica of the peer may be a moment behind, but %q is reported", reason)
	}
	stream.Hello(hello(west(), 9))
	if reason := p.Snapshots()["east"].IssuersRejected; reason == "" {
		t.Error("a list that the root did not sign must be reported")
	}
}

func TestRestoreLostStoresListAgain(t *testing.T) {
	west()
	h := hello(east(), 2)
	synctest.Test(t, func(t *testing.T) {
		a := kubetest.New(nil)
		p, end := setEast(t, a)
		defer end()
		// The API server is away while the peer sends its Hello.
		a.Refuse(func(string, client.Object) error { return errors.New("no route to host") })
		p.StreamForTest("east", "").Hello(h)
		p.RestoreLost(nil)
		p.RestoreLost(nil) // starts no second goroutine
		bubble.Pass(10 * time.Second)
		a.Refuse(nil)
		bubble.Pass(time.Minute)
		if got := storedNumber(t, a, eastPeer()); got != 2 {
			t.Fatalf("list %d is stored after the API server came back, want 2", got)
		}
		// A user deletes the PeerTrust.
		var trust v1alpha1.PeerTrust
		a.MustGet(t, system, "east", &trust)
		if err := a.Delete(t.Context(), &trust); err != nil {
			t.Fatal(err)
		}
		p.RestoreLost(map[string]uint64{})
		bubble.Pass(time.Minute)
		if got := storedNumber(t, a, eastPeer()); got != 2 {
			t.Errorf("list %d is stored after the PeerTrust was deleted, want 2", got)
		}
		a.Writes()
		p.RestoreLost(map[string]uint64{"east": 2})
		bubble.Pass(time.Minute)
		if w := a.Writes(); len(w) > 0 {
			t.Errorf("nothing was lost, but it writes %v", w)
		}
	})
}

// HandOver stores the list for the Link that takes over next, and retries while the API
// server is unreachable.
func TestHandOver(t *testing.T) {
	west()
	list := hello(east(), 2).GetIssuerList()
	synctest.Test(t, func(t *testing.T) {
		a := kubetest.New(nil)
		p, end := setEast(t, a)
		defer end()
		next := eastPeer()
		next.Name, next.UID = "east2", "uid-2"
		a.Refuse(func(string, client.Object) error { return errors.New("no route to host") })
		p.HandOver("east", next, list)
		p.HandOver("east", next, list) // starts no second goroutine
		bubble.Pass(10 * time.Second)
		a.Refuse(nil)
		bubble.Pass(time.Minute)
		if got := storedNumber(t, a, next); got != 2 {
			t.Fatalf("list %d is stored for the other Link, want 2", got)
		}
		a.Writes()
		p.HandOver("east", next, hello(east(), 1).GetIssuerList())
		bubble.Pass(time.Minute)
		p.HandOver("gone", next, hello(east(), 3).GetIssuerList())
		bubble.Pass(time.Minute)
		if w := a.Writes(); len(w) > 0 {
			t.Errorf("an older list, or one of a Link that is gone, is written: %v", w)
		}
	})
}

func TestRestoreLostKeepsNewerList(t *testing.T) {
	west()
	h := hello(east(), 1)
	newer := east().SignedList(5)
	synctest.Test(t, func(t *testing.T) {
		a := kubetest.New(nil)
		p, end := setEast(t, a)
		defer end()
		p.StreamForTest("east", "").Hello(h)
		// Another replica stores list 5. This replica's cache does not show it yet.
		if _, err := (trustStore{a, system}).storeIssuers(t.Context(), eastPeer(), newer); err != nil {
			t.Fatal(err)
		}
		a.Writes()
		for range 3 {
			p.RestoreLost(nil)
			bubble.Pass(time.Minute)
		}
		if got := storedNumber(t, a, eastPeer()); got != 5 || len(a.Writes()) > 0 {
			t.Errorf("list %d is stored, want 5 and no write", got)
		}
	})
}

// An inbound stream sends its Hello once. If its Link is deleted and created again, the
// new Link starts from that Hello.
func TestNewLinkStartsFromInboundHello(t *testing.T) {
	west()
	h := hello(east(), 2)
	synctest.Test(t, func(t *testing.T) {
		a := kubetest.New(nil)
		p, end := setEast(t, a)
		defer end()
		stream := p.StreamForTest("east", "")
		stream.Hello(h)
		stream.Acknowledge(7)
		p.Set(t.Context(), map[string]Want{"east": {Peer: anotherEast()}}, nil)
		if s := p.Snapshots()["east"]; !s.Inbound || s.PeerVersion != "v9" || s.Acknowledged != 7 {
			t.Fatalf("the new Link does not know the open stream: %+v", s)
		}
		p.RestoreLost(nil)
		bubble.Pass(time.Minute)
		if got := storedNumber(t, a, anotherEast()); got != 2 {
			t.Errorf("list %d is stored for the new Link, want 2", got)
		}
		stream.Disconnected(nil)
		if p.Snapshots()["east"].Inbound {
			t.Error("the stream has ended")
		}
		p.Set(t.Context(), nil, nil)
	})
}
