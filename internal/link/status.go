package link

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// Seen is what the leader knows of one Link when it writes its status.
type Seen struct {
	// Fault is why the Link is no peer; nil if it is one.
	Fault *Fault
	// IssuersKnown: a list of issuers signed by the Link's root is held.
	IssuersKnown bool
	// IssuersRefused is why the list of issuers that the peer sends now is not believed; empty: it is.
	IssuersRefused string
	// RootUntil is when the Link's root ends, if the peer has another one by now, which that
	// one vouches for; zero: it has not.
	RootUntil time.Time
	// IssuersEnded is when the last of these issuers ended; zero: one is live.
	IssuersEnded time.Time
	// Behind is the number of the list of our issuers that the peer should have by now, but
	// says that it has not; 0: it has it, or has said nothing.
	Behind uint64
	// Connected: a replica has a catalog stream, in either direction.
	Connected bool
	// Replicas is how many controller replicas there are; Without says, sorted, which
	// of them have no stream and why.
	Replicas int
	Without  []string
	// Imports: the Link has import rules.
	Imports bool
	// Complete: the peer's whole catalog has arrived. Pending is the number of
	// mirrors that still differ from it.
	Complete bool
	Pending  int
	// Gateways is how many addresses there are to dial, Reachable how many of them
	// answer, Silent the others.
	Gateways, Reachable int
	Silent              []Silence
	// DNS are sentences about names that DNS does not answer for, Refused about
	// addresses that are not used. Both are sorted.
	DNS, Refused []string
	// Skew is the peer's clock minus ours, if it is too large to trust.
	Skew time.Duration

	Mirrors, Exports int
	PeerVersion      string
	Problems         []v1alpha1.ServiceProblem
}

// Silence is an address that does not answer, and why: a sentence of a closed list.
type Silence struct{ Address, Why string }

// maxProblems bounds the status; the rest is counted in its last line.
const maxProblems = 32

// More is the reason of the line that counts the problems left out of the status.
const More = "More"

// Status returns the status that l should have, and whether it differs from what it has.
func Status(l *v1alpha1.Link, s Seen, now time.Time) (v1alpha1.LinkStatus, bool) {
	want := v1alpha1.LinkStatus{
		Conditions:  slices.Clone(l.Status.Conditions),
		Mirrors:     int32(s.Mirrors),
		Exports:     int32(s.Exports),
		PeerVersion: s.PeerVersion,
		Problems:    bound(s.Problems),
	}
	for _, c := range conditions(s) {
		c.ObservedGeneration = l.Generation
		c.LastTransitionTime = metav1.NewTime(now)
		meta.SetStatusCondition(&want.Conditions, c)
	}
	slices.SortFunc(want.Conditions, func(a, b metav1.Condition) int { return cmp.Compare(a.Type, b.Type) })
	return want, !equality.Semantic.DeepEqual(want, l.Status)
}

func conditions(s Seen) []metav1.Condition {
	return []metav1.Condition{trusted(s), connected(s), synced(s), reachable(s)}
}

func condition(kind string, ok bool, reason, message string) metav1.Condition {
	status := metav1.ConditionFalse
	if ok {
		status = metav1.ConditionTrue
	}
	return metav1.Condition{Type: kind, Status: status, Reason: reason, Message: message}
}

func trusted(s Seen) metav1.Condition {
	switch {
	case s.Fault != nil:
		return condition(v1alpha1.LinkTrusted, false, string(s.Fault.Reason), s.Fault.Message)
	case !s.IssuersKnown:
		return condition(v1alpha1.LinkTrusted, false, "NoIssuers", "the peer's issuers are not known yet: they come with the first catalog stream")
	case s.IssuersRefused != "":
		return condition(v1alpha1.LinkTrusted, false, "IssuersRefused", fmt.Sprintf("the issuers that the peer tells of now are not believed, and those of before are still: %s. "+
			"If its root was revoked, apply what `causeway identity` prints there", s.IssuersRefused))
	case !s.IssuersEnded.IsZero():
		return condition(v1alpha1.LinkTrusted, false, "IssuersEnded", fmt.Sprintf("every issuer that is known of the peer has ended, the last at %s, so its workloads are not believed: "+
			"the peer renews it by itself and tells us by the catalog stream; `causeway check` there says why it does not", s.IssuersEnded.UTC().Format("2006-01-02 15:04 MST")))
	case s.Behind != 0:
		return condition(v1alpha1.LinkTrusted, false, "IssuerNotAcknowledged", fmt.Sprintf("the peer's side has not taken in this cluster's new issuer "+
			"(list %d) and refuses this cluster's workloads until it does: if this cluster's root was revoked, apply there what `causeway identity` prints here; "+
			"else look at the logs of the peer's controllers", s.Behind))
	case s.Skew != 0:
		return condition(v1alpha1.LinkTrusted, false, "ClockSkew", skew(s.Skew))
	}
	if !s.RootUntil.IsZero() {
		return condition(v1alpha1.LinkTrusted, true, "RootFollowed", fmt.Sprintf("the peer's issuers are known, by a root that followed the Link's: "+
			"apply what `causeway identity` prints in the peer before %s, when the Link's root ends", s.RootUntil.UTC().Format(time.DateOnly)))
	}
	return condition(v1alpha1.LinkTrusted, true, "Trusted", "the peer's issuers are known and signed by the Link's root")
}

func skew(d time.Duration) string {
	side := "ahead of"
	if d < 0 {
		side, d = "behind", -d
	}
	return fmt.Sprintf("the peer's clock is %v %s ours: set the clock that is wrong", d.Round(time.Minute), side)
}

func connected(s Seen) metav1.Condition {
	switch {
	case s.Fault != nil:
		return condition(v1alpha1.LinkConnected, false, "NotTrusted", "the Link is not trusted, so nobody dials the peer")
	case s.Connected && len(s.Without) > 0:
		return condition(v1alpha1.LinkConnected, false, "ReplicaDisconnected", fmt.Sprintf(
			"%d of %d controller replicas without a catalog stream to a gateway of the peer, so that agents which it serves hear nothing new: %s",
			len(s.Without), s.Replicas, sentences(s.Without)))
	case s.Connected:
		return condition(v1alpha1.LinkConnected, true, "Connected", "a catalog stream with the peer's controller is up")
	case s.Gateways > 0:
		return condition(v1alpha1.LinkConnected, false, "Disconnected",
			sentences(append([]string{"no catalog stream with the peer's controller is up"}, silences(s.Silent)...)))
	case len(s.DNS) > 0:
		return condition(v1alpha1.LinkConnected, false, "DNS", sentences(s.DNS))
	}
	return condition(v1alpha1.LinkConnected, false, "WaitingForPeer",
		sentences(append([]string{"no gateway address of the peer is known, and it has not dialled us"}, s.Refused...)))
}

func synced(s Seen) metav1.Condition {
	nothing := !s.Imports && s.Mirrors == 0 && s.Pending == 0
	switch {
	case s.Fault != nil:
		return condition(v1alpha1.LinkSynced, false, "NotTrusted", "the Link is not trusted: mirrors stay as they are")
	case nothing && (!s.Complete || s.Gateways == 0):
		return condition(v1alpha1.LinkSynced, true, "NothingToImport", "the Link has no import rules, so there is nothing to mirror")
	case s.Connected && (s.Gateways == 0 && len(s.DNS) == 0 || !s.Complete && s.Reachable == 0):
		return condition(v1alpha1.LinkSynced, false, "NoWayToPeer",
			"the peer dials us, but no gateway of it can be reached from here: none of its Services is mirrored, and mirrors that stand already stay as they are")
	case !s.Complete:
		return condition(v1alpha1.LinkSynced, false, "NoCatalog", "the peer's catalog has not arrived since this controller started: mirrors stay as they are")
	case s.Pending > 0:
		return condition(v1alpha1.LinkSynced, false, "Pending", "mirrors are being written")
	case len(s.Problems) > 0:
		return condition(v1alpha1.LinkSynced, true, "SyncedWithProblems", "all mirrors that can stand do: see status.problems for the others")
	}
	return condition(v1alpha1.LinkSynced, true, "Synced", "every mirror stands as the peer's catalog says")
}

func reachable(s Seen) metav1.Condition {
	others := slices.Concat(silences(s.Silent), s.DNS, s.Refused)
	switch {
	case s.Fault != nil:
		return condition(v1alpha1.LinkGatewayReachable, false, "NotTrusted", "the Link is not trusted, so nobody dials the peer")
	case s.Gateways == 0 && len(s.DNS) > 0:
		return condition(v1alpha1.LinkGatewayReachable, false, "DNS", sentences(slices.Concat(s.DNS, s.Refused)))
	case s.Gateways == 0:
		return condition(v1alpha1.LinkGatewayReachable, false, "NoAddress", sentences(append([]string{
			"neither the Link nor the peer names a gateway address that can be used: the peer's Services cannot be called from here"}, s.Refused...)))
	case s.Reachable == 0:
		return condition(v1alpha1.LinkGatewayReachable, false, "Unreachable", sentences(append([]string{"no gateway address of the peer answers"}, others...)))
	}
	reason := "Reachable"
	if len(s.Silent)+len(s.DNS) > 0 {
		reason = PartlyReachable
	}
	return condition(v1alpha1.LinkGatewayReachable, true, reason,
		sentences(append([]string{fmt.Sprintf("%d of %d gateway addresses answer", s.Reachable, s.Gateways)}, others...)))
}

// PartlyReachable is the reason of a GatewayReachable that is True though some
// addresses do not answer.
const PartlyReachable = "PartlyReachable"

// silences says of addresses why they do not answer, in a sentence for each reason.
func silences(all []Silence) []string {
	by := make(map[string][]string)
	for _, s := range all {
		by[s.Why] = append(by[s.Why], s.Address)
	}
	var out []string
	for why, addresses := range by {
		slices.Sort(addresses)
		out = append(out, fmt.Sprintf("%s: %s", strings.Join(addresses, ", "), why))
	}
	slices.Sort(out)
	return out
}

func sentences(parts []string) string { return strings.Join(parts, "; ") }

// bound sorts problems, drops repeats, and keeps the first ones if there are too many.
func bound(problems []v1alpha1.ServiceProblem) []v1alpha1.ServiceProblem {
	if len(problems) == 0 {
		return nil
	}
	sorted := slices.Clone(problems)
	slices.SortFunc(sorted, func(a, b v1alpha1.ServiceProblem) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.Message, b.Message))
	})
	sorted = slices.Compact(sorted)
	if len(sorted) <= maxProblems {
		return sorted
	}
	more := len(sorted) - maxProblems + 1
	return append(sorted[:maxProblems-1:maxProblems-1], v1alpha1.ServiceProblem{
		Service: "", Reason: More, Message: fmt.Sprintf("and %d more", more),
	})
}
