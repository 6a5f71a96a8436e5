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

// cluster is one that tests let join. They are made once: keys cost time.
type cluster struct {
	root *x509.Certificate
	key  identity.LinkKey
}

var world = sync.OnceValue(func() map[string]cluster {
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

func half(domain string) Half {
	c := world()[domain]
	return Half{Root: c.root, TrustDomain: domain, LinkKey: c.key.Public()}
}

func eastOwn(t *testing.T) link.Own {
	t.Helper()
	key, err := link.ParseKey(half("east-1").LinkKey)
	if err != nil {
		t.Fatal(err)
	}
	return link.Own{TrustDomain: "east-1", LinkKey: key}
}

func asker(domain string) Asker { return Asker{As: "west", Half: half(domain), Address: "192.0.2.1"} }

func linkFor(name string, h Half) v1alpha1.Link {
	l := v1alpha1.Link{Spec: h.Spec(nil, nil)}
	l.Name = name
	return l
}

var made = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

func TestDecide(t *testing.T) {
	joined := func(domain, state string) v1alpha1.InviteStatus {
		return v1alpha1.InviteStatus{State: state, Joined: &v1alpha1.Joiner{TrustDomain: domain, RootHash: half(domain).RootHash()}}
	}
	west := linkFor("west", half("west-2"))
	forged := half("west-2")
	forged.TrustDomain = "south-3"
	lowKey := half("west-2")
	lowKey.LinkKey = make([]byte, 31)
	for name, c := range map[string]struct {
		why    string
		status v1alpha1.InviteStatus
		asker  Asker
		links  []v1alpha1.Link
		late   time.Duration
		gone   bool
		step   Step
		reason Reason
	}{
		"first":                    {why: "nothing is made before the invite is somebody's", asker: asker("west-2"), step: Bind},
		"bound":                    {why: "a crash after the binding is a retry", status: joined("west-2", v1alpha1.InviteJoining), asker: asker("west-2"), step: Make},
		"made":                     {why: "so is one after the making", status: joined("west-2", v1alpha1.InviteJoining), asker: asker("west-2"), links: []v1alpha1.Link{west}, step: Note},
		"noted":                    {why: "and one after the noting: the answer may have been lost", status: joined("west-2", v1alpha1.InviteLinked), asker: asker("west-2"), links: []v1alpha1.Link{west}, step: Done},
		"answer lost, then late":   {why: "who is linked may hear so at any time", status: joined("west-2", v1alpha1.InviteLinked), asker: asker("west-2"), links: []v1alpha1.Link{west}, late: time.Hour, step: Done},
		"another is bound":         {why: "a token is for one cluster, also between two steps", status: joined("west-2", v1alpha1.InviteJoining), asker: asker("south-3"), reason: Used},
		"another is linked":        {why: "a replay is refused", status: joined("west-2", v1alpha1.InviteLinked), asker: asker("south-3"), links: []v1alpha1.Link{west}, reason: Used},
		"unlinked since":           {why: "a Link that was taken back must not come again by an old token", status: joined("west-2", v1alpha1.InviteLinked), asker: asker("west-2"), reason: Used},
		"late":                     {why: "a token that lies about is worth nothing", asker: asker("west-2"), late: 15 * time.Minute, reason: Expired},
		"bound and late":           {why: "half a use does not keep it alive", status: joined("west-2", v1alpha1.InviteJoining), asker: asker("west-2"), late: 15 * time.Minute, reason: Expired},
		"just in time":             {why: "15 minutes are 15 minutes", asker: asker("west-2"), late: 15*time.Minute - 1, step: Bind},
		"wrong name":               {why: "the token was carried to the wrong cluster", asker: Asker{As: "north", Half: half("west-2")}, reason: WrongName},
		"taken back":               {why: "an invite being deleted is none", asker: asker("west-2"), gone: true, reason: Unknown},
		"own":                      {why: "a cluster is no peer of itself", asker: asker("east-1"), reason: OwnCluster},
		"another's trust domain":   {why: "a joiner may claim nothing but what its root says", asker: Asker{As: "west", Half: forged}, reason: BadRequest},
		"no key":                   {why: "a Link must come of it", asker: Asker{As: "west", Half: lowKey}, reason: BadRequest},
		"name taken":               {why: "no other peer's Link is touched", asker: asker("west-2"), links: []v1alpha1.Link{linkFor("west", half("south-3"))}, reason: NameTaken},
		"name taken since bound":   {why: "also if it came between two steps", status: joined("west-2", v1alpha1.InviteJoining), asker: asker("west-2"), links: []v1alpha1.Link{linkFor("west", half("south-3"))}, reason: NameTaken},
		"linked by hand":           {why: "a Link that the invite has not made is not the invite's", asker: asker("west-2"), links: []v1alpha1.Link{west}, reason: NameTaken},
		"linked by another name":   {why: "two Links for one peer are none", asker: asker("west-2"), links: []v1alpha1.Link{linkFor("far", half("west-2"))}, reason: AlreadyKnown},
		"others are linked":        {why: "they are no business of this one", asker: asker("west-2"), links: []v1alpha1.Link{linkFor("south", half("south-3"))}, step: Bind},
		"refused ones do not bind": {why: "a refusal burns nothing", status: v1alpha1.InviteStatus{State: v1alpha1.InviteOpen, Refusals: []v1alpha1.InviteRefusal{{Reason: "WrongName"}}}, asker: asker("west-2"), step: Bind},
	} {
		t.Run(name, func(t *testing.T) {
			inv := &v1alpha1.Invite{Spec: v1alpha1.InviteSpec{ValidSeconds: 900}, Status: c.status}
			inv.Name, inv.CreationTimestamp = "west", metav1.NewTime(made)
			if c.gone {
				inv.DeletionTimestamp = &metav1.Time{Time: made}
			}
			step, refusal := Decide(inv, c.asker, eastOwn(t), c.links, made.Add(c.late))
			got := Reason("")
			if refusal != nil {
				got = refusal.Reason
			}
			if step != c.step || got != c.reason {
				t.Errorf("%s: step %d, %q; want %d, %q", c.why, step, got, c.step, c.reason)
			}
		})
	}
}

func TestRefusedIsBounded(t *testing.T) {
	inv := &v1alpha1.Invite{}
	r := Refuse(Used, "no")
	a := asker("south-3")
	status, fresh := Refused(inv, a, r)
	if !fresh || len(status.Refusals) != 1 || status.Refusals[0].Address != "192.0.2.1" || status.Refusals[0].Reason != "Used" {
		t.Fatalf("it is not told: %+v", status)
	}
	inv.Status = status
	if _, fresh := Refused(inv, a, r); fresh {
		t.Error("the same one is told again with each try")
	}
	for i := range 20 {
		a.Address = string(rune('a' + i))
		inv.Status, _ = Refused(inv, a, r)
	}
	if n := len(inv.Status.Refusals); n != maxRefusals {
		t.Errorf("a status of %d refusals", n)
	}
}

func TestAged(t *testing.T) {
	for name, c := range map[string]struct {
		why, state, want string
		after            time.Duration
	}{
		"new":     {"it says so that the controller knows of it", "", v1alpha1.InviteOpen, 0},
		"open":    {"nothing is written when nothing changed", v1alpha1.InviteOpen, v1alpha1.InviteOpen, time.Minute},
		"over":    {"its time ran out", v1alpha1.InviteOpen, v1alpha1.InviteExpired, 15 * time.Minute},
		"bound":   {"half a use runs out, too", v1alpha1.InviteJoining, v1alpha1.InviteExpired, 15 * time.Minute},
		"linked":  {"what was used has not expired", v1alpha1.InviteLinked, v1alpha1.InviteLinked, time.Hour},
		"expired": {"nothing is written when nothing changed", v1alpha1.InviteExpired, v1alpha1.InviteExpired, time.Hour},
	} {
		inv := &v1alpha1.Invite{Spec: v1alpha1.InviteSpec{ValidSeconds: 900}, Status: v1alpha1.InviteStatus{State: c.state}}
		inv.CreationTimestamp = metav1.NewTime(made)
		if status, differs := Aged(inv, made.Add(c.after)); status.State != c.want || differs != (c.state != c.want) {
			t.Errorf("%s: %s: %s, differs %v", name, c.why, status.State, differs)
		}
	}
}

func TestTimes(t *testing.T) {
	inv := &v1alpha1.Invite{Spec: v1alpha1.InviteSpec{ValidSeconds: 60}}
	inv.CreationTimestamp = metav1.NewTime(made)
	for after, want := range map[time.Duration]bool{0: true, time.Minute: true, time.Minute + Tail - 1: true, time.Minute + Tail: false} {
		if _, open := Open(inv, made.Add(after)); open != want {
			t.Errorf("after %v it leads somewhere: %v", after, open)
		}
	}
	if Over(Expires(inv), made.Add(time.Minute+Tail+kept)) || !Over(Expires(inv), made.Add(time.Minute+Tail+kept+1)) {
		t.Error("it is kept for an hour after its last use")
	}
}

func TestCheck(t *testing.T) {
	east := half("east-1")
	token := Token{Root: identity.RootHash(east.Root), Secret: NewSecret(), Expires: made, Peer: "west", Inviter: "east", Gateways: []string{"198.51.100.7:4143"}}
	own := identity.RootHash(half("west-2").Root)
	going := linkFor("east", east)
	going.DeletionTimestamp = &metav1.Time{Time: made}
	for name, c := range map[string]struct {
		why    string
		as     string
		root   [32]byte
		links  []v1alpha1.Link
		after  time.Duration
		want   Reason
		linked bool
	}{
		"good":           {why: "it must work at all", as: "west", root: own},
		"own":            {why: "pasted into the wrong window", as: "west", root: token.Root, want: OwnCluster},
		"another name":   {why: "carried to the wrong cluster", as: "north", root: own, want: WrongName},
		"run out":        {why: "the inviter says so by its clock, until nobody answers any more", as: "west", root: own, after: Tail, want: Expired},
		"running out":    {why: "our clock may be ahead", as: "west", root: own, after: Tail - 1},
		"taken":          {why: "no other peer's Link is touched", as: "west", root: own, links: []v1alpha1.Link{linkFor("east", half("south-3"))}, want: NameTaken},
		"going":          {why: "a Link that goes is not joined", as: "west", root: own, links: []v1alpha1.Link{going}, want: NameTaken},
		"linked already": {why: "run again it goes on where it stopped", as: "west", root: own, links: []v1alpha1.Link{linkFor("east", east)}, linked: true},
		"by other name":  {why: "two Links for one peer are none", as: "west", root: own, links: []v1alpha1.Link{linkFor("far", east)}, want: AlreadyKnown},
	} {
		t.Run(name, func(t *testing.T) {
			var got Reason
			if r := token.Check(c.as, "east", c.root, c.links, made.Add(c.after)); r != nil {
				got = r.Reason
			}
			if linked := token.Linked("east", c.links); got != c.want || linked != c.linked {
				t.Errorf("%s: %q, linked %v; want %q, %v", c.why, got, linked, c.want, c.linked)
			}
		})
	}
}

func TestFits(t *testing.T) {
	east := half("east-1")
	token := Token{Root: identity.RootHash(east.Root)}
	key, err := link.ParseKey(half("west-2").LinkKey)
	if err != nil {
		t.Fatal(err)
	}
	own := link.Own{TrustDomain: "west-2", LinkKey: key}
	sameDomain, sameKey := linkFor("far", half("south-3")), linkFor("far", half("south-3"))
	sameDomain.Spec.TrustDomain = "east-1"
	sameKey.Spec.LinkPublicKey = linkFor("", east).Spec.LinkPublicKey
	for name, c := range map[string]struct {
		why   string
		half  Half
		links []v1alpha1.Link
		want  Reason
	}{
		"good":                   {why: "it must work at all", half: east, links: []v1alpha1.Link{linkFor("far", half("south-3"))}},
		"another's root":         {why: "the token pins it", half: half("south-3"), want: BadRequest},
		"a peer's trust domain":  {why: "two Links for one trust domain are none, and the old one must go on", half: east, links: []v1alpha1.Link{sameDomain}, want: AlreadyKnown},
		"a peer's key":           {why: "so are two for one key", half: east, links: []v1alpha1.Link{sameKey}, want: AlreadyKnown},
		"the Link to be made":    {why: "whether that may stand is judged by its name", half: east, links: []v1alpha1.Link{linkFor("east", east)}},
		"our own, by the domain": {why: "a cluster is no peer of itself", half: Half{Root: east.Root, TrustDomain: "west-2", LinkKey: east.LinkKey}, want: OwnCluster},
	} {
		t.Run(name, func(t *testing.T) {
			var got Reason
			if r := token.Fits(c.half, own, "east", c.links); r != nil {
				got = r.Reason
			}
			if got != c.want {
				t.Errorf("%s: %q, want %q", c.why, got, c.want)
			}
		})
	}
}

func TestHeard(t *testing.T) {
	r := Heard("Nonsense", "bad\x1b[2Jnews\n"+string([]byte{0xff}), 8)
	if r.Reason != Unknown || r.Message != "bad[2Jne" {
		t.Errorf("a peer's words reach the terminal as they are: %q, %q", r.Reason, r.Message)
	}
}
