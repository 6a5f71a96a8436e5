package controller

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/clusterid/clusteridtest"
	"github.com/causeway-mesh/causeway/internal/invite"
	"github.com/causeway-mesh/causeway/internal/link"
)

// A joiner that hides its name, or does not look at its own Links, gets no further than one that does.
func TestInviterJudgesForItself(t *testing.T) {
	h := newHost(t, east())
	token := h.invites(t, east(), "west", 0)
	g := newGuest(t, west(), h)
	if _, err := g.joiner.exchange(t.Context(), "gw:1", "north", token); !errors.As(err, new(*invite.Refusal)) {
		t.Errorf("wrong name: %v", err)
	}
	own := newGuest(t, east(), h)
	_, err := own.joiner.exchange(t.Context(), "gw:1", "west", token)
	if reason, _ := invite.ReasonOf(err); reason != invite.OwnCluster {
		t.Errorf("itself: %v", err)
	}
	if len(h.links(t)) > 0 || h.status(t, "west").Joined != nil {
		t.Error("a refusal has burnt the invite")
	}
}

// Of two who use a token at the same time, at two replicas, one gets a Link and the other is told.
func TestTwoRaceForOneInvite(t *testing.T) {
	for range 5 {
		h := newHost(t, east())
		token := h.invites(t, east(), "west", 0)
		guests := []*guest{newGuest(t, west(), h), newGuest(t, south(), h)}
		states := make([]v1alpha1.JoinStatus, len(guests))
		var racing sync.WaitGroup
		for i, g := range guests {
			j := g.brings(t, token, "west")
			racing.Go(func() { states[i] = g.works(t, j) })
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
			t.Errorf("the inviter's people see %+v", s)
		}
	}
}

// A cluster that brings two tokens of one inviter at the same time ends with one Link on either side: two would be none.
func TestTwoTokensOfOneInviter(t *testing.T) {
	for range 5 {
		h := newHost(t, east())
		g := newGuest(t, west(), h)
		joins := []*v1alpha1.Join{
			g.bringsTo(t, "east", h.invites(t, east(), "west", 0), "west"),
			g.bringsTo(t, "far", h.invites(t, east(), "west-again", 0), "west-again"),
		}
		states := make([]v1alpha1.JoinStatus, len(joins))
		var racing sync.WaitGroup
		for i, j := range joins {
			racing.Go(func() {
				for states[i].State != v1alpha1.JoinLinked && states[i].State != v1alpha1.JoinRefused && t.Context().Err() == nil && !t.Failed() {
					states[i] = g.works(t, j)
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
		if won.State != v1alpha1.JoinLinked || lost.Reason != string(invite.AlreadyKnown) || len(ours.Items) != 1 || len(h.links(t)) != 1 {
			t.Fatalf("%+v; Links here %d, there %v", states, len(ours.Items), h.links(t))
		}
	}
}

// If somebody takes the Link's name between the joiner's look and its write, the inviter has its Link already: the same token
// links the same cluster by another name, and nothing is left behind.
func TestJoinAnewByAnotherName(t *testing.T) {
	h := newHost(t, east())
	g := newGuest(t, west(), h)
	token := h.invites(t, east(), "west", 0)
	j := g.brings(t, token, "west")
	g.Refuse(func(verb string, o client.Object) error {
		if isLink(o) && verb == "create" && o.GetUID() != "link-east" {
			g.Refuse(nil)
			return g.WithWatch.Create(t.Context(), linkTo("east", south()))
		}
		return nil
	})
	if s := g.works(t, j); s.State != v1alpha1.JoinPending {
		t.Fatalf("%+v", s)
	}
	if s := g.works(t, j); s.State != v1alpha1.JoinRefused || s.Reason != string(invite.NameTaken) {
		t.Fatalf("%+v", s)
	}
	if s := g.works(t, g.bringsTo(t, "far", token, "west")); s.State != v1alpha1.JoinLinked {
		t.Errorf("%+v", s)
	}
	if diff := cmp.Diff([]string{"west " + west().TrustDomain()}, h.links(t)); diff != "" {
		t.Error(diff)
	}
}

// Whoever stands on the path and has not the inviter's root hears nothing of the token.
func TestJoinerBelievesThePinnedRootAlone(t *testing.T) {
	h := newHost(t, south())
	g := newGuest(t, west(), h)
	token := h.invites(t, east(), "west", 0)
	s := g.works(t, g.brings(t, token, "west"))
	if s.State != v1alpha1.JoinPending || !strings.Contains(s.Message, "not the inviter") {
		t.Errorf("%+v", s)
	}
	if len(h.links(t)) > 0 || h.status(t, "west").Joined != nil {
		t.Error("the impostor has the joiner's material")
	}
}

// An inviter that passes for a peer we have already, by its trust domain or its key, must not end that one's Link: of two
// that claim one peer neither counts.
func TestJoinHarmsNoOtherPeer(t *testing.T) {
	namesake := clusteridtest.New("east", "27a432a2") // east's trust domain, and a root of its own
	copied := clusteridtest.NewWithLinkKey("north", "44444444", east())
	for name, inviter := range map[string]*clusteridtest.Cluster{"its trust domain": namesake, "its key": copied} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, inviter)
			g := newGuest(t, west(), h)
			if err := g.Create(t.Context(), linkTo("east", east())); err != nil {
				t.Fatal(err)
			}
			j := g.bringsTo(t, "other", h.invites(t, inviter, "west", 0), "west")
			if s := g.works(t, j); s.State != v1alpha1.JoinRefused || s.Reason != string(invite.AlreadyKnown) || !strings.Contains(s.Message, "Link east") {
				t.Errorf("%+v", s)
			}
			var links v1alpha1.LinkList
			if err := g.List(t.Context(), &links); err != nil {
				t.Fatal(err)
			}
			if peers, faults := link.Judge(halfOf(t, west()), links.Items); len(peers) != 1 || len(faults) > 0 {
				t.Errorf("the Link that was there: peers %v, faults %v", peers, faults)
			}
		})
	}
}

func TestJoinTellsWhatKeepsIt(t *testing.T) {
	h := newHost(t, east())
	g := newGuest(t, west(), h)
	token := h.invites(t, east(), "west", 0)
	g.joiner.reach = func(context.Context, string) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Err: errors.New("no route to host")}
	}
	j := g.brings(t, token, "west")
	s := g.works(t, j)
	if s.State != v1alpha1.JoinPending || !strings.Contains(s.Message, "198.51.100.2:4143: it cannot be reached") {
		t.Errorf("%+v", s)
	}
	g.Writes()
	if g.works(t, j); len(g.Writes()) > 0 {
		t.Error("it writes with each try")
	}
}

func TestBadTokenIsSaid(t *testing.T) {
	g := newGuest(t, west(), newHost(t, east()))
	j := &v1alpha1.Join{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: "east", CreationTimestamp: metav1.Now()}, Spec: v1alpha1.JoinSpec{As: "west"}}
	if err := g.Create(t.Context(), j); err != nil {
		t.Fatal(err)
	}
	if again, err := g.joiner.work(t.Context(), client.ObjectKeyFromObject(j), j.UID); again != secretRetry || err != nil {
		t.Errorf("the token comes a moment later: again in %v, %v", again, err)
	}
	if err := g.Create(t.Context(), besides(j, "Join", invite.JoinSecretName("east"), invite.TokenKey, []byte("nonsense"))); err != nil {
		t.Fatal(err)
	}
	if s := g.works(t, j); s.Reason != string(invite.BadToken) {
		t.Errorf("%+v", s)
	}
	if again, err := g.joiner.work(t.Context(), client.ObjectKeyFromObject(j), "another"); again != 0 || err != nil {
		t.Errorf("another Join of the name is another's: %v, %v", again, err)
	}
}

func TestKeepInvites(t *testing.T) {
	a := newAPI(t)
	r := newReplica(t, a)
	add := func(name string, age time.Duration) {
		inv := &v1alpha1.Invite{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: name, CreationTimestamp: metav1.NewTime(time.Now().Add(-age))},
			Spec: v1alpha1.InviteSpec{ValidSeconds: 900}}
		if err := a.Create(t.Context(), inv); err != nil {
			t.Fatal(err)
		}
	}
	add("new", 0)
	add("late", 20*time.Minute)
	add("old", 3*time.Hour)
	old := &v1alpha1.Join{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: "old", CreationTimestamp: metav1.NewTime(time.Now().Add(-3 * time.Hour))}}
	if err := a.Create(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	keep := func() map[string]string {
		var invites v1alpha1.InviteList
		var joins v1alpha1.JoinList
		for _, list := range []client.ObjectList{&invites, &joins} {
			if err := a.List(t.Context(), list); err != nil {
				t.Fatal(err)
			}
		}
		a.Writes()
		if err := r.leader.keepInvites(t.Context(), invites.Items, joins.Items, time.Now()); err != nil {
			t.Fatal(err)
		}
		states := make(map[string]string)
		if err := a.List(t.Context(), &invites); err != nil {
			t.Fatal(err)
		}
		for _, i := range invites.Items {
			states[i.Name] = i.Status.State
		}
		return states
	}
	if diff := cmp.Diff(map[string]string{"new": v1alpha1.InviteOpen, "late": v1alpha1.InviteExpired}, keep()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if err := a.Get(t.Context(), client.ObjectKeyFromObject(old), old); !apierrors.IsNotFound(err) {
		t.Errorf("an old Join stays: %v", err)
	}
	if keep(); len(a.Writes()) > 0 {
		t.Error("it writes though nothing changed")
	}
}

func TestInvitationsAreForGateways(t *testing.T) {
	h := newHost(t, west())
	r := newReplica(t, h.api)
	token := h.invites(t, west(), "east", 0)
	h.invites(t, west(), "late", 20*time.Minute)
	h.invites(t, west(), "long-over", time.Hour)
	naked := &v1alpha1.Invite{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: "naked", CreationTimestamp: metav1.Now()}, Spec: v1alpha1.InviteSpec{ValidSeconds: 900}}
	if err := h.Create(t.Context(), naked); err != nil {
		t.Fatal(err)
	}
	var list v1alpha1.InviteList
	if err := h.List(t.Context(), &list); err != nil {
		t.Fatal(err)
	}
	th := &thought{snapshot: &snapshot{invites: list.Items}, now: time.Now()}
	keys := make(map[string][32]byte)
	for _, i := range r.invitations(t.Context(), th) {
		keys[i.Name] = i.LabelKey
	}
	if keys["east"] != token.Secret.LabelKey() {
		t.Error("gateways cannot open what the token's holder seals")
	}
	if _, late := keys["late"]; !late || len(keys) != 2 {
		t.Errorf("keys of %d invites: who comes late must hear it, who comes much later not", len(keys))
	}
	if r.brain.again != secretRetry {
		t.Errorf("an Invite whose Secret comes a moment later is looked at again in %v", r.brain.again)
	}
	r.brain.again, th.now = 0, time.Now().Add(8*time.Minute)
	r.invitations(t.Context(), th)
	if r.brain.again < 100*secretRetry {
		t.Errorf("one that has none after 8 minutes makes every replica think anew each %v", r.brain.again)
	}
	th.now = time.Now()
	before := h.Reads()
	r.invitations(t.Context(), th)
	if n := h.Reads() - before; n != 1 { // of the naked one
		t.Errorf("secrets are read %d times", n)
	}
}

// The leader works on each Join once, whatever wakes it, and not on what is gone.
func TestOfferJoins(t *testing.T) {
	h := newHost(t, east())
	g := newGuest(t, west(), h)
	r := newReplica(t, g.api)
	r.leader.joiner = g.joiner
	j := g.brings(t, h.invites(t, east(), "west", 0), "west")
	ctx, cancel := context.WithCancel(t.Context())
	defer func() { cancel(); r.leader.running.Wait() }()
	r.leader.offerJoins(ctx, []v1alpha1.Join{*j})
	r.leader.offerJoins(ctx, []v1alpha1.Join{*j})
	patience, end := context.WithTimeout(ctx, 30*time.Second)
	defer end()
	if n := len(r.leader.joins); n != 1 {
		t.Errorf("%d writers for one Join", n)
	}
	for {
		var now v1alpha1.Join
		g.MustGet(t, system, "east", &now)
		if now.Status.State == v1alpha1.JoinLinked {
			break
		}
		if patience.Err() != nil {
			t.Fatal("it never links")
		}
	}
	r.leader.offerJoins(ctx, nil)
	if len(r.leader.joins) != 0 {
		t.Error("it works on a Join that is gone")
	}
	done := j.DeepCopy()
	done.UID, done.Status.State = types.UID("done"), v1alpha1.JoinRefused
	r.leader.offerJoins(ctx, []v1alpha1.Join{*done})
	if len(r.leader.joins) != 0 {
		t.Error("it works on a Join that is done")
	}
}
