package controller

import (
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/link"
	"github.com/causeway-mesh/causeway/internal/mirror"
	"github.com/causeway-mesh/causeway/internal/peering"
)

// statusJob collects the content of a Link's next status.
func (r *reconciler) statusJob(l *v1alpha1.Link, now time.Time) statusJob {
	name := l.Name
	resolved, inForce := r.links.resolved[name]
	j := statusJob{link: l}
	o := &j.observed
	exported, leftOut := r.index.LinkProblems(name)
	j.exported = exported
	*o = link.Observed{
		Fault:        r.links.judged.Faults[name],
		Suspended:    l.Spec.Suspend,
		IssuersKnown: inForce && len(resolved.view.Issuers) > 0,
		Imports:      l.Spec.Import != nil,
		Exports:      r.index.Exported(name),
		LeftOut:      leftOut,
	}
	if inForce {
		if !resolved.until.IsZero() && !now.Before(resolved.until) {
			o.IssuersEnded = resolved.until
		}
		if resolved.successor {
			o.RootUntil = resolved.peer.Root.NotAfter
		}
	}
	if s := r.snapshots[name]; s != nil {
		s.Observe(o)
		if inForce {
			o.Unacknowledged = r.identity.Issuers().Unacknowledged(s.Acknowledged, now)
			s.MergeReports(o, resolved.peer, r.links.trusts[name], r.o.PodName, r.readyReplicas())
		}
		j.due = s.ReportAt
	} else if inForce {
		j.due = now.Add(peering.LossGrace) // its streams begin after this pass
	}
	written := r.leader.writer.Status(name)
	o.Standing, o.Pending, o.Blocked = written.Mirrors, written.Pending, written.Blocked
	if imported := r.imports.links[name]; imported != nil {
		o.Complete, o.Stale = imported.whole, imported.stale
		if s := r.snapshots[name]; s != nil && s.Stale && o.Stale == "" {
			o.Stale = link.PeerCatalogStale
		}
		o.Pending += r.imports.pending(imported)
	}
	o.Problems = slices.Concat(r.imports.problemsOf(name), written.Problems, exported, r.manyServices(name))
	o.LeftOut += written.LeftOut
	if l.Spec.Export != nil {
		for _, p := range r.book.ExportProblems(name) {
			o.Problems = append(o.Problems, p.ServiceProblem)
		}
		count, first := r.board.LeftOut(name)
		o.Problems = append(o.Problems, first...)
		o.LeftOut += count - len(first)
	}
	if problem := r.overlaps.problem(); problem != nil {
		o.Problems = append(o.Problems, *problem)
	}
	return j
}

// readyReplicas are the pods of the ready controller replicas.
func (r *reconciler) readyReplicas() map[string]bool {
	out := make(map[string]bool, len(r.top.controllers))
	for _, c := range r.top.controllers {
		out[c.PodName] = true
	}
	return out
}

// manyMirrors is the number of mirrors in one namespace from which on a Link's status
// warns: the kubelet gives each container of the namespace environment variables for
// each Service, and a process starts slowly, or not at all, with too many.
const manyMirrors = 300

// manyServices warns of namespaces that hold many mirrors of a Link.
func (r *reconciler) manyServices(name string) []catalog.Problem {
	l := r.imports.links[name]
	if l == nil || len(l.placed) < manyMirrors {
		return nil
	}
	return mirror.ManyServices(l.inNamespace, manyMirrors)
}

// exporterOf returns the object with which a user exports a Service; nil: it was deleted.
func (r *reconciler) exporterOf(key catalog.Key, reason string) runtime.Object {
	if reason == catalog.ServiceMissing {
		about := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
			Namespace: key.Namespace,
			Name:      key.Name,
		}}
		about.SetGroupVersionKind(catalog.ServiceExportKinds()[0])
		return about
	}
	if svc := r.index.Service(key); svc != nil {
		return svc
	}
	return nil
}

// chores are what the leader keeps in order beside the Links.
func (r *reconciler) chores() chores {
	c := chores{
		gateways: r.top.gateways,
		canary:   r.canary,
		invites:  sortedObjects(r.invites),
		joins:    sortedObjects(r.joins),
	}
	for name, t := range r.links.trusts {
		if r.links.links[name] == nil {
			c.obsolete = append(c.obsolete, t)
		}
	}
	return c
}
