package controller

import (
	"maps"
	"slices"

	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/ledger"
	"github.com/causeway-mesh/causeway/internal/serviceexport"
)

// planConditions collects the inputs of the conditions of all ServiceExports whose
// conditions may have changed. Only the leader does so, because only it writes
// conditions.
func (r *reconciler) planConditions(b *batch, p *plan) {
	if b.conditionsKind != nil {
		r.conditionsKind = *b.conditionsKind
		p.conditionsKind = b.conditionsKind
	}
	if !r.replayed { // the export list of earlier leaders is not known yet
		return
	}
	inForce := r.links.inForce()
	if !r.conditionsReplayed {
		r.conditionsReplayed = true
		p.conditionsKind = &r.conditionsKind
		r.allConditions(p)
	} else if !slices.Equal(inForce, r.linksInForce) {
		r.allConditions(p)
	}
	r.linksInForce = inForce
	for _, k := range slices.SortedFunc(maps.Keys(p.serviceExports), catalog.Key.Compare) {
		f := exportFacts{key: k}
		if o := r.serviceExports[k]; o != nil && o.DeletionTimestamp.IsZero() {
			f.meta, f.facts = o, r.exportFacts(k)
		}
		p.facts = append(p.facts, f)
	}
}

// allConditions adds all ServiceExports to those whose conditions may have changed.
func (r *reconciler) allConditions(p *plan) {
	for k := range r.serviceExports {
		p.conditionsOf(k)
	}
}

// exportFacts collects the inputs of the conditions of a ServiceExport.
func (r *reconciler) exportFacts(k catalog.Key) serviceexport.Facts {
	e, problems := r.index.Get(k)
	switch {
	case e == nil && len(problems) > 0:
		return serviceexport.Facts{Refusal: problems[0]}
	case e == nil: // only a Service that is being deleted has no export and no problem
		return serviceexport.Facts{Refusal: catalog.Problem{
			Service: k.String(),
			Reason:  catalog.ServiceMissing,
			Message: "the Service is being deleted",
		}}
	}
	f := serviceexport.Facts{Admitting: len(e.Links), Limits: len(problems)}
	if len(problems) > 0 {
		f.Limit = problems[0].Message
	}
	f.Failure = r.book.ExportProblem(ledger.ExportKey{Namespace: k.Namespace, Service: k.Name}).Message
	member := r.exports.members[k]
	if member == nil {
		return f
	}
	for _, name := range member.Links {
		if _, admits := slices.BinarySearch(e.Links, name); !admits {
			continue
		}
		f.Stored++
		if _, found := slices.BinarySearch(r.linksInForce, name); found {
			f.Exporting++
		}
	}
	return f
}

// applyConditions passes the facts of a plan to the writer of conditions. It sets the
// version last, so that the writer has all ServiceExports when it lists them.
func (l *leader) applyConditions(p *plan) {
	for _, f := range p.facts {
		if f.meta == nil {
			l.conditions.Remove(f.key)
			continue
		}
		l.conditions.Set(f.key, f.meta, f.facts)
	}
	if p.conditionsKind != nil {
		l.conditions.Serve(*p.conditionsKind)
	}
}
