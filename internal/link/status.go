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

// Observed is what the leader knows of one Link when it writes its status. The zero
// value describes a Link about whose peer nothing is known yet.
type Observed struct {
	// Fault is why the Link is not in force; nil if it is.
	Fault *Fault
	// Suspended: the Link's owner stopped new connections.
	Suspended bool
	// IssuersKnown: a list of issuers signed by the Link's root is stored.
	IssuersKnown bool
	// IssuersRefused is why the list of issuers that the peer sends now is not accepted;
	// empty if it is.
	IssuersRefused string
	// RootUntil is when the Link's root ends, if the peer has a successor that this root
	// vouches for; zero if it has none.
	RootUntil time.Time
	// IssuersEnded is when the last of the peer's issuers ended; zero if one is live.
	IssuersEnded time.Time
	// Unacknowledged is the number of the list of our issuers that the peer should have
	// by now but reports not to have; 0 if it has it or has reported nothing.
	Unacknowledged uint64
	// Connected: a replica has a catalog stream, in either direction.
	Connected bool
	// Replicas is the number of controller replicas; Without says, sorted, which of them
	// have no stream and why.
	Replicas int
	Without  []string
	// Imports: the Link has import rules.
	Imports bool
	// Complete: the peer's whole catalog has arrived.
	Complete bool
	// Standing is the number of mirrors that exist. Pending is the number that still have
	// to be written, Blocked the number that cannot be written for a reason of this
	// cluster's.
	Standing, Pending, Blocked int
	// Stale says that the peer's catalog is out of date, and how; empty if it is not.
	Stale Staleness
	// Gateways is the number of addresses to dial, Reachable the number of those that
	// answer, Unreachable the others.
	Gateways, Reachable int
	Unreachable         []UnreachableAddress
	// DNS holds sentences about names that DNS does not resolve, Refused about addresses
	// that are not used. Both are sorted.
	DNS, Refused []string
	// Skew is the peer's clock minus ours, if it is too large to trust.
	Skew time.Duration

	// Exports is the number of this cluster's Services offered to the peer.
	Exports int
	// PeerVersion is the version that the peer's controller reports.
	PeerVersion string
	// Problems are those of single Services, in any order. LeftOut is the number of
	// further problems, which are not in Problems.
	Problems []v1alpha1.ServiceProblem
	LeftOut  int
}

// UnreachableAddress is an address that does not answer, and why: a sentence of a
// closed list.
type UnreachableAddress struct{ Address, Why string }

// Staleness is a way in which a peer's catalog can be out of date. The zero value is
// none.
type Staleness string

// The ways.
const (
	// PeerCatalogStale: the peer's replica that we follow has lost its API server, and
	// no fresher one is known.
	PeerCatalogStale Staleness = "PeerCatalogStale"
	// PeerCatalogOlder: the peer's catalog is older than the one applied last.
	PeerCatalogOlder Staleness = "PeerCatalogOlder"
	// PeerEpochChanged: the peer numbers its catalogs from the start again.
	PeerEpochChanged Staleness = "PeerEpochChanged"
)

var stalenessSentences = map[Staleness]string{
	PeerCatalogStale: "the peer's controller has lost its API server, so its catalog may be out of date",
	PeerCatalogOlder: "the peer's catalog is older than the one applied last, so nothing is deleted: was the peer's etcd restored from a backup? " +
		"The next change of an export there ends this state",
	PeerEpochChanged: "the peer numbers its catalogs from the start again, as a rebuilt cluster does: nothing is deleted until it has done so for 10 minutes",
}

// maxProblems bounds the problems in a status; the last line counts the rest.
const maxProblems = 32

// More is the reason of the line that counts the problems left out of the status.
const More = "More"

// Difference says how a status differs from the stored one.
type Difference int

// The differences.
const (
	// Unchanged means that the status equals the stored one. It is the zero value.
	Unchanged Difference = iota
	// CountsOnly means that only the numbers of mirrors and exports differ.
	CountsOnly
	// Substantial means that a condition, a problem or another field differs.
	Substantial
)

// Status returns the status that l should have, and how it differs from the one that l
// has.
func Status(l *v1alpha1.Link, o Observed, now time.Time) (v1alpha1.LinkStatus, Difference) {
	want := v1alpha1.LinkStatus{
		Conditions:         slices.Clone(l.Status.Conditions),
		ObservedGeneration: l.Generation,
		Mirrors:            int32(o.Standing),
		Exports:            int32(o.Exports),
		PeerVersion:        o.PeerVersion,
		Problems:           bound(o.Problems, o.LeftOut),
	}
	wasReady := meta.IsStatusConditionTrue(l.Status.Conditions, v1alpha1.LinkReady)
	for _, c := range conditions(o, wasReady) {
		c.ObservedGeneration = l.Generation
		c.LastTransitionTime = metav1.NewTime(now)
		meta.SetStatusCondition(&want.Conditions, c)
	}
	slices.SortFunc(want.Conditions, func(a, b metav1.Condition) int { return cmp.Compare(a.Type, b.Type) })
	return want, difference(want, l.Status)
}

func difference(want, have v1alpha1.LinkStatus) Difference {
	sameCounts := want.Mirrors == have.Mirrors && want.Exports == have.Exports
	have.Mirrors, have.Exports = want.Mirrors, want.Exports
	switch {
	case !equality.Semantic.DeepEqual(want, have):
		return Substantial
	case !sameCounts:
		return CountsOnly
	}
	return Unchanged
}

func conditions(o Observed, wasReady bool) []metav1.Condition {
	t, s := trusted(o), synced(o)
	return []metav1.Condition{readyCondition(o, s, wasReady), t, connected(o), s, reachable(o)}
}

func condition(kind string, ok bool, reason, message string) metav1.Condition {
	status := metav1.ConditionFalse
	if ok {
		status = metav1.ConditionTrue
	}
	return metav1.Condition{Type: kind, Status: status, Reason: reason, Message: message}
}

// readyCondition is Ready: what the Link's owner must change, or whether the first
// sync is complete. Outages do not change it.
func readyCondition(o Observed, synced metav1.Condition, wasReady bool) metav1.Condition {
	const kind = v1alpha1.LinkReady
	switch {
	case o.Fault != nil:
		return condition(kind, false, string(o.Fault.Reason), o.Fault.Message)
	case o.Suspended:
		return condition(kind, false, "Suspended", "spec.suspend stops new connections in both directions; open connections go on")
	case wasReady, synced.Status == metav1.ConditionTrue && o.IssuersKnown:
		return condition(kind, true, "Ready", "the first sync is complete")
	}
	return metav1.Condition{Type: kind, Status: metav1.ConditionUnknown, Reason: "FirstSync", Message: "the first sync with the peer is not complete yet"}
}

func trusted(o Observed) metav1.Condition {
	const kind = v1alpha1.LinkTrusted
	switch {
	case o.Fault != nil:
		return condition(kind, false, string(o.Fault.Reason), o.Fault.Message)
	case !o.IssuersKnown:
		return condition(kind, false, "NoIssuers", "the peer's issuers are not known yet: they come with the first catalog stream")
	case o.IssuersRefused != "":
		return condition(kind, false, "IssuersRefused", fmt.Sprintf("the peer's new list of issuers is refused, and the previous one stays in force: %s. "+
			"If the peer's root was revoked, apply what `causeway identity` prints there", o.IssuersRefused))
	case !o.IssuersEnded.IsZero():
		return condition(kind, false, "IssuersEnded", fmt.Sprintf("every known issuer of the peer has expired, the last at %s, so its workloads are refused: "+
			"the peer renews its issuer automatically and sends it by the catalog stream; `causeway check` there says why it does not",
			o.IssuersEnded.UTC().Format("2006-01-02 15:04 MST")))
	case o.Unacknowledged != 0:
		return condition(kind, false, "IssuerNotAcknowledged", fmt.Sprintf("the peer has not accepted this cluster's new issuer (list %d) "+
			"and refuses this cluster's workloads until it does: if this cluster's root was revoked, apply there what `causeway identity` prints here; "+
			"otherwise see the logs of the peer's controllers", o.Unacknowledged))
	case o.Skew != 0:
		return condition(kind, false, "ClockSkew", skew(o.Skew))
	}
	if !o.RootUntil.IsZero() {
		return condition(kind, true, "RootFollowed", fmt.Sprintf("the peer's issuers are signed by a successor of the Link's root: "+
			"apply what `causeway identity` prints in the peer before %s, when the Link's root ends", o.RootUntil.UTC().Format(time.DateOnly)))
	}
	return condition(kind, true, "Trusted", "the peer's issuers are known and signed by the Link's root")
}

func skew(d time.Duration) string {
	side := "ahead of"
	if d < 0 {
		side, d = "behind", -d
	}
	return fmt.Sprintf("the peer's clock is %v %s ours: correct the clock that is wrong", d.Round(time.Minute), side)
}

func connected(o Observed) metav1.Condition {
	const kind = v1alpha1.LinkConnected
	switch {
	case o.Fault != nil:
		return condition(kind, false, "NotTrusted", "the Link is not in force, so the controller does not dial the peer")
	case o.Connected && len(o.Without) > 0:
		return condition(kind, false, "ReplicaDisconnected", fmt.Sprintf(
			"%d of %d controller replicas have no catalog stream to a gateway of the peer, so the agents that they serve get no updates: %s",
			len(o.Without), o.Replicas, sentences(o.Without)))
	case o.Connected:
		return condition(kind, true, "Connected", "a catalog stream with the peer's controller is up")
	case o.Gateways > 0:
		return condition(kind, false, "Disconnected",
			sentences(append([]string{"no catalog stream with the peer's controller is up"}, unreachable(o.Unreachable)...)))
	case len(o.DNS) > 0:
		return condition(kind, false, "DNS", sentences(o.DNS))
	}
	return condition(kind, false, "WaitingForPeer",
		sentences(append([]string{"no gateway address of the peer is known, and the peer has not dialed us"}, o.Refused...)))
}

func synced(o Observed) metav1.Condition {
	const kind = v1alpha1.LinkSynced
	nothing := !o.Imports && o.Standing == 0 && o.Pending == 0
	switch {
	case o.Fault != nil:
		return condition(kind, false, "NotTrusted", "the Link is not in force: its mirrors stay as they are")
	case nothing && (!o.Complete || o.Gateways == 0):
		return condition(kind, true, "NothingToImport", "the Link has no import rules, so there is nothing to mirror")
	case o.Connected && (o.Gateways == 0 && len(o.DNS) == 0 || !o.Complete && o.Reachable == 0):
		return condition(kind, false, "PeerUnreachable",
			"the peer dials us, but none of its gateways can be reached from here: none of its Services is mirrored, and mirrors that exist stay as they are")
	case !o.Complete && o.Stale != "":
		return condition(kind, false, string(o.Stale), stalenessSentences[o.Stale])
	case !o.Complete:
		return condition(kind, false, "NoCatalog", "the peer's catalog has not arrived since this controller started: mirrors stay as they are")
	case o.Blocked > 0:
		return condition(kind, false, "Blocked", "some mirrors cannot be written: see status.problems")
	case o.Pending > 0:
		return condition(kind, false, "Pending", "mirrors are being written")
	case o.Stale != "":
		return condition(kind, true, string(o.Stale), stalenessSentences[o.Stale])
	case len(o.Problems) > 0:
		return condition(kind, true, "SyncedWithProblems", "every mirror that can exist does: see status.problems for the others")
	}
	return condition(kind, true, "Synced", "every mirror matches the peer's catalog")
}

func reachable(o Observed) metav1.Condition {
	const kind = v1alpha1.LinkGatewayReachable
	others := slices.Concat(unreachable(o.Unreachable), o.DNS, o.Refused)
	switch {
	case o.Fault != nil:
		return condition(kind, false, "NotTrusted", "the Link is not in force, so the controller does not dial the peer")
	case o.Gateways == 0 && len(o.DNS) > 0:
		return condition(kind, false, "DNS", sentences(slices.Concat(o.DNS, o.Refused)))
	case o.Gateways == 0:
		return condition(kind, false, "NoAddress", sentences(append([]string{
			"neither the Link nor the peer names a gateway address that can be used: the peer's Services cannot be called from here"}, o.Refused...)))
	case o.Reachable == 0:
		return condition(kind, false, "Unreachable", sentences(append([]string{"no gateway address of the peer answers"}, others...)))
	}
	reason := "Reachable"
	if len(o.Unreachable)+len(o.DNS) > 0 {
		reason = PartlyReachable
	}
	return condition(kind, true, reason,
		sentences(append([]string{fmt.Sprintf("%d of %d gateway addresses answer", o.Reachable, o.Gateways)}, others...)))
}

// PartlyReachable is the reason of a GatewayReachable that is True though some
// addresses do not answer.
const PartlyReachable = "PartlyReachable"

// unreachable says of addresses why they do not answer, in one sentence per reason.
func unreachable(all []UnreachableAddress) []string {
	by := make(map[string][]string)
	for _, a := range all {
		by[a.Why] = append(by[a.Why], a.Address)
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

// bound sorts problems and drops duplicates. If there are too many for a status, or if
// leftOut is not 0, the last line counts the problems that are not named. leftOut is the
// number of problems that the caller has left out.
func bound(problems []v1alpha1.ServiceProblem, leftOut int) []v1alpha1.ServiceProblem {
	if len(problems) == 0 && leftOut == 0 {
		return nil
	}
	sorted := slices.Clone(problems)
	slices.SortFunc(sorted, func(a, b v1alpha1.ServiceProblem) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.Message, b.Message))
	})
	sorted = slices.Compact(sorted)
	if len(sorted) <= maxProblems && leftOut == 0 {
		return sorted
	}
	named := min(len(sorted), maxProblems-1)
	return append(slices.Clip(sorted[:named]), v1alpha1.ServiceProblem{
		Reason:  More,
		Message: fmt.Sprintf("and %d more", len(sorted)-named+leftOut),
	})
}
