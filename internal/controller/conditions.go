package controller

import (
	"maps"
	"slices"

	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/ledger"
	"github.com/causeway-mesh/causeway/internal/serviceexport"
)

// planConditions decides what the conditions of ServiceExports follow from, where that
// may have changed. Only the leader does.
func (r *reconciler) planConditions(b *batch, p *plan) {
	if b.conditionsKind != nil {
		r.conditionsKind = *b.conditionsKind
		p.conditionsKind = b.conditionsKind
	}
	if !r.replayed { // the export list that other leaders have written is not known yet
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

func (r *reconciler) allConditions(p *plan) {
	for k := range r.serviceExports {
		p.conditionsOf(k)
	}
}

// exportFacts collects what the conditions of a ServiceExport follow from.
func (r *reconciler) exportFacts(k catalog.Key) serviceexport.Facts {
	e, problems := r.index.Get(k)
	switch {
	case e == nil && len(problems) > 0:
		return serviceexport.Facts{Refusal: problems[0]}
	case e == nil: // a Service that is being deleted is not exported any more
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

// applyConditions passes the facts of a plan to the writer of conditions. The version
// comes last, because the writer then knows all ServiceExports when it lists them.
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
