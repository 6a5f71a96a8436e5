package invite

import (
	"slices"
	"time"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/link"
)

// Candidate is a cluster that wants to join. It has proven that it holds the secret of
// the invite and the private key of its root.
type Candidate struct {
	// As is the name under which it was invited, from its Join.
	As string
	PublicIdentity
	// Address is the IP address that it connects from.
	Address string
}

func (c Candidate) joiner() v1alpha1.Joiner {
	return v1alpha1.Joiner{TrustDomain: c.TrustDomain, RootHash: c.RootHash(), Address: c.Address}
}

// Step is the next step for a candidate. After each step except Done, the caller reads
// the objects again and calls Decide again.
type Step int

// The steps, in order.
const (
	// Bind means: write BoundStatus by compare-and-swap.
	Bind Step = iota + 1
	// CreateLink means: create the Link.
	CreateLink
	// MarkLinked means: write LinkedStatus by compare-and-swap.
	MarkLinked
	// Done means: send the answer.
	Done
)

// Decide returns the next step for a candidate, or the reason why it is refused. links
// must contain all Links of the cluster.
func Decide(inv *v1alpha1.Invite, c Candidate, own link.Own, links []v1alpha1.Link,
	now time.Time) (Step, *Refusal) {
	joined := inv.Status.Joined
	bound := joined != nil && joined.RootHash == c.RootHash()
	switch {
	case inv.DeletionTimestamp != nil:
		return 0, Refuse(Unknown, "the invite was deleted: ask for a new one")
	case c.As != inv.Name:
		return 0, Refuse(WrongName, "the token is for cluster %s, and this is cluster %s", inv.Name, c.As)
	case joined != nil && !bound:
		return 0, Refuse(Used, "another cluster has used the token: ask for a new one; "+
			"if that cluster is not yours, report it to the inviter, whose Invite names it")
	}
	if r := c.check(own); r != nil {
		return 0, r
	}
	exists, r := findLink(inv.Name, c.PublicIdentity, bound, links)
	switch {
	case r != nil:
		return 0, r
	case exists && inv.Status.State == v1alpha1.InviteLinked:
		return Done, nil
	case exists:
		return MarkLinked, nil
	case inv.Status.State == v1alpha1.InviteLinked:
		return 0, Refuse(Used, "the token was used, and its Link has been deleted: ask for a new one")
	case !now.Before(Expires(inv)):
		return 0, Refuse(Expired, "the token expired at %s: ask for a new one", timestamp(Expires(inv)))
	case joined == nil:
		return Bind, nil
	}
	return CreateLink, nil
}

func timestamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 MST") }

// findLink reports whether the Link with this name for this cluster exists. It refuses
// the cluster if another Link conflicts with it. bound means that the Invite is bound to
// the cluster.
func findLink(name string, id PublicIdentity, bound bool, links []v1alpha1.Link) (exists bool, _ *Refusal) {
	for i := range links {
		l := &links[i]
		switch {
		case l.Name == name && bound && l.DeletionTimestamp == nil && id.matches(l):
			exists = true
		case l.Name == name:
			return false, Refuse(NameTaken, "the inviter already has a Link %s, for trust domain %s: "+
				"the inviter must choose another name or unlink that one", name, l.Spec.TrustDomain)
		case id.conflictsWith(l):
			return false, Refuse(AlreadyLinked,
				"the inviter is already linked with this cluster, by its Link %s",
				l.Name)
		}
	}
	return exists, nil
}

// BoundStatus returns the status that binds an Invite to a candidate.
func BoundStatus(inv *v1alpha1.Invite, c Candidate) v1alpha1.InviteStatus {
	s := *inv.Status.DeepCopy()
	j := c.joiner()
	s.State, s.Joined = v1alpha1.InviteJoining, &j
	return s
}

// LinkedStatus returns the status of an Invite whose Link was created.
func LinkedStatus(inv *v1alpha1.Invite) v1alpha1.InviteStatus {
	s := *inv.Status.DeepCopy()
	s.State = v1alpha1.InviteLinked
	return s
}

// maxRefusals bounds the refusals in a status.
const maxRefusals = 8

// RefusedStatus returns the status that records a refusal, and whether it differs from
// the current one. It does not record the same refusal twice.
func RefusedStatus(inv *v1alpha1.Invite, c Candidate, r *Refusal) (v1alpha1.InviteStatus, bool) {
	s := *inv.Status.DeepCopy()
	refusal := v1alpha1.InviteRefusal{Joiner: c.joiner(), Reason: string(r.Reason)}
	if len(s.Refusals) >= maxRefusals || slices.Contains(s.Refusals, refusal) {
		return s, false
	}
	s.Refusals = append(s.Refusals, refusal)
	return s, true
}

// StatusAt returns the status that an Invite must have at now, and whether it differs
// from the current one. It sets the first state, and Expired.
func StatusAt(inv *v1alpha1.Invite, now time.Time) (v1alpha1.InviteStatus, bool) {
	s := *inv.Status.DeepCopy()
	switch {
	case s.State != v1alpha1.InviteLinked && !now.Before(Expires(inv)):
		s.State = v1alpha1.InviteExpired
	case s.State == "":
		s.State = v1alpha1.InviteOpen
	}
	return s, s.State != inv.Status.State
}

// Link returns the Link that an Invite creates for a candidate. It has no gateways,
// because this cluster has not authenticated the candidate at any address.
func Link(inv *v1alpha1.Invite, c Candidate) *v1alpha1.Link {
	l := &v1alpha1.Link{Spec: c.Spec(inv.Spec.Export, inv.Spec.Import)}
	l.Name = inv.Name
	return l
}
