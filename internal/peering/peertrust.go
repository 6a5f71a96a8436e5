package peering

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/link"
)

// trustStore writes PeerTrusts: the newest list of issuers of each peer, its discovered
// gateway addresses, and reports of replicas to the leader. Any replica may write; of two
// that write at once, the loser of the compare-and-swap tries again.
type trustStore struct {
	client    client.Client // reads without a cache
	namespace string
}

// maxAttempts bounds the write conflicts of one change.
const maxAttempts = 5

// storeIssuers stores a list of issuers that a peer sent. It returns the number of the
// newest list that is stored afterwards. A list that is not signed for the Link's root,
// or is older than the stored one, changes nothing; the error then wraps
// identity.ErrIssuerList or errOlderList. Other errors are the API server's.
func (t trustStore) storeIssuers(ctx context.Context, p link.Peer, der []byte) (uint64, error) {
	list, err := identity.VerifyIssuerList(p.Root, p.TrustDomain, der)
	if err != nil {
		return 0, fmt.Errorf("issuers of %s: %w", p.Name, err)
	}
	number := uint64(0)
	err = t.change(ctx, p, func(spec *v1alpha1.PeerTrustSpec) error {
		have, ok := verifyStored(p, *spec)
		number = max(have.Number, list.Number)
		switch {
		case ok && have.Number > list.Number:
			return fmt.Errorf("issuers of %s: list %d after list %d: %w",
				p.Name, list.Number, have.Number, errOlderList)
		case ok && have.Number == list.Number:
			return nil
		}
		number, spec.IssuerList = list.Number, der
		return nil
	})
	if err != nil && number <= list.Number {
		number = 0 // it was not stored
	}
	return number, err
}

// change reads a PeerTrust, applies edit to what it holds for this very Link, and writes
// the result if it differs. edit may be called several times; its error is returned.
func (t trustStore) change(ctx context.Context, p link.Peer, edit func(*v1alpha1.PeerTrustSpec) error) error {
	for range maxAttempts {
		err := t.changeOnce(ctx, p, edit)
		if !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return fmt.Errorf("write PeerTrust %s: gave up after %d write conflicts", p.Name, maxAttempts)
}

func (t trustStore) changeOnce(ctx context.Context, p link.Peer,
	edit func(*v1alpha1.PeerTrustSpec) error) error {
	var trust v1alpha1.PeerTrust
	err := t.client.Get(ctx, client.ObjectKey{Namespace: t.namespace, Name: p.Name}, &trust)
	missing := apierrors.IsNotFound(err)
	if err != nil && !missing {
		return fmt.Errorf("read PeerTrust %s: %w", p.Name, err)
	}
	before := specFor(p, &trust)
	next := before
	if err := edit(&next); err != nil {
		return err
	}
	if equality.Semantic.DeepEqual(before, next) {
		return nil
	}
	trust.Spec = next
	if missing {
		trust.ObjectMeta = metav1.ObjectMeta{Namespace: t.namespace, Name: p.Name}
		err = t.client.Create(ctx, &trust)
	} else {
		err = t.client.Update(ctx, &trust)
	}
	if err != nil {
		return fmt.Errorf("write PeerTrust %s: %w", p.Name, err)
	}
	return nil
}

// specFor returns what a PeerTrust holds for a Link: nothing, if the PeerTrust is nil or
// belongs to another Link of the same name.
func specFor(p link.Peer, trust *v1alpha1.PeerTrust) v1alpha1.PeerTrustSpec {
	if trust == nil || trust.Spec.LinkUID != p.UID {
		return v1alpha1.PeerTrustSpec{LinkUID: p.UID}
	}
	return trust.Spec
}

// StoredIssuers returns the list of issuers that a PeerTrust holds for this very Link,
// verified again. It returns false if there is none, or trust is nil.
func StoredIssuers(p link.Peer, trust *v1alpha1.PeerTrust) (identity.IssuerList, bool) {
	return verifyStored(p, specFor(p, trust))
}

func verifyStored(p link.Peer, spec v1alpha1.PeerTrustSpec) (identity.IssuerList, bool) {
	list, err := identity.VerifyIssuerList(p.Root, p.TrustDomain, spec.IssuerList)
	return list, err == nil
}

// StoredGateways returns the gateway addresses that a PeerTrust holds for this very Link.
func StoredGateways(p link.Peer, trust *v1alpha1.PeerTrust) []string {
	return specFor(p, trust).Gateways
}

// TrustInputs is what PlanTrust decides from.
type TrustInputs struct {
	Peer link.Peer
	// Snapshot may be nil while the peer is new: then nothing is written.
	Snapshot *Snapshot
	// Stored is the PeerTrust as the cache has it; nil: there is none.
	Stored *v1alpha1.PeerTrust
	// Replica is the pod name of this replica. Leader says whether it leads.
	Replica string
	Leader  bool
	// ControllerPods are the pods of all controllers, ready or not. The leader removes
	// the reports of others. Nil: not known, so all reports stay.
	ControllerPods map[string]bool
	Now            time.Time
}

// TrustChange is what this replica has to write to a PeerTrust.
type TrustChange struct {
	snapshot *Snapshot
	replica  string
	report   *v1alpha1.ReplicaReport // nil: nothing to report
	alive    map[string]bool         // pods whose reports stay; nil: all
}

// PlanTrust decides what this replica has to write to a peer's PeerTrust: discovered
// gateway addresses and, unless it leads, a report of what the leader cannot see
// itself. It returns nil if nothing is to be written, and after how long to decide
// again (0: when an input changes). It does not decide about lists of issuers, which
// Peers stores itself.
func PlanTrust(in TrustInputs) (*TrustChange, time.Duration) {
	if in.Snapshot == nil {
		return nil, 0
	}
	spec := specFor(in.Peer, in.Stored)
	change := &TrustChange{snapshot: in.Snapshot, replica: in.Replica}
	var recheck time.Duration
	if in.Leader {
		change.alive = in.ControllerPods
	} else {
		change.report, recheck = in.Snapshot.report(in.Replica, spec.Replicas, in.Now)
	}
	if equality.Semantic.DeepEqual(spec, change.apply(spec)) {
		return nil, recheck
	}
	return change, recheck
}

// apply returns the spec with the change.
func (c *TrustChange) apply(spec v1alpha1.PeerTrustSpec) v1alpha1.PeerTrustSpec {
	spec.Gateways = c.snapshot.gatewaysToStore(spec.Gateways)
	var reports []v1alpha1.ReplicaReport
	for _, r := range spec.Replicas {
		if r.Name != c.replica && (c.alive == nil || c.alive[r.Name]) {
			reports = append(reports, r)
		}
	}
	if c.report != nil {
		reports = append(reports, *c.report)
	}
	slices.SortFunc(reports, func(x, y v1alpha1.ReplicaReport) int { return cmp.Compare(x.Name, y.Name) })
	spec.Replicas = reports
	return spec
}

// reportGrace is how long a report waits for a loss to recover. It is shorter than the
// leader's LossGrace, so that the leader knows in time.
const reportGrace = 2 * time.Second

// report is what a replica that does not lead reports about a peer. It is nil if the
// replica has a stream to a gateway, and if there is neither an address to dial nor an
// inbound stream. During reportGrace the previous report stays, and the wait is not zero.
func (s *Snapshot) report(replica string, previous []v1alpha1.ReplicaReport,
	now time.Time) (*v1alpha1.ReplicaReport, time.Duration) {
	cannotDial := len(s.expected()) == 0
	if s.Dialed() || cannotDial && !s.Inbound {
		return nil, 0
	}
	r := &v1alpha1.ReplicaReport{Name: replica, Connected: s.Inbound}
	if s.Inbound {
		r.PeerVersion = s.PeerVersion
	}
	if cannotDial {
		return r, 0
	}
	if wait := s.ReportAt.Add(reportGrace - LossGrace).Sub(now); wait > 0 {
		for i := range previous {
			if previous[i].Name == replica {
				return &previous[i], wait
			}
		}
		return nil, wait
	}
	r.Message = s.DisconnectedReason()
	return r, 0
}

// WriteTrust writes a change in the background, unless one is being written for the same
// peer. After a failure the next PlanTrust finds the change again.
func (p *Peers) WriteTrust(link string, change *TrustChange) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.links[link]
	if s == nil || s.writingTrust || s.life.Err() != nil {
		return
	}
	s.writingTrust = true
	p.running.Go(func() {
		ctx, cancel := context.WithTimeout(s.life, trustTimeout)
		defer cancel()
		pause := time.Second // for the cache to show the result
		err := p.trust.change(ctx, s.link, func(spec *v1alpha1.PeerTrustSpec) error {
			*spec = change.apply(*spec)
			return nil
		})
		if err != nil {
			p.c.Log.Debug("cannot write what is known of a peer; will retry", "link", link, "error", err)
			pause = 5 * time.Second
		}
		backoff.Sleep(s.life, pause)
		p.update(s, func() { s.writingTrust, s.notify = false, true })
	})
}

// MergeReports completes what the leader observed of a peer by what other replicas
// report in the PeerTrust. ready has the pods of all ready replicas, replica is the
// leader's own. A ready replica without a report has a stream to a gateway.
func (s *Snapshot) MergeReports(o *link.Observed, p link.Peer, trust *v1alpha1.PeerTrust,
	replica string, ready map[string]bool) {
	o.Replicas = len(ready)
	dialed := s.Dialed()
	unreported := maps.Clone(ready)
	delete(unreported, replica)
	for _, r := range specFor(p, trust).Replicas {
		if !unreported[r.Name] {
			continue
		}
		delete(unreported, r.Name)
		o.PeerVersion = cmp.Or(o.PeerVersion, r.PeerVersion)
		o.Connected = o.Connected || r.Connected
		if r.Message != "" {
			o.Without = append(o.Without, r.Name+": "+r.Message)
		}
	}
	if len(unreported) > 0 && o.Gateways > 0 && !dialed {
		o.Connected, dialed = true, true
		o.Without = append(o.Without, replica+": "+s.DisconnectedReason())
	}
	if !dialed {
		o.Without = nil // no replica dials, so the peer dials any one of them
	}
	slices.Sort(o.Without)
}
