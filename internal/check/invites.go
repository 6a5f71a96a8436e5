package check

import (
	"fmt"
	"time"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/invite"
)

const (
	// inviteSoon is the remaining validity from which on an unused invite gives a
	// warning.
	inviteSoon = 3 * time.Minute
	// joinSlow is the duration of a join from which on it gives a warning.
	joinSlow = time.Minute
)

// invites reports on the tokens that this cluster issued, and on those that it uses.
func invites(f Facts) []Result {
	var results []Result
	for i := range f.Invites {
		if inv := &f.Invites[i]; f.Link == "" || f.Link == inv.Name {
			results = append(append(results, f.invited(inv)), refusals(inv)...)
		}
	}
	for i := range f.Joins {
		if j := &f.Joins[i]; f.Link == "" || f.Link == j.Name {
			results = append(results, f.joining(j)...)
		}
	}
	return results
}

func (f Facts) invited(inv *v1alpha1.Invite) Result {
	again := fmt.Sprintf("if the link is still wanted, run `causeway invite delete %s` and `causeway "+
		"invite` to make another token", inv.Name)
	left, joined := invite.Expires(inv).Sub(f.Now), inv.Status.Joined
	switch {
	case inv.Status.State == v1alpha1.InviteLinked && joined != nil:
		return ok(checkInvite, inv.Name, "trust domain %s joined from %s", joined.TrustDomain, joined.Address)
	case left <= 0 && joined != nil:
		return warn(checkInvite, inv.Name, fmt.Sprintf(
			"trust domain %s began to join, but the invite expired %s ago, before its Link was created",
			joined.TrustDomain, span(left)), again)
	case left <= 0:
		return warn(checkInvite, inv.Name, fmt.Sprintf("it expired %s ago without being used", span(left)),
			again)
	case joined != nil:
		return warn(checkInvite, inv.Name, fmt.Sprintf(
			"trust domain %s began to join from %s, and its Link does not exist "+
				"yet", joined.TrustDomain, joined.Address),
			"`causeway join` continues in the other cluster: run this command again in a minute; "+
				"if this stays, see a controller's log here")
	case left < inviteSoon:
		return warn(checkInvite, inv.Name, fmt.Sprintf("open, and expires in %s: %s", span(left),
			crosses(inv)),
			"run `causeway join` in the other cluster before that")
	}
	return ok(checkInvite, inv.Name, "opened %s ago, expires in %s: %s",
		span(f.Now.Sub(inv.CreationTimestamp.Time)), span(left), crosses(inv))
}

// crosses says what the Link of an invite will export and import.
func crosses(inv *v1alpha1.Invite) string {
	out, in := "no Services", "none"
	switch e := inv.Spec.Export; {
	case e.All():
		out = "all exported Services"
	case e != nil:
		out = "some exported Services"
	}
	switch i := inv.Spec.Import; {
	case i == nil:
	case i.Services == v1alpha1.AllServices:
		in = "all"
	default:
		in = "some"
	}
	return fmt.Sprintf("its Link will show %s to the peer and mirror %s of the peer's", out, in)
}

// refusals reports clusters that were refused, because only the inviter's administrator
// can help them.
func refusals(inv *v1alpha1.Invite) []Result {
	var results []Result
	for _, r := range inv.Status.Refusals {
		hint := "if that cluster was invited, read the output of `causeway join` there, and invite it again"
		if r.Reason == string(invite.Used) && inv.Status.Joined != nil {
			hint = fmt.Sprintf("trust domain %s used the token first, and a token links one cluster: if "+
				"the other one was invited, the token has leaked, so run `causeway unlink %s` and invite "+
				"again",
				inv.Status.Joined.TrustDomain, inv.Name)
		}
		results = append(results, warn(checkInvite, inv.Name, fmt.Sprintf(
			"a cluster of trust domain %s was refused, at %s: %s", r.TrustDomain, r.Address, r.Reason), hint))
	}
	return results
}

func (f Facts) joining(j *v1alpha1.Join) []Result {
	age := f.Now.Sub(j.CreationTimestamp.Time)
	switch {
	case j.Status.State == v1alpha1.JoinRefused:
		return []Result{warn(checkInvite, j.Name,
			fmt.Sprintf("the join was refused (%s): %s", j.Status.Reason, j.Status.Message),
			"ask the inviter for another token, and run `causeway join` with it")}
	case j.Status.State == v1alpha1.JoinLinked:
		return nil // the Link's own Results follow
	case age > joinSlow:
		return []Result{warn(checkInvite, j.Name, explained("the join has lasted "+span(age),
			j.Status.Message),
			"TCP to a gateway of the inviter must be open; a controller's log says more; "+
				"interrupt `causeway join` and run it again to start over")}
	}
	return []Result{ok(checkInvite, j.Name, "%s", explained("the join has lasted "+span(age),
		j.Status.Message))}
}
