package controller

import (
	"time"

	"github.com/causeway-mesh/causeway/internal/catalog"
)

// sweeper is the full pass, spread over resyncInterval: it has every exported Service and
// every imported one decided again, a few at a time. Events make it unnecessary; it is
// the safety net for an event that was lost or misread, and a metric counts what it
// repaired.
type sweeper struct {
	exports []catalog.Key
	imports []importKey
	due     time.Time // when the next keys are due
	step    int       // how many keys at a time
}

type importKey struct {
	link string
	key  catalog.Key
}

// sweepSome decides some keys again, after the changes of the pass are decided.
func (r *reconciler) sweepSome(now time.Time, p *plan) {
	s := &r.sweep
	if now.Before(s.due) {
		p.dueAt(s.due)
		return
	}
	if len(s.exports)+len(s.imports) == 0 {
		r.startSweep()
	}
	s.due = now.Add(sweepInterval)
	p.dueAt(s.due)
	for range s.step {
		switch {
		case len(s.exports) > 0:
			r.index.MarkDirty(s.exports[0])
			p.conditionsOf(s.exports[0])
			s.exports = s.exports[1:]
		case len(s.imports) > 0:
			k := s.imports[0]
			s.imports = s.imports[1:]
			if r.imports.redecide(k.link, k.key, now, p) {
				r.metrics.repairs.Inc()
			}
		}
	}
	for _, c := range r.index.Flush() {
		r.metrics.repairs.Inc()
		r.log.Warn("full pass repaired an export that no event had announced", "service", c.Key.String())
		r.exports.decide(c, now, p)
	}
}

// startSweep lists what there is to decide again.
func (r *reconciler) startSweep() {
	s := &r.sweep
	s.exports = r.index.Keys()
	for name, l := range r.imports.links {
		for _, key := range l.keys() {
			s.imports = append(s.imports, importKey{name, key})
		}
	}
	steps := int(resyncInterval / sweepInterval)
	s.step = (len(s.exports)+len(s.imports))/steps + 1
}
