package controller

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/link"
)

// What a replica alone knows of a peer is told in the peer's PeerTrust: addresses
// of gateways that were found, and a report to the leader where a replica's
// streams are not as the leader would think.
//
//	peers.heard ──amendment.of──▶ PeerTrust ──▶ every replica's agents, the leader's status

// reportPatience is how long a report waits for things to mend: less than the leader's.
const reportPatience = 2 * time.Second

// An amendment is what this replica has to say in a PeerTrust.
type amendment struct {
	found  func(stored []string) []string
	name   string                  // this replica
	report *v1alpha1.ReplicaReport // nil: nothing to report
	// alive are the replicas that there are; others' reports go. Nil: not known.
	alive map[string]bool
}

// of returns the spec with the amendment.
func (a amendment) of(spec v1alpha1.PeerTrustSpec) v1alpha1.PeerTrustSpec {
	spec.Gateways = a.found(spec.Gateways)
	var reports []v1alpha1.ReplicaReport
	for _, r := range spec.Replicas {
		if r.Name != a.name && (a.alive == nil || a.alive[r.Name]) {
			reports = append(reports, r)
		}
	}
	if a.report != nil {
		reports = append(reports, *a.report)
	}
	slices.SortFunc(reports, func(x, y v1alpha1.ReplicaReport) int { return cmp.Compare(x.Name, y.Name) })
	spec.Replicas = reports
	return spec
}

// specOf is what a PeerTrust says for p: nothing, if it is about another Link.
func specOf(p link.Peer, kept v1alpha1.PeerTrustSpec) v1alpha1.PeerTrustSpec {
	if kept.LinkUID != p.UID {
		return v1alpha1.PeerTrustSpec{LinkUID: p.UID}
	}
	return kept
}

// keptFor is specOf for a PeerTrust that may be none.
func keptFor(p link.Peer, kept *v1alpha1.PeerTrust) *v1alpha1.PeerTrustSpec {
	spec := v1alpha1.PeerTrustSpec{LinkUID: p.UID}
	if kept != nil {
		spec = specOf(p, kept.Spec)
	}
	return &spec
}

// amend writes an amendment, if it changes anything.
func (t trusts) amend(ctx context.Context, p link.Peer, a amendment) error {
	for range 5 {
		err := t.amendOnce(ctx, p, a)
		if lost := apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err); !lost {
			return err
		}
	}
	return fmt.Errorf("keep what is known of %s: too many writers at once", p.Name)
}

func (t trusts) amendOnce(ctx context.Context, p link.Peer, a amendment) error {
	var kept v1alpha1.PeerTrust
	err := t.client.Get(ctx, client.ObjectKey{Namespace: t.namespace, Name: p.Name}, &kept)
	missing := apierrors.IsNotFound(err)
	if err != nil && !missing {
		return fmt.Errorf("read what is known of %s: %w", p.Name, err)
	}
	before := specOf(p, kept.Spec)
	kept.Namespace, kept.Name, kept.Spec = t.namespace, p.Name, a.of(before)
	switch {
	case equality.Semantic.DeepEqual(before, kept.Spec):
		return nil
	case missing:
		err = t.client.Create(ctx, &kept)
	default:
		err = t.client.Update(ctx, &kept)
	}
	if err != nil {
		return fmt.Errorf("keep what is known of %s: %w", p.Name, err)
	}
	return nil
}

// report lets be written what PeerTrusts lack of what this replica has to say.
func (b *brain) report(t *thought, kept map[string]*v1alpha1.PeerTrust) {
	for name, p := range t.peers {
		h := b.peers.heard(name)
		spec := keptFor(p, kept[name])
		a := amendment{found: h.found, name: b.o.PodName}
		if b.leading.Load() {
			a.alive = t.controllerPods()
		} else {
			var due time.Duration
			if a.report, due = h.report(b.o.PodName, spec.Replicas, t.now); due > 0 && (b.again == 0 || due < b.again) {
				b.again = due
			}
		}
		if !equality.Semantic.DeepEqual(*spec, a.of(*spec)) {
			b.peers.amend(name, a)
		}
	}
}

// replicas are the ready controller replicas, by pod.
func (t *thought) replicas() map[string]bool {
	out := make(map[string]bool, len(t.top.controllers))
	for _, c := range t.top.controllers {
		out[c.PodName] = true
	}
	return out
}

// controllerPods are all pods of the controller, whatever their state.
func (t *thought) controllerPods() map[string]bool {
	out := make(map[string]bool)
	for i := range t.pods {
		if p := &t.pods[i]; p.Namespace == t.namespace && p.Labels[componentLabel] == controllerValue {
			out[p.Name] = true
		}
	}
	return out
}

// report is what a replica that does not lead tells the leader; nil if it has a
// stream to a gateway, or nobody has an address to dial and nobody has dialled. What
// has just been lost may mend: then it is what was told last, and due after a while.
func (h heard) report(name string, told []v1alpha1.ReplicaReport, now time.Time) (*v1alpha1.ReplicaReport, time.Duration) {
	var last *v1alpha1.ReplicaReport
	for i := range told {
		if told[i].Name == name {
			last = &told[i]
		}
	}
	alone := len(h.counted()) == 0
	if h.dialled() || alone && !h.inbound {
		return nil, 0
	}
	r := &v1alpha1.ReplicaReport{Name: name, Connected: h.inbound}
	if h.inbound {
		r.PeerVersion = h.hello.GetVersion()
	}
	if alone {
		return r, 0
	}
	if wait := h.troubled.Add(reportPatience).Sub(now); wait > 0 {
		return last, wait
	}
	r.Message = h.why()
	return r, 0
}

// why says why there is no stream to a gateway, by the first address that tells.
func (h heard) why() string {
	for _, a := range h.counted() {
		if err := h.streams[a.At].err; err != nil && err != errConnecting {
			return fmt.Sprintf("%v: %s", a, wire.Explain(err))
		}
	}
	return "no answer yet"
}

// amend writes an amendment, unless one is being written.
func (p *peers) amend(name string, a amendment) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.links[name]
	if s == nil || s.amending || s.life.Err() != nil {
		return
	}
	s.amending = true
	p.running.Go(func() {
		ctx, cancel := context.WithTimeout(s.life, 5*time.Second)
		defer cancel()
		rest := time.Second // for the cache to show it
		if err := p.trusts.amend(ctx, s.peer, a); err != nil {
			p.log.Debug("what is known of a peer was not kept and will be tried again", "link", name, "error", err)
			rest = 5 * time.Second
		}
		backoff.Sleep(s.life, rest)
		p.note(s, func() { s.amending = false })
	})
}

// others completes what the leader has seen of a peer by what the other replicas report.
func (b *brain) others(t *thought, l *v1alpha1.Link, h heard, seen *link.Seen) {
	alive := t.replicas()
	seen.Replicas = len(alive)
	var reports []v1alpha1.ReplicaReport
	if kept := t.keptTrusts()[l.Name]; kept != nil && kept.Spec.LinkUID == string(l.UID) {
		reports = kept.Spec.Replicas
	}
	dialled := h.dialled()
	silent := maps.Clone(alive) // a replica that reports nothing has a stream
	delete(silent, b.o.PodName)
	for _, r := range reports {
		if !silent[r.Name] {
			continue
		}
		delete(silent, r.Name)
		seen.PeerVersion = cmp.Or(seen.PeerVersion, r.PeerVersion)
		seen.Connected = seen.Connected || r.Connected
		if r.Message != "" {
			seen.Without = append(seen.Without, r.Name+": "+r.Message)
		}
	}
	if len(silent) > 0 && seen.Gateways > 0 && !dialled {
		seen.Connected, dialled = true, true
		seen.Without = append(seen.Without, b.o.PodName+": "+h.why())
	}
	if !dialled {
		seen.Without = nil // where nobody can dial, the peer dials whom it gets
	}
	slices.Sort(seen.Without)
}
