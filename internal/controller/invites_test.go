package controller

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
	j := g.brings(t, h.invites(t, east(), "west", 0), "west")
	if s := g.works(t, j); s.State != v1alpha1.JoinLinked {
		t.Fatalf("%+v", s)
	}
	// What each made of the other must be what `causeway link` would have made.
	var theirs, ours v1alpha1.Link
	h.MustGet(t, "", "west", &theirs)
	g.MustGet(t, "", "east", &ours)
	wantTheirs, wantOurs := linkTo("west", west()).Spec, linkTo("east", east(), "198.51.100.2:4143").Spec
	wantTheirs.Import, wantOurs.Import, wantOurs.Export = nil, nil, nil // as they were told
	if !sameSpec(wantTheirs, theirs.Spec) {
		t.Errorf("the inviter's Link (-want +got)\n%s", cmp.Diff(wantTheirs, theirs.Spec))
	}
	if !sameSpec(wantOurs, ours.Spec) {
		t.Errorf("the joiner's Link (-want +got)\n%s", cmp.Diff(wantOurs, ours.Spec))
	}
	if s := h.status(t, "west"); s.State != v1alpha1.InviteLinked || s.Joined == nil || s.Joined.TrustDomain != west().TrustDomain() || s.Joined.Address != "127.0.0.1" {
		t.Errorf("the inviter's people see %+v", s)
	}
	if e := <-h.recorder.Events; !strings.Contains(e, "Joined") {
		t.Errorf("told %q", e)
	}
	// Done is done.
	h.Writes()
	g.Writes()
	g.works(t, j)
	if w := append(h.Writes(), g.Writes()...); len(w) > 0 {
		t.Errorf("a Join that is done writes %v", w)
	}
}

func sameSpec(a, b v1alpha1.LinkSpec) bool {
	a.Root, b.Root = strings.TrimSpace(a.Root), strings.TrimSpace(b.Root)
	return cmp.Equal(a, b)
}

// Whatever write fails or whatever answer is lost, the same joiner gets there when it tries again, and nobody else does.
func TestJoinGoesOnAfterACrash(t *testing.T) {
	for name, c := range map[string]struct {
		why  string
		fail func(verb string, o client.Object) bool
		then string // the state that the crash leaves behind
	}{
		"binding fails":  {"nothing is made, and nothing burnt", func(v string, o client.Object) bool { return isInvite(o) && v == "update status" }, ""},
		"making fails":   {"the invite is the joiner's, and nobody else's", func(v string, o client.Object) bool { return isLink(o) && v == "create" }, v1alpha1.InviteJoining},
		"listing breaks": {"Links that cannot be read are not none", nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, east())
			g, thief := newGuest(t, west(), h), newGuest(t, south(), h)
			token := h.invites(t, east(), "west", 0)
			j := g.brings(t, token, "west")
			if c.fail == nil {
				h.inviter.client = unlisted{h.api}
			} else {
				h.Refuse(func(verb string, o client.Object) error {
					if c.fail(verb, o) {
						return errors.New("the API server is away")
					}
					return nil
				})
			}
			if s := g.works(t, j); s.State != v1alpha1.JoinPending {
				t.Fatalf("%s: %+v", c.why, s)
			}
			h.Refuse(nil)
			h.inviter.client = h.api
			if s := h.status(t, "west"); s.State != c.then || len(h.links(t)) > 0 {
				t.Fatalf("%s: it left %+v, Links %v", c.why, s, h.links(t))
			}
			if c.then == v1alpha1.InviteJoining {
				if s := thief.works(t, thief.brings(t, token, "west")); s.Reason != string(invite.Used) {
					t.Errorf("%s: a thief gets %+v", c.why, s)
				}
			}
			if s := g.works(t, j); s.State != v1alpha1.JoinLinked || len(h.links(t)) != 1 {
				t.Errorf("%s: it does not go on: %+v", c.why, s)
			}
		})
	}
}

// The joiner's own write may be what fails: the inviter has its Link then, and knows the joiner again.
func TestJoinerCrashes(t *testing.T) {
	h := newHost(t, east())
	g := newGuest(t, west(), h)
	j := g.brings(t, h.invites(t, east(), "west", 0), "west")
	g.Refuse(func(verb string, o client.Object) error {
		if isLink(o) && verb == "create" {
			return errors.New("the API server is away")
		}
		return nil
	})
	if _, err := g.joiner.work(t.Context(), client.ObjectKeyFromObject(j), j.UID); err == nil {
		t.Fatal("it does not say so")
	}
	g.Refuse(nil)
	if s := g.works(t, j); s.State != v1alpha1.JoinLinked {
		t.Errorf("it does not go on: %+v", s)
	}
	if diff := cmp.Diff([]string{"west " + west().TrustDomain()}, h.links(t)); diff != "" {
		t.Error(diff)
	}
}

func isInvite(o client.Object) bool { _, ok := o.(*v1alpha1.Invite); return ok }
func isLink(o client.Object) bool   { _, ok := o.(*v1alpha1.Link); return ok }

// unlisted is an API server that lists nothing.
type unlisted struct{ client.Client }

func (unlisted) List(context.Context, client.ObjectList, ...client.ListOption) error {
	return errors.New("the API server is away")
}

func TestJoinRefused(t *testing.T) {
	for name, c := range map[string]struct {
		why    string
		age    time.Duration
		have   []client.Object
		edit   func(t *testing.T, h *host, token *invite.Token) (as string)
		want   invite.Reason
		told   bool // the inviter's people see it, with the address
		stands int  // Links afterwards
	}{
		"expired": {why: "the joiner is told, and so are the inviter's people", age: 16 * time.Minute, want: invite.Expired, told: true},
		"name taken": {why: "another peer's Link stays as it is", have: []client.Object{linkTo("west", south())},
			want: invite.NameTaken, told: true, stands: 1},
		"linked already": {why: "two Links for one peer are none", have: []client.Object{linkTo("far", west())},
			want: invite.AlreadyKnown, told: true, stands: 1},
		"taken back": {why: "an invite that is gone is not guessed", want: invite.Unknown,
			edit: func(t *testing.T, h *host, _ *invite.Token) string {
				if err := h.Delete(t.Context(), &v1alpha1.Invite{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: "west"}}); err != nil {
					t.Fatal(err)
				}
				return "west"
			}},
		"an older token": {why: "of two tokens for one name only the newest holds", want: invite.BadProof,
			edit: func(_ *testing.T, _ *host, token *invite.Token) string {
				token.Secret = invite.NewSecret()
				return "west"
			}},
		"wrong name": {why: "carried to the wrong cluster", want: invite.WrongName,
			edit: func(*testing.T, *host, *invite.Token) string { return "north" }},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, east(), c.have...)
			token := h.invites(t, east(), "west", c.age)
			as := "west"
			if c.edit != nil {
				as = c.edit(t, h, &token)
			}
			token.Expires = time.Now().Add(time.Minute) // by a clock of the joiner's that is behind
			g := newGuest(t, west(), h)
			j := g.brings(t, token, as)
			s := g.works(t, j)
			if s.State != v1alpha1.JoinRefused || s.Reason != string(c.want) || s.Message == "" {
				t.Errorf("%s: %+v, want %s", c.why, s, c.want)
			}
			var links v1alpha1.LinkList
			if err := g.List(t.Context(), &links); err != nil || len(links.Items) > 0 || len(h.links(t)) != c.stands {
				t.Errorf("%s: Links stand: %v, %v, %v", c.why, links.Items, h.links(t), err)
			}
			if !c.told {
				return
			}
			if s := h.status(t, "west"); len(s.Refusals) != 1 || s.Refusals[0].Reason != string(c.want) || s.Refusals[0].Address != "127.0.0.1" || s.Joined != nil {
				t.Errorf("%s: the inviter's people see %+v", c.why, s)
			}
			if e := <-h.recorder.Events; !strings.Contains(e, string(c.want)) || !strings.Contains(e, "127.0.0.1") {
				t.Errorf("%s: told %q", c.why, e)
			}
		})
	}
}
