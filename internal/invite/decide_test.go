package invite

import (
	"crypto/x509"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/link"
)

// cluster is a cluster that joins or invites. All tests share the clusters, because keys
// are slow to generate.
type cluster struct {
	root *x509.Certificate
	key  identity.LinkKey
}

var clusters = sync.OnceValue(func() map[string]cluster {
	out := make(map[string]cluster)
	for _, domain := range []string{"east-1", "west-2", "south-3"} {
		root, err := identity.NewRoot(domain, time.Now())
		if err != nil {
			panic(err)
		}
		key, err := identity.NewLinkKey()
		if err != nil {
			panic(err)
		}
		out[domain] = cluster{root.Certificate(), key}
	}
	return out
})

func publicID(domain string) PublicIdentity {
	c := clusters()[domain]
	return PublicIdentity{Root: c.root, TrustDomain: domain, LinkKey: c.key.Public()}
}

func eastOwn(t *testing.T) link.Own {
	t.Helper()
	key, err := link.ParseKey(publicID("east-1").LinkKey)
	if err != nil {
		t.Fatal(err)
	}
	return link.Own{TrustDomain: "east-1", LinkKey: key}
}

func candidate(domain string) Candidate {
	return Candidate{As: "west", PublicIdentity: publicID(domain), Address: "192.0.2.1"}
}

func linkFor(name string, p PublicIdentity) v1alpha1.Link {
	l := v1alpha1.Link{Spec: p.Spec(nil, nil)}
	l.Name = name
	return l
}

var created = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

func TestDecide(t *testing.T) {
	joined := func(domain, state string) v1alpha1.InviteStatus {
		return v1alpha1.InviteStatus{
			State:  state,
			Joined: &v1alpha1.Joiner{TrustDomain: domain, RootHash: publicID(domain).RootHash()},
		}
	}
	west := linkFor("west", publicID("west-2"))
	forged := publicID("west-2")
	forged.TrustDomain = "south-3"
	shortKey := publicID("west-2")
	shortKey.LinkKey = make([]byte, 31)
	for name, c := range map[string]struct {
		why       string
		status    v1alpha1.InviteStatus
		candidate Candidate
		links     []v1alpha1.Link
		late      time.Duration
		deleted   bool
		step      Step
		reason    Reason
	}{
		"first": {
			why:       "the invite is bound to a cluster before a Link is created",
			candidate: candidate("west-2"),
			step:      Bind,
		},
		"bound": {
			why:       "a retry after a crash continues after the binding",
			status:    joined("west-2", v1alpha1.InviteJoining),
			candidate: candidate("west-2"),
			step:      CreateLink,
		},
		"created": {
			why:       "a retry after a crash continues after the Link was created",
			status:    joined("west-2", v1alpha1.InviteJoining),
			candidate: candidate("west-2"),
			links:     []v1alpha1.Link{west},
			step:      MarkLinked,
		},
		"linked": {
			why:       "the answer may have been lost, so it is sent again",
			status:    joined("west-2", v1alpha1.InviteLinked),
			candidate: candidate("west-2"),
			links:     []v1alpha1.Link{west},
			step:      Done,
		},
		"answer lost, then late": {
			why:       "a linked cluster receives the same answer after the expiry",
			status:    joined("west-2", v1alpha1.InviteLinked),
			candidate: candidate("west-2"),
			links:     []v1alpha1.Link{west},
			late:      time.Hour,
			step:      Done,
		},
		"another is bound": {
			why:       "only the first cluster can use a token, even between two steps",
			status:    joined("west-2", v1alpha1.InviteJoining),
			candidate: candidate("south-3"),
			reason:    Used,
		},
		"another is linked": {
			why:       "a replay by another cluster is refused",
			status:    joined("west-2", v1alpha1.InviteLinked),
			candidate: candidate("south-3"),
			links:     []v1alpha1.Link{west},
			reason:    Used,
		},
		"unlinked since": {
			why:       "an old token must not create a Link again that was deleted",
			status:    joined("west-2", v1alpha1.InviteLinked),
			candidate: candidate("west-2"),
			reason:    Used,
		},
		"late": {
			why:       "an unused token expires",
			candidate: candidate("west-2"),
			late:      15 * time.Minute,
			reason:    Expired,
		},
		"bound and late": {
			why:       "a token that was bound but not linked expires",
			status:    joined("west-2", v1alpha1.InviteJoining),
			candidate: candidate("west-2"),
			late:      15 * time.Minute,
			reason:    Expired,
		},
		"just in time": {
			why:       "the token is valid until just before its expiry",
			candidate: candidate("west-2"),
			late:      15*time.Minute - 1,
			step:      Bind,
		},
		"wrong name": {
			why:       "the token was used in the wrong cluster",
			candidate: Candidate{As: "north", PublicIdentity: publicID("west-2")},
			reason:    WrongName,
		},
		"deleted": {
			why:       "an invite that is being deleted is unknown",
			candidate: candidate("west-2"),
			deleted:   true,
			reason:    Unknown,
		},
		"own cluster": {
			why:       "a cluster cannot be its own peer",
			candidate: candidate("east-1"),
			reason:    OwnCluster,
		},
		"foreign trust domain": {
			why:       "a joiner can claim only the trust domain in its root",
			candidate: Candidate{As: "west", PublicIdentity: forged},
			reason:    BadRequest,
		},
		"short key": {
			why:       "a Link with this key would be invalid",
			candidate: Candidate{As: "west", PublicIdentity: shortKey},
			reason:    BadRequest,
		},
		"name taken": {
			why:       "the Link of another peer is not changed",
			candidate: candidate("west-2"),
			links:     []v1alpha1.Link{linkFor("west", publicID("south-3"))},
			reason:    NameTaken,
		},
		"name taken since bound": {
			why:       "another Link may be created between two steps",
			status:    joined("west-2", v1alpha1.InviteJoining),
			candidate: candidate("west-2"),
			links:     []v1alpha1.Link{linkFor("west", publicID("south-3"))},
			reason:    NameTaken,
		},
		"linked by hand": {
			why:       "a Link that a user created does not belong to the invite",
			candidate: candidate("west-2"),
			links:     []v1alpha1.Link{west},
			reason:    NameTaken,
		},
		"linked by another name": {
			why:       "two Links for one peer are invalid",
			candidate: candidate("west-2"),
			links:     []v1alpha1.Link{linkFor("far", publicID("west-2"))},
			reason:    AlreadyLinked,
		},
		"other peers": {
			why:       "Links for other peers do not matter",
			candidate: candidate("west-2"),
			links:     []v1alpha1.Link{linkFor("south", publicID("south-3"))},
			step:      Bind,
		},
		"refused earlier": {
			why: "a refusal does not use up the token",
			status: v1alpha1.InviteStatus{
				State:    v1alpha1.InviteOpen,
				Refusals: []v1alpha1.InviteRefusal{{Reason: "WrongName"}},
			},
			candidate: candidate("west-2"),
			step:      Bind,
		},
	} {
		t.Run(name, func(t *testing.T) {
			inv := &v1alpha1.Invite{Spec: v1alpha1.InviteSpec{ValidSeconds: 900}, Status: c.status}
			inv.Name, inv.CreationTimestamp = "west", metav1.NewTime(created)
			if c.deleted {
				inv.DeletionTimestamp = &metav1.Time{Time: created}
			}
			step, refusal := Decide(inv, c.candidate, eastOwn(t), c.links, created.Add(c.late))
			got := Reason("")
			if refusal != nil {
				got = refusal.Reason
			}
			if step != c.step || got != c.reason {
				t.Errorf("step %d, refusal %q, want %d, %q: %s", step, got, c.step, c.reason, c.why)
			}
		})
	}
}

func TestRefusedStatusIsBounded(t *testing.T) {
	inv := &v1alpha1.Invite{}
	r := Refuse(Used, "no")
	a := candidate("south-3")
	status, changed := RefusedStatus(inv, a, r)
	if !changed || len(status.Refusals) != 1 || status.Refusals[0].Address != "192.0.2.1" ||
		status.Refusals[0].Reason != "Used" {
		t.Fatalf("the refusal is not recorded: %+v", status)
	}
	inv.Status = status
	if _, changed := RefusedStatus(inv, a, r); changed {
		t.Error("the same refusal is recorded twice")
	}
	for i := range 20 {
		a.Address = string(rune('a' + i))
		inv.Status, _ = RefusedStatus(inv, a, r)
	}
	if n := len(inv.Status.Refusals); n != maxRefusals {
		t.Errorf("the status has %d refusals, want %d", n, maxRefusals)
	}
}

func TestStatusAt(t *testing.T) {
	for name, c := range map[string]struct {
		why, state, want string
		after            time.Duration
	}{
		"new": {"a new invite becomes open", "", v1alpha1.InviteOpen, 0},
		"open": {
			"an open invite does not change before its expiry",
			v1alpha1.InviteOpen,
			v1alpha1.InviteOpen,
			time.Minute,
		},
		"expiring": {"an open invite expires", v1alpha1.InviteOpen, v1alpha1.InviteExpired, 15 * time.Minute},
		"bound": {
			"an invite that was bound but not linked expires",
			v1alpha1.InviteJoining,
			v1alpha1.InviteExpired,
			15 * time.Minute,
		},
		"linked": {
			"a linked invite does not expire",
			v1alpha1.InviteLinked,
			v1alpha1.InviteLinked,
			time.Hour,
		},
		"expired": {
			"an expired invite does not change",
			v1alpha1.InviteExpired,
			v1alpha1.InviteExpired,
			time.Hour,
		},
	} {
		inv := &v1alpha1.Invite{
			Spec:   v1alpha1.InviteSpec{ValidSeconds: 900},
			Status: v1alpha1.InviteStatus{State: c.state},
		}
		inv.CreationTimestamp = metav1.NewTime(created)
		if status, differs := StatusAt(inv, created.Add(c.after)); status.State != c.want ||
			differs != (c.state != c.want) {
			t.Errorf("%s: state %q, differs %v, want %q: %s", name, status.State, differs, c.want, c.why)
		}
	}
}

func TestOpenAndCanDelete(t *testing.T) {
	inv := &v1alpha1.Invite{Spec: v1alpha1.InviteSpec{ValidSeconds: 60}}
	inv.CreationTimestamp = metav1.NewTime(created)
	for after, want := range map[time.Duration]bool{
		0:                             true,
		time.Minute:                   true,
		time.Minute + GracePeriod - 1: true,
		time.Minute + GracePeriod:     false,
	} {
		if _, open := Open(inv, created.Add(after)); open != want {
			t.Errorf("open after %v: %v, want %v", after, open, want)
		}
	}
	last := created.Add(time.Minute + GracePeriod + retention)
	if CanDelete(Expires(inv), last) || !CanDelete(Expires(inv), last.Add(1)) {
		t.Error("an invite can be deleted at another time than one hour after its grace period")
	}
}

func TestTokenCheck(t *testing.T) {
	east := publicID("east-1")
	token := Token{
		Root:     identity.RootHash(east.Root),
		Secret:   NewSecret(),
		Expires:  created,
		Peer:     "west",
		Inviter:  "east",
		Gateways: []string{"198.51.100.7:4143"},
	}
	own := identity.RootHash(publicID("west-2").Root)
	deleting := linkFor("east", east)
	deleting.DeletionTimestamp = &metav1.Time{Time: created}
	for name, c := range map[string]struct {
		why    string
		as     string
		root   [32]byte
		links  []v1alpha1.Link
		after  time.Duration
		want   Reason
		linked bool
	}{
		"valid": {why: "a valid token is accepted", as: "west", root: own},
		"own cluster": {
			why:  "a user may paste the token into the wrong terminal",
			as:   "west",
			root: token.Root,
			want: OwnCluster,
		},
		"another name": {
			why:  "the token was used in the wrong cluster",
			as:   "north",
			root: own,
			want: WrongName,
		},
		"expired": {
			why:   "after the grace period the inviter does not answer",
			as:    "west",
			root:  own,
			after: GracePeriod,
			want:  Expired,
		},
		"grace period": {
			why:   "the local clock may be ahead of the inviter's",
			as:    "west",
			root:  own,
			after: GracePeriod - 1,
		},
		"taken": {
			why:   "the Link of another peer is not changed",
			as:    "west",
			root:  own,
			links: []v1alpha1.Link{linkFor("east", publicID("south-3"))},
			want:  NameTaken,
		},
		"deleting": {
			why:   "a Link that is being deleted cannot be used",
			as:    "west",
			root:  own,
			links: []v1alpha1.Link{deleting},
			want:  NameTaken,
		},
		"linked already": {
			why:    "a join that is run again continues",
			as:     "west",
			root:   own,
			links:  []v1alpha1.Link{linkFor("east", east)},
			linked: true,
		},
		"other name": {
			why:   "two Links for one peer are invalid",
			as:    "west",
			root:  own,
			links: []v1alpha1.Link{linkFor("far", east)},
			want:  AlreadyLinked,
		},
	} {
		t.Run(name, func(t *testing.T) {
			var got Reason
			if r := token.Check(c.as, "east", c.root, c.links, created.Add(c.after)); r != nil {
				got = r.Reason
			}
			if linked := token.Linked("east", c.links); got != c.want || linked != c.linked {
				t.Errorf("refusal %q, linked %v, want %q, %v: %s", got, linked, c.want, c.linked, c.why)
			}
		})
	}
}

func TestCheckInviter(t *testing.T) {
	east := publicID("east-1")
	token := Token{Root: identity.RootHash(east.Root)}
	key, err := link.ParseKey(publicID("west-2").LinkKey)
	if err != nil {
		t.Fatal(err)
	}
	own := link.Own{TrustDomain: "west-2", LinkKey: key}
	sameDomain, sameKey := linkFor("far", publicID("south-3")), linkFor("far", publicID("south-3"))
	sameDomain.Spec.TrustDomain = "east-1"
	sameKey.Spec.LinkPublicKey = linkFor("", east).Spec.LinkPublicKey
	for name, c := range map[string]struct {
		why     string
		inviter PublicIdentity
		links   []v1alpha1.Link
		want    Reason
	}{
		"valid": {
			why:     "the root matches the token",
			inviter: east,
			links:   []v1alpha1.Link{linkFor("far", publicID("south-3"))},
		},
		"other root": {
			why:     "the token pins the root of the inviter",
			inviter: publicID("south-3"),
			want:    BadRequest,
		},
		"trust domain of a peer": {
			why:     "two Links for one trust domain are invalid, and the old one must stay valid",
			inviter: east,
			links:   []v1alpha1.Link{sameDomain},
			want:    AlreadyLinked,
		},
		"key of a peer": {
			why:     "two Links with one key are invalid",
			inviter: east,
			links:   []v1alpha1.Link{sameKey},
			want:    AlreadyLinked,
		},
		"Link of the same name": {
			why:     "Check decides about the Link with the name of the Join",
			inviter: east,
			links:   []v1alpha1.Link{linkFor("east", east)},
		},
		"own trust domain": {
			why:     "a cluster cannot be its own peer",
			inviter: PublicIdentity{Root: east.Root, TrustDomain: "west-2", LinkKey: east.LinkKey},
			want:    OwnCluster,
		},
	} {
		t.Run(name, func(t *testing.T) {
			var got Reason
			if r := token.CheckInviter(c.inviter, own, "east", c.links); r != nil {
				got = r.Reason
			}
			if got != c.want {
				t.Errorf("refusal %q, want %q: %s", got, c.want, c.why)
			}
		})
	}
}

func TestReceivedRefusalIsSafeToPrint(t *testing.T) {
	r := ReceivedRefusal("Nonsense", "bad\x1b[2Jnews\n"+string([]byte{0xff}), 8)
	if r.Reason != Unknown || r.Message != "bad[2Jne" {
		t.Errorf("ReceivedRefusal = %q, %q, want Unknown, %q", r.Reason, r.Message, "bad[2Jne")
	}
}
