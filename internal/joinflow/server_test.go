package joinflow

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/invite"
)

func TestInviteAndJoin(t *testing.T) {
	h := newHost(t, east())
	g := newGuest(t, west(), h)
	j := g.join(t, "east", h.invite(t, east(), "west", 0), "west")
	if s := g.step(t, j); s.State != v1alpha1.JoinLinked {
		t.Fatalf("%+v", s)
	}
	// Each must have created the Link that `causeway link` would have created.
	var theirs, ours v1alpha1.Link
	h.MustGet(t, "", "west", &theirs)
	g.MustGet(t, "", "east", &ours)
	wantTheirs, wantOurs := west().Link("west").Spec, east().Link("east", "198.51.100.2:4143").Spec
	wantTheirs.Import, wantOurs.Import, wantOurs.Export = nil, nil, nil // as the invite and the join ask
	if !sameSpec(wantTheirs, theirs.Spec) {
		t.Errorf("the inviter's Link (-want +got)\n%s", cmp.Diff(wantTheirs, theirs.Spec))
	}
	if !sameSpec(wantOurs, ours.Spec) {
		t.Errorf("the joiner's Link (-want +got)\n%s", cmp.Diff(wantOurs, ours.Spec))
	}
	if s := h.status(t, "west"); s.State != v1alpha1.InviteLinked || s.Joined == nil ||
		s.Joined.TrustDomain != west().TrustDomain() || s.Joined.Address != "127.0.0.1" {
		t.Errorf("the status of the invite is %+v", s)
	}
	if e := <-h.recorder.Events; !strings.Contains(e, "Joined") {
		t.Errorf("Event %q", e)
	}
	h.Writes()
	g.Writes()
	g.step(t, j)
	if w := append(h.Writes(), g.Writes()...); len(w) > 0 {
		t.Errorf("a finished Join writes %v", w)
	}
}

func sameSpec(a, b v1alpha1.LinkSpec) bool {
	a.Root, b.Root = strings.TrimSpace(a.Root), strings.TrimSpace(b.Root)
	return cmp.Equal(a, b)
}

// After any failed call the same cluster can join when it tries again, and no other can.
func TestJoinContinuesAfterServerFailure(t *testing.T) {
	for name, c := range map[string]struct {
		why  string
		fail func(verb string, o client.Object) bool
		then string // the state that the failure leaves behind
	}{
		"binding fails": {
			"nothing is created, and the invite stays open",
			func(v string, o client.Object) bool { return isInvite(o) && v == "update status" },
			"",
		},
		"making fails": {
			"the invite is bound to this cluster",
			func(v string, o client.Object) bool { return isLink(o) && v == "create" },
			v1alpha1.InviteJoining,
		},
		"listing breaks": {"Links that cannot be listed must not count as none", nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, east())
			g, thief := newGuest(t, west(), h), newGuest(t, south(), h)
			token := h.invite(t, east(), "west", 0)
			j := g.join(t, "east", token, "west")
			if c.fail == nil {
				h.server.c.Client = unlisted{h.API}
			} else {
				h.Refuse(func(verb string, o client.Object) error {
					if c.fail(verb, o) {
						return errors.New("the API server is away")
					}
					return nil
				})
			}
			if s := g.step(t, j); s.State != v1alpha1.JoinPending {
				t.Fatalf("%s: %+v", c.why, s)
			}
			h.Refuse(nil)
			h.server.c.Client = h.API
			if s := h.status(t, "west"); s.State != c.then || len(h.links(t)) > 0 {
				t.Fatalf("%s: the failure left %+v, Links %v", c.why, s, h.links(t))
			}
			if c.then == v1alpha1.InviteJoining {
				if s := thief.step(t, thief.join(t, "east", token, "west")); s.Reason != string(invite.Used) {
					t.Errorf("%s: another cluster with the token gets %+v", c.why, s)
				}
			}
			if s := g.step(t, j); s.State != v1alpha1.JoinLinked || len(h.links(t)) != 1 {
				t.Errorf("%s: the join does not continue: %+v", c.why, s)
			}
		})
	}
}

// If the joining cluster's own write fails, the inviter has its Link already and
// recognizes the cluster when it comes again.
func TestJoinContinuesAfterOwnFailure(t *testing.T) {
	h := newHost(t, east())
	g := newGuest(t, west(), h)
	j := g.join(t, "east", h.invite(t, east(), "west", 0), "west")
	g.Refuse(func(verb string, o client.Object) error {
		if isLink(o) && verb == "create" {
			return errors.New("the API server is away")
		}
		return nil
	})
	if _, err := g.joiner.step(t.Context(), client.ObjectKeyFromObject(j), j.UID); err == nil {
		t.Fatal("the failure is not reported")
	}
	g.Refuse(nil)
	if s := g.step(t, j); s.State != v1alpha1.JoinLinked {
		t.Errorf("the join does not continue: %+v", s)
	}
	if diff := cmp.Diff([]string{"west " + west().TrustDomain()}, h.links(t)); diff != "" {
		t.Error(diff)
	}
}

// unlisted is an API server that cannot list.
type unlisted struct{ client.Client }

func (unlisted) List(context.Context, client.ObjectList, ...client.ListOption) error {
	return errors.New("the API server is away")
}

func TestServerRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		why      string
		age      time.Duration
		have     []client.Object
		edit     func(t *testing.T, h *host, token *invite.Token) (as string)
		want     invite.Reason
		recorded bool // the Invite's status has it, with the address
		links    int  // of the inviter afterwards
	}{
		"expired": {
			why:      "both sides must see the reason",
			age:      16 * time.Minute,
			want:     invite.Expired,
			recorded: true,
		},
		"name taken": {
			why:      "another peer's Link must not change",
			have:     []client.Object{south().Link("west")},
			want:     invite.NameTaken,
			recorded: true,
			links:    1,
		},
		"already linked": {
			why:      "a peer must not get a second Link",
			have:     []client.Object{west().Link("far")},
			want:     invite.AlreadyLinked,
			recorded: true,
			links:    1,
		},
		"deleted": {why: "an invite that does not exist admits no cluster", want: invite.Unknown,
			edit: func(t *testing.T, h *host, _ *invite.Token) string {
				if err := h.Delete(t.Context(), &v1alpha1.Invite{ObjectMeta: metav1.ObjectMeta{
					Namespace: system,
					Name:      "west",
				}}); err != nil {
					t.Fatal(err)
				}
				return "west"
			}},
		"an older token": {why: "of two tokens for one name only the newest is valid", want: invite.BadProof,
			edit: func(_ *testing.T, _ *host, token *invite.Token) string {
				token.Secret = invite.NewSecret()
				return "west"
			}},
		"wrong name": {why: "the token was used in the wrong cluster", want: invite.WrongName,
			edit: func(*testing.T, *host, *invite.Token) string { return "north" }},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, east(), c.have...)
			token := h.invite(t, east(), "west", c.age)
			as := "west"
			if c.edit != nil {
				as = c.edit(t, h, &token)
			}
			token.Expires = time.Now().Add(time.Minute) // as by a clock of the joining cluster that is behind
			g := newGuest(t, west(), h)
			j := g.join(t, "east", token, as)
			s := g.step(t, j)
			if s.State != v1alpha1.JoinRefused || s.Reason != string(c.want) || s.Message == "" {
				t.Errorf("%s: %+v, want %s", c.why, s, c.want)
			}
			var links v1alpha1.LinkList
			if err := g.List(t.Context(), &links); err != nil || len(links.Items) > 0 ||
				len(h.links(t)) != c.links {
				t.Errorf("%s: Links exist: %v, %v, %v", c.why, links.Items, h.links(t), err)
			}
			if !c.recorded {
				return
			}
			if s := h.status(t, "west"); len(s.Refusals) != 1 || s.Refusals[0].Reason != string(c.want) ||
				s.Refusals[0].Address != "127.0.0.1" || s.Joined != nil {
				t.Errorf("%s: the status of the invite is %+v", c.why, s)
			}
			if e := <-h.recorder.Events; !strings.Contains(e, string(c.want)) ||
				!strings.Contains(e, "127.0.0.1") {
				t.Errorf("%s: Event %q", c.why, e)
			}
		})
	}
}
