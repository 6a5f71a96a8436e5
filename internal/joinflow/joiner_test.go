package joinflow

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/clusterid/clusteridtest"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/invite"
	"github.com/causeway-mesh/causeway/internal/kube/kubetest"
	"github.com/causeway-mesh/causeway/internal/link"
)

// The inviter checks what the joining cluster should have checked itself.
func TestServerChecksNameAndIdentity(t *testing.T) {
	h := newHost(t, east())
	token := h.invite(t, east(), "west", 0)
	g := newGuest(t, west(), h)
	if _, err := g.joiner.exchange(t.Context(), "gw:1", "north", token); !errors.As(err,
		new(*invite.Refusal)) {
		t.Errorf("wrong name: %v", err)
	}
	own := newGuest(t, east(), h)
	_, err := own.joiner.exchange(t.Context(), "gw:1", "west", token)
	if reason, _ := invite.ReasonOf(err); reason != invite.OwnCluster {
		t.Errorf("own cluster: %v", err)
	}
	if len(h.links(t)) > 0 || h.status(t, "west").Joined != nil {
		t.Error("a refusal must leave the invite open")
	}
}

// When two clusters use one token at the same time, one gets a Link and the other is
// refused.
func TestConcurrentJoinsOfOneInvite(t *testing.T) {
	for range 5 {
		h := newHost(t, east())
		token := h.invite(t, east(), "west", 0)
		guests := []*guest{newGuest(t, west(), h), newGuest(t, south(), h)}
		states := make([]v1alpha1.JoinStatus, len(guests))
		var racing sync.WaitGroup
		for i, g := range guests {
			j := g.join(t, "east", token, "west")
			racing.Go(func() { states[i] = g.step(t, j) })
		}
		racing.Wait()
		won, lost := 0, 0
		for _, s := range states {
			switch {
			case s.State == v1alpha1.JoinLinked:
				won++
			case s.State == v1alpha1.JoinRefused && s.Reason == string(invite.Used):
				lost++
			}
		}
		if won != 1 || lost != 1 || len(h.links(t)) != 1 {
			t.Fatalf("%+v; Links %v", states, h.links(t))
		}
		if s := h.status(t, "west"); len(s.Refusals) != 1 {
			t.Errorf("the status of the invite is %+v", s)
		}
	}
}

// A cluster that uses two tokens of one inviter at the same time gets one Link on each
// side.
func TestConcurrentJoinsOfOneInviter(t *testing.T) {
	for range 5 {
		h := newHost(t, east())
		g := newGuest(t, west(), h)
		joins := []*v1alpha1.Join{
			g.join(t, "east", h.invite(t, east(), "west", 0), "west"),
			g.join(t, "far", h.invite(t, east(), "west-again", 0), "west-again"),
		}
		states := make([]v1alpha1.JoinStatus, len(joins))
		var racing sync.WaitGroup
		for i, j := range joins {
			racing.Go(func() {
				for states[i].State != v1alpha1.JoinLinked && states[i].State != v1alpha1.JoinRefused &&
					t.Context().Err() == nil && !t.Failed() {
					states[i] = g.step(t, j)
				}
			})
		}
		racing.Wait()
		var ours v1alpha1.LinkList
		if err := g.List(t.Context(), &ours); err != nil {
			t.Fatal(err)
		}
		won, lost := states[0], states[1]
		if won.State != v1alpha1.JoinLinked {
			won, lost = lost, won
		}
		if won.State != v1alpha1.JoinLinked || lost.Reason != string(invite.AlreadyLinked) ||
			len(ours.Items) != 1 || len(h.links(t)) != 1 {
			t.Fatalf("%+v; Links here %d, there %v", states, len(ours.Items), h.links(t))
		}
	}
}

// If a Link of the name appears between the Joiner's check and its write, the inviter
// has its Link already. The same token then links the same cluster under another name.
func TestJoinAgainUnderAnotherName(t *testing.T) {
	h := newHost(t, east())
	g := newGuest(t, west(), h)
	token := h.invite(t, east(), "west", 0)
	j := g.join(t, "east", token, "west")
	g.Refuse(func(verb string, o client.Object) error {
		if isLink(o) && verb == "create" && o.GetUID() != "link-east" {
			g.Refuse(nil)
			return g.API.Create(t.Context(), south().Link("east"))
		}
		return nil
	})
	if s := g.step(t, j); s.State != v1alpha1.JoinPending {
		t.Fatalf("%+v", s)
	}
	if s := g.step(t, j); s.State != v1alpha1.JoinRefused || s.Reason != string(invite.NameTaken) {
		t.Fatalf("%+v", s)
	}
	if s := g.step(t, g.join(t, "far", token, "west")); s.State != v1alpha1.JoinLinked {
		t.Errorf("%+v", s)
	}
	if diff := cmp.Diff([]string{"west " + west().TrustDomain()}, h.links(t)); diff != "" {
		t.Error(diff)
	}
}

// A server without the inviter's root learns nothing about the token.
func TestJoinerTrustsThePinnedRootOnly(t *testing.T) {
	h := newHost(t, south())
	g := newGuest(t, west(), h)
	token := h.invite(t, east(), "west", 0)
	s := g.step(t, g.join(t, "east", token, "west"))
	if s.State != v1alpha1.JoinPending || !strings.Contains(s.Message, "not the inviter") {
		t.Errorf("%+v", s)
	}
	if len(h.links(t)) > 0 || h.status(t, "west").Joined != nil {
		t.Error("the impostor received the joining cluster's data")
	}
}

// An inviter that claims the trust domain or the key of a linked peer must not disturb
// that peer's Link.
func TestJoinKeepsExistingPeer(t *testing.T) {
	namesake := clusteridtest.New("east", "27a432a2") // east's trust domain with another root
	copied := clusteridtest.NewWithLinkKey("north", "44444444", east())
	for name, inviter := range map[string]*clusteridtest.Cluster{
		"its trust domain": namesake,
		"its key":          copied,
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, inviter)
			g := newGuest(t, west(), h)
			if err := g.Create(t.Context(), east().Link("east")); err != nil {
				t.Fatal(err)
			}
			j := g.join(t, "other", h.invite(t, inviter, "west", 0), "west")
			if s := g.step(t, j); s.State != v1alpha1.JoinRefused ||
				s.Reason != string(invite.AlreadyLinked) || !strings.Contains(s.Message, "Link east") {
				t.Errorf("%+v", s)
			}
			var links v1alpha1.LinkList
			if err := g.List(t.Context(), &links); err != nil {
				t.Fatal(err)
			}
			judgment := link.Judge(west().Own(), links.Items)
			if peers, faults := judgment.Peers, judgment.Faults; len(peers) != 1 || len(faults) > 0 {
				t.Errorf("the existing Link: peers %v, faults %v", peers, faults)
			}
		})
	}
}

func TestJoinReportsUnreachableInviter(t *testing.T) {
	h := newHost(t, east())
	g := newGuest(t, west(), h)
	token := h.invite(t, east(), "west", 0)
	g.joiner.c.Dial = func(context.Context, string) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Err: errors.New("no route to host")}
	}
	j := g.join(t, "east", token, "west")
	s := g.step(t, j)
	if s.State != v1alpha1.JoinPending ||
		!strings.Contains(s.Message, "198.51.100.2:4143: it cannot be reached") {
		t.Errorf("%+v", s)
	}
	g.Writes()
	if g.step(t, j); len(g.Writes()) > 0 {
		t.Error("an unchanged status is written again")
	}
}

func TestJoinReportsBadToken(t *testing.T) {
	g := newGuest(t, west(), newHost(t, east()))
	j := newJoin("east", "west", 0)
	if err := g.Create(t.Context(), j); err != nil {
		t.Fatal(err)
	}
	if again, err := g.joiner.step(t.Context(), client.ObjectKeyFromObject(j),
		j.UID); again != minSecretRetry || err != nil {
		t.Errorf("the Secret appears a moment later: retry in %v, %v", again, err)
	}
	if err := g.Create(t.Context(), secretOf(j, "Join", invite.JoinSecretName("east"), invite.TokenKey,
		[]byte("nonsense"))); err != nil {
		t.Fatal(err)
	}
	if s := g.step(t, j); s.Reason != string(invite.BadToken) {
		t.Errorf("%+v", s)
	}
	if again, err := g.joiner.step(t.Context(), client.ObjectKeyFromObject(j), "another"); again != 0 ||
		err != nil {
		t.Errorf("another Join of the same name must be left alone: %v, %v", again, err)
	}
}

// The leader works on each Join once, however often the Joins are set, and stops when a
// Join is deleted.
func TestSetRunsOneWorkerPerJoin(t *testing.T) {
	h := newHost(t, east())
	g := newGuest(t, west(), h)
	j := g.join(t, "east", h.invite(t, east(), "west", 0), "west")
	ctx, cancel := context.WithCancel(t.Context())
	defer func() { cancel(); g.joiner.Wait() }()
	g.joiner.Set(ctx, []*v1alpha1.Join{j})
	g.joiner.Set(ctx, []*v1alpha1.Join{j})
	if n := len(g.joiner.workers); n != 1 {
		t.Errorf("%d workers for one Join", n)
	}
	g.joiner.Wait()
	var now v1alpha1.Join
	g.MustGet(t, system, "east", &now)
	if now.Status.State != v1alpha1.JoinLinked {
		t.Fatalf("the worker ended with %+v", now.Status)
	}
	g.joiner.Set(ctx, nil)
	if len(g.joiner.workers) != 0 {
		t.Error("a worker of a deleted Join remains")
	}
	finished := j.DeepCopy()
	finished.UID, finished.Status.State = "finished", v1alpha1.JoinRefused
	g.joiner.Set(ctx, []*v1alpha1.Join{finished})
	if len(g.joiner.workers) != 0 {
		t.Error("a worker started for a finished Join")
	}
}

// A Join whose API server fails is retried with a backoff, and its worker ends with the
// context.
func TestWorkerRetriesAfterFailure(t *testing.T) {
	west()
	synctest.Test(t, func(t *testing.T) {
		api := kubetest.New(nil)
		joiner := NewJoiner(Config{
			Client:    api,
			Namespace: system,
			Identity:  west().Identity,
			Log:       discardLog,
		})
		api.Refuse(func(string, client.Object) error { return errors.New("connection refused") })
		ctx, cancel := context.WithCancel(t.Context())
		joiner.Set(ctx, []*v1alpha1.Join{newJoin("east", "west", 0)})
		bubble.Pass(10 * time.Minute)
		if n := api.Reads(); n < 10 || n > 200 {
			t.Errorf("%d attempts in ten minutes", n)
		}
		cancel()
		joiner.Wait()
	})
}

// A join succeeds with each key exchange that the joining cluster may be configured for.
func TestJoinWithEachKeyExchange(t *testing.T) {
	for k, want := range map[identity.KeyExchange]int{identity.PostQuantum: 2, identity.Classical: 1} {
		h := newHost(t, east())
		g := newGuest(t, west(), h)
		g.joiner.c.KeyExchange = k
		token := h.invite(t, east(), "west", 0)
		if n := len(g.joiner.tls(token).CurvePreferences); n != want {
			t.Errorf("key exchange %d: the joiner offers %d groups, want %d", k, n, want)
		}
		if s := g.step(t, g.join(t, "east", token, "west")); s.State != v1alpha1.JoinLinked {
			t.Errorf("key exchange %d: %+v", k, s)
		}
	}
}
