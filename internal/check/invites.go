package check

import (
	"fmt"
	"time"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/invite"
)

const (
	// inviteSoon is how long before its end an invite is told of: the token has to be carried, and used.
	inviteSoon = 3 * time.Minute
	// joinSlow is how long joining may take before somebody should look.
	joinSlow = time.Minute
)

// invites tells what became of tokens that this cluster gave out, and of those that it uses.
func invites(f Facts) []Line {
	var lines []Line
	for i := range f.Invites {
		if inv := &f.Invites[i]; f.Link == "" || f.Link == inv.Name {
			lines = append(append(lines, f.invited(inv)), refusals(inv)...)
		}
	}
	for i := range f.Joins {
		if j := &f.Joins[i]; f.Link == "" || f.Link == j.Name {
			lines = append(lines, f.joining(j)...)
		}
	}
	return lines
}

func (f Facts) invited(inv *v1alpha1.Invite) Line {
	again := fmt.Sprintf("`causeway invite delete %s` and `causeway invite` make another token, if it is still wanted", inv.Name)
	left, joined := invite.Expires(inv).Sub(f.Now), inv.Status.Joined
	switch {
	case inv.Status.State == v1alpha1.InviteLinked && joined != nil:
		return ok(checkInvite, inv.Name, "used by the cluster of trust domain %s, from %s", joined.TrustDomain, joined.Address)
	case left <= 0 && joined != nil:
		return warn(checkInvite, inv.Name, fmt.Sprintf("trust domain %s began to use it, and its Link was not made in time: it ran out %s ago", joined.TrustDomain, span(left)), again)
	case left <= 0:
		return warn(checkInvite, inv.Name, fmt.Sprintf("nobody has used it, and it ran out %s ago", span(left)), again)
	case joined != nil:
		return warn(checkInvite, inv.Name, fmt.Sprintf("trust domain %s, from %s, began to use it, and its Link does not stand yet", joined.TrustDomain, joined.Address),
			"`causeway join` there goes on by itself: ask again in a minute; then a controller's log here tells more")
	case left < inviteSoon:
		return warn(checkInvite, inv.Name, fmt.Sprintf("open, and ends in %s: %s", span(left), crosses(inv)), "`causeway join` must have run in the other cluster by then")
	}
	return ok(checkInvite, inv.Name, "opened %s ago, good for %s more: %s", span(f.Now.Sub(inv.CreationTimestamp.Time)), span(left), crosses(inv))
}

// crosses is what the Link of an invite will let cross.
func crosses(inv *v1alpha1.Invite) string {
	out, in := "nothing", "nothing"
	switch e := inv.Spec.Export; {
	case e.All():
		out = "all that is exported"
	case e != nil:
		out = "some of what is exported"
	}
	switch i := inv.Spec.Import; {
	case i == nil:
	case i.Services == v1alpha1.AllServices:
		in = "all"
	default:
		in = "some"
	}
	return fmt.Sprintf("its Link will show the peer %s, and mirror %s of the peer's", out, in)
}

// refusals are those that came too late, or by a wrong token, and that only the inviter's people can put right.
func refusals(inv *v1alpha1.Invite) []Line {
	var lines []Line
	for _, r := range inv.Status.Refusals {
		hint := "if that cluster was meant, ask there what `causeway join` says, and invite it again"
		if r.Reason == string(invite.Used) && inv.Status.Joined != nil {
			hint = fmt.Sprintf("trust domain %s was first, and one token links one cluster: if the other was meant, somebody else has had the token, so `causeway unlink %s` and invite again", inv.Status.Joined.TrustDomain, inv.Name)
		}
		lines = append(lines, warn(checkInvite, inv.Name, fmt.Sprintf("a cluster of trust domain %s, from %s, was refused: %s", r.TrustDomain, r.Address, r.Reason), hint))
	}
	return lines
}

func (f Facts) joining(j *v1alpha1.Join) []Line {
	age := f.Now.Sub(j.CreationTimestamp.Time)
	switch {
	case j.Status.State == v1alpha1.JoinRefused:
		return []Line{warn(checkInvite, j.Name, fmt.Sprintf("joining was refused (%s): %s", j.Status.Reason, j.Status.Message), "ask the inviter for another token, and run `causeway join` with it")}
	case j.Status.State == v1alpha1.JoinLinked:
		return nil // the Link's own lines tell
	case age > joinSlow:
		return []Line{warn(checkInvite, j.Name, joined("joining has lasted "+span(age), j.Status.Message), "TCP must be open to a gateway of the inviter: a controller's log tells more; Ctrl-C and `causeway join` begin anew")}
	}
	return []Line{ok(checkInvite, j.Name, "%s", joined("joining for "+span(age), j.Status.Message))}
}
