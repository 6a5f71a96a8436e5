package ledger

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// ExportWant is one Service of this cluster to be exported.
type ExportWant struct {
	Namespace, Service string
	Ports              []ExportPort
}

// ExportPort is one port of it that is carried.
type ExportPort struct {
	Name, Protocol string
}

// AssignExports gives each wanted port a route id. wants is everything that is
// exported: entries of other Services rest.
func (b Book) AssignExports(wants []ExportWant, now time.Time) (Book, []Problem) {
	return b.assignExports(wants, now, math.MaxUint32)
}

// assignExports does so with route ids up to last.
func (b Book) assignExports(wants []ExportWant, now time.Time, last int64) (Book, []Problem) {
	r := newRouter(b, now, last)
	wanted := make(map[export]ExportWant, len(wants))
	for _, w := range wants {
		wanted[export{w.Namespace, w.Service}] = w
	}
	for k, e := range r.current {
		if _, ok := wanted[k]; !ok && e.RestingSince == nil {
			e.RestingSince = restFrom(now)
		}
	}
	keys := slices.SortedFunc(maps.Keys(wanted), export.compare)
	for _, k := range keys {
		r.renew(k, wanted[k])
	}
	for _, k := range keys {
		r.fillRoutes(k, wanted[k])
	}
	for _, e := range r.current {
		r.old = append(r.old, *e)
	}
	out := Book{mirrors: b.mirrors, exports: forget(r.old, now, func(e v1alpha1.LedgerExport) *metav1.Time { return e.RestingSince })}
	slices.SortFunc(out.exports, compareExports)
	return out, r.problems
}

// router is the state of one AssignExports.
type router struct {
	now      time.Time
	current  map[export]*v1alpha1.LedgerExport // the live entry of a Service, or the last to rest
	old      []v1alpha1.LedgerExport           // other resting entries
	used     map[int64]bool
	next     int64
	last     int64
	problems []Problem
}

func newRouter(b Book, now time.Time, last int64) *router {
	r := &router{now: now, last: last, next: FirstRoute, used: make(map[int64]bool, len(b.exports)), current: make(map[export]*v1alpha1.LedgerExport, len(b.exports))}
	for _, e := range b.exports {
		for _, p := range e.Ports {
			r.used[p.Route] = true
		}
		if k := exportOf(e); r.current[k] == nil {
			r.current[k] = &e
		} else {
			r.old = append(r.old, e)
		}
	}
	return r
}

// renew brings the entry of k to life. An entry that remembers too many ports
// rests, and a new one begins.
func (r *router) renew(k export, w ExportWant) {
	e := r.current[k]
	if e != nil && len(e.Ports)+len(missing(*e, w)) > maxExportPorts {
		retired := *e
		if retired.RestingSince == nil {
			retired.RestingSince = restFrom(r.now)
		}
		r.old = append(r.old, retired)
		e = nil
	}
	if e == nil {
		e = &v1alpha1.LedgerExport{Namespace: k.namespace, Service: k.service}
		r.current[k] = e
	}
	e.RestingSince = nil
}

// fillRoutes gives the ports of k that have none a route id.
func (r *router) fillRoutes(k export, w ExportWant) {
	e := r.current[k]
	e.Ports = slices.Clone(e.Ports)
	for _, p := range missing(*e, w) {
		id, ok := r.take()
		if !ok {
			r.problems = append(r.problems, Problem{ServiceProblem: v1alpha1.ServiceProblem{
				Service: k.String(), Reason: RoutesExhausted, Message: "no route id is left: unexport something and wait a day",
			}})
			break
		}
		e.Ports = append(e.Ports, v1alpha1.LedgerExportPort{Name: p.Name, Protocol: p.Protocol, Route: id})
	}
	slices.SortFunc(e.Ports, func(x, y v1alpha1.LedgerExportPort) int { return cmp.Compare(x.Route, y.Route) })
	if len(e.Ports) == 0 {
		delete(r.current, k)
	}
}

// missing returns the ports of w that e has no route id for, sorted, each once.
func missing(e v1alpha1.LedgerExport, w ExportWant) []ExportPort {
	var out []ExportPort
	for _, p := range w.Ports {
		known := slices.ContainsFunc(e.Ports, func(q v1alpha1.LedgerExportPort) bool { return q.Name == p.Name && q.Protocol == p.Protocol })
		if !known {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(x, y ExportPort) int {
		return cmp.Or(strings.Compare(x.Name, y.Name), strings.Compare(x.Protocol, y.Protocol))
	})
	return slices.Compact(out)
}

// take returns the lowest route id that nobody has had, or else the one that has
// rested longest.
func (r *router) take() (int64, bool) {
	for ; r.next <= r.last; r.next++ {
		if !r.used[r.next] {
			r.used[r.next] = true
			return r.next, true
		}
	}
	return r.reuse()
}

// reuse forgets the entry that has rested longest, and takes one of its route ids.
func (r *router) reuse() (int64, bool) {
	var best *v1alpha1.LedgerExport
	consider := func(e *v1alpha1.LedgerExport) {
		if rested(e.RestingSince, r.now) && (best == nil || cmp.Or(e.RestingSince.Compare(best.RestingSince.Time), compareExports(*e, *best)) < 0) {
			best = e
		}
	}
	for _, e := range r.current {
		consider(e)
	}
	for i := range r.old {
		consider(&r.old[i])
	}
	if best == nil {
		return 0, false
	}
	freed := best.Ports
	if k := exportOf(*best); r.current[k] == best {
		delete(r.current, k)
	} else {
		r.old = slices.DeleteFunc(r.old, func(e v1alpha1.LedgerExport) bool { return slices.Equal(e.Ports, freed) })
	}
	for _, p := range freed {
		delete(r.used, p.Route)
		r.next = min(r.next, p.Route)
	}
	return r.take()
}
