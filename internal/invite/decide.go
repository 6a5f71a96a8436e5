package invite

import (
	"slices"
	"time"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/link"
)

// Asker is a cluster that wants to join: it has proven to hold the secret, and the
// root in its Half.
type Asker struct {
	// As is the name that it was told to be invited under.
	As string
	Half
	// Address is where it calls from, an IP.
	Address string
}

func (a Asker) joiner() v1alpha1.Joiner {
	return v1alpha1.Joiner{TrustDomain: a.TrustDomain, RootHash: a.RootHash(), Address: a.Address}
}

// Step is the one thing to do next for an asker. After each but Done the objects
// are read again and Decide is asked anew.
type Step int

// The steps, in their order.
const (
	// Bind: write Bound's status, by compare-and-swap.
	Bind Step = iota + 1
	// Make: create the Link.
	Make
	// Note: write Noted's status, by compare-and-swap.
	Note
	// Done: answer.
	Done
)

// Decide says what to do next for an asker, or why nothing is done for it. links are all there are.
func Decide(inv *v1alpha1.Invite, a Asker, own link.Own, links []v1alpha1.Link, now time.Time) (Step, *Refusal) {
	joined := inv.Status.Joined
	mine := joined != nil && joined.RootHash == a.RootHash()
	switch {
	case inv.DeletionTimestamp != nil:
		return 0, Refuse(Unknown, "the invite was taken back: ask for a new one")
	case a.As != inv.Name:
		return 0, Refuse(WrongName, "the token is for cluster %s, and this is cluster %s", inv.Name, a.As)
	case joined != nil && !mine:
		return 0, Refuse(Used, "the token was used by another cluster already: ask for a new one, and if that cluster was not yours, tell the inviter, who sees which it was")
	}
	if r := a.check(own); r != nil {
		return 0, r
	}
	stands, r := place(inv.Name, a.Half, mine, links)
	switch {
	case r != nil:
		return 0, r
	case stands && inv.Status.State == v1alpha1.InviteLinked:
		return Done, nil
	case stands:
		return Note, nil
	case inv.Status.State == v1alpha1.InviteLinked:
		return 0, Refuse(Used, "the token was used, and its Link was deleted since: ask for a new one")
	case !now.Before(Expires(inv)):
		return 0, Refuse(Expired, "the token ran out at %s: ask for a new one", Expires(inv).UTC().Format("2006-01-02 15:04:05 MST"))
	case joined == nil:
		return Bind, nil
	}
	return Make, nil
}

// place finds the Link for h of that name, or what stands in its way. mine: the
// Invite belongs to h's cluster already.
func place(name string, h Half, mine bool, links []v1alpha1.Link) (stands bool, _ *Refusal) {
	for i := range links {
		l := &links[i]
		switch {
		case l.Name == name && mine && l.DeletionTimestamp == nil && h.is(l):
			stands = true
		case l.Name == name:
			return false, Refuse(NameTaken, "the inviter has a Link %s already, of trust domain %s: it must choose another name, or unlink that one", name, l.Spec.TrustDomain)
		case h.claimedBy(l):
			return false, Refuse(AlreadyKnown, "the inviter is linked with this cluster already, by its Link %s", l.Name)
		}
	}
	return stands, nil
}

// Bound is the status by which an Invite belongs to an asker.
func Bound(inv *v1alpha1.Invite, a Asker) v1alpha1.InviteStatus {
	s := *inv.Status.DeepCopy()
	j := a.joiner()
	s.State, s.Joined = v1alpha1.InviteJoining, &j
	return s
}

// Noted is the status of an Invite whose Link stands.
func Noted(inv *v1alpha1.Invite) v1alpha1.InviteStatus {
	s := *inv.Status.DeepCopy()
	s.State = v1alpha1.InviteLinked
	return s
}

// maxRefusals bounds those that a status tells of.
const maxRefusals = 8

// Refused is the status that tells of a refusal, and whether it is new.
func Refused(inv *v1alpha1.Invite, a Asker, r *Refusal) (v1alpha1.InviteStatus, bool) {
	s := *inv.Status.DeepCopy()
	one := v1alpha1.InviteRefusal{Joiner: a.joiner(), Reason: string(r.Reason)}
	same := func(have v1alpha1.InviteRefusal) bool { return have == one }
	if len(s.Refusals) >= maxRefusals || slices.ContainsFunc(s.Refusals, same) {
		return s, false
	}
	s.Refusals = append(s.Refusals, one)
	return s, true
}

// Aged is the status that an Invite should have by the clock, and whether it differs.
func Aged(inv *v1alpha1.Invite, now time.Time) (v1alpha1.InviteStatus, bool) {
	s := *inv.Status.DeepCopy()
	switch {
	case s.State != v1alpha1.InviteLinked && !now.Before(Expires(inv)):
		s.State = v1alpha1.InviteExpired
	case s.State == "":
		s.State = v1alpha1.InviteOpen
	}
	return s, s.State != inv.Status.State
}

// Link is the Link that an Invite makes for an asker: without gateways, as nobody has
// met it at one.
func Link(inv *v1alpha1.Invite, a Asker) *v1alpha1.Link {
	l := &v1alpha1.Link{Spec: a.Spec(inv.Spec.Export, inv.Spec.Import)}
	l.Name = inv.Name
	return l
}
