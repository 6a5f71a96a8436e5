package catalog

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// maxLinkProblems bounds how many Problems LinkProblems names.
const maxLinkProblems = 64

// linkIndex holds the Links and which Services each of them admits.
type linkIndex struct {
	links map[string]*linkState
	// version counts changes of export rules.
	version uint64
	order   []*linkRules // nil: not sorted yet
	// exported counts, by Link, the exports that it admits.
	exported map[string]int
	// sets holds every set of Links that admits a Service, by its joined names.
	sets map[string]*linkSet
	// withProblems are the sets that have Problems.
	withProblems map[*linkSet]bool

	changed     map[string]bool   // Links, since the last LinksChanged
	changedSets map[*linkSet]bool // the same for all their Links

	key   []byte // scratch
	names []string
}

// linkState is one Link. Rules that cannot be read admit nothing and are a fault.
type linkState struct {
	spec  *v1alpha1.ExportRules
	rules *linkRules
	fault *Problem
}

// linkSet is a set of Links that admit the same Services. Sets are interned: equal sets
// are one object, so that 10,000 exports do not hold 10,000 lists of 200 names.
type linkSet struct {
	key   string
	names []string // sorted
	users int      // decisions that hold the set
	// troubled are the Services of the set that have Problems, sorted; problems counts
	// these.
	troubled []*entry
	problems int
}

func newLinkIndex() linkIndex {
	return linkIndex{
		links:        make(map[string]*linkState),
		version:      1,
		exported:     make(map[string]int),
		sets:         make(map[string]*linkSet),
		withProblems: make(map[*linkSet]bool),
		changed:      make(map[string]bool),
		changedSets:  make(map[*linkSet]bool),
	}
}

// Exported returns how many exported Services the rules of a Link admit.
func (x *Index) Exported(link string) int { return x.links.exported[link] }

// LinkProblems returns what prevents the export of Services that the peer of a Link
// would see otherwise, and what is wrong with the Link's export rules. It returns at most
// 64 Problems of Services. leftOut is the number of further ones.
func (x *Index) LinkProblems(link string) (first []Problem, leftOut int) {
	return x.links.problems(link)
}

// LinksChanged returns, sorted, the Links whose Exported or LinkProblems may have changed
// since the last call.
func (x *Index) LinksChanged() []string {
	l := &x.links
	for set := range l.changedSets {
		for _, name := range set.names {
			l.changed[name] = true
		}
	}
	out := make([]string, 0, len(l.changed))
	for name := range l.changed {
		out = append(out, name)
	}
	clear(l.changed)
	clear(l.changedSets)
	slices.Sort(out)
	return out
}

// set records a Link, or its absence, and returns its rules (nil: it admits nothing) and
// whether they changed.
func (x *linkIndex) set(name string, l *v1alpha1.Link) (rules *linkRules, changed bool) {
	var spec *v1alpha1.ExportRules
	if l != nil && l.DeletionTimestamp.IsZero() {
		spec = l.Spec.Export
	}
	old := x.links[name]
	if spec == nil && old == nil || spec != nil && old != nil && reflect.DeepEqual(old.spec, spec) {
		return nil, false
	}
	x.changed[name] = true
	x.version++
	x.order = nil
	if spec == nil {
		delete(x.links, name)
		return nil, true
	}
	state := &linkState{spec: spec}
	rules, err := readRules(name, spec)
	if err != nil {
		state.fault = &Problem{
			Reason:  InvalidSelector,
			Message: fmt.Sprintf("the Link exports nothing because its export rules are invalid: %v", err),
		}
	}
	state.rules = rules
	x.links[name] = state
	return rules, true
}

// sorted returns the rules of all Links, by name.
func (x *linkIndex) sorted() []*linkRules {
	if x.order == nil {
		x.order = make([]*linkRules, 0, len(x.links))
		for _, l := range x.links {
			if l.rules != nil {
				x.order = append(x.order, l.rules)
			}
		}
		slices.SortFunc(x.order, func(a, b *linkRules) int { return strings.Compare(a.link, b.link) })
	}
	return x.order
}

// covering returns the rules that cover a namespace, by name of their Links.
func (x *linkIndex) covering(n *namespace) []*linkRules {
	if n.rulesVersion != x.version {
		n.rulesVersion = x.version
		n.covering = n.covering[:0]
		for _, r := range x.sorted() {
			if r.covers(n) {
				n.covering = append(n.covering, r)
			}
		}
	}
	return n.covering
}

// admitting returns the set of Links that admit the Service of e.
func (x *linkIndex) admitting(e *entry) *linkSet {
	x.names = x.names[:0]
	for _, r := range x.covering(e.namespace) {
		if r.admits(e.service) {
			x.names = append(x.names, r.link)
		}
	}
	return x.intern()
}

// toggle returns the set that differs from set in one Link.
func (x *linkIndex) toggle(set *linkSet, link string) *linkSet {
	x.names = append(x.names[:0], set.names...)
	if i, found := slices.BinarySearch(x.names, link); found {
		x.names = slices.Delete(x.names, i, i+1)
	} else {
		x.names = slices.Insert(x.names, i, link)
	}
	return x.intern()
}

// intern returns the one set of the Links in x.names.
func (x *linkIndex) intern() *linkSet {
	x.key = x.key[:0]
	for _, name := range x.names {
		x.key = append(append(x.key, name...), '/')
	}
	set := x.sets[string(x.key)]
	if set == nil {
		set = &linkSet{key: string(x.key), names: slices.Clone(x.names)}
		x.sets[set.key] = set
	}
	return set
}

func (s *linkSet) has(link string) bool {
	_, found := slices.BinarySearch(s.names, link)
	return found
}

// move gives the decision of e another set.
func (x *linkIndex) move(e *entry, set *linkSet) {
	d := e.decision
	old := d.links
	if old == set {
		return
	}
	if d.export != nil {
		x.count(old, set)
	}
	x.removeProblems(e)
	d.links = set
	x.addProblems(e)
	if set != nil {
		set.users++
	}
	if old != nil {
		if old.users--; old.users == 0 {
			delete(x.sets, old.key)
		}
	}
}

// count takes one export from the Links of old and gives it to those of next. Either
// may be nil.
func (x *linkIndex) count(old, next *linkSet) {
	var a, b []string
	if old != nil {
		a = old.names
	}
	if next != nil {
		b = next.names
	}
	for len(a) > 0 || len(b) > 0 {
		switch {
		case len(b) == 0 || len(a) > 0 && a[0] < b[0]:
			if x.exported[a[0]]--; x.exported[a[0]] == 0 {
				delete(x.exported, a[0])
			}
			x.changed[a[0]] = true
			a = a[1:]
		case len(a) == 0 || b[0] < a[0]:
			x.exported[b[0]]++
			x.changed[b[0]] = true
			b = b[1:]
		default:
			a, b = a[1:], b[1:]
		}
	}
}

// addProblems and removeProblems tell the set of e about the Problems of e.
func (x *linkIndex) addProblems(e *entry) {
	d := e.decision
	if d.links == nil || len(d.problems) == 0 {
		return
	}
	i, _ := d.links.find(e)
	d.links.troubled = slices.Insert(d.links.troubled, i, e)
	d.links.problems += len(d.problems)
	x.withProblems[d.links] = true
	x.changedSets[d.links] = true
}

func (x *linkIndex) removeProblems(e *entry) {
	d := e.decision
	if d.links == nil || len(d.problems) == 0 {
		return
	}
	if i, found := d.links.find(e); found {
		d.links.troubled = slices.Delete(d.links.troubled, i, i+1)
	}
	d.links.problems -= len(d.problems)
	if d.links.problems == 0 {
		delete(x.withProblems, d.links)
	}
	x.changedSets[d.links] = true
}

func (s *linkSet) find(e *entry) (int, bool) {
	return slices.BinarySearchFunc(s.troubled, e, func(a, b *entry) int { return a.key.Compare(b.key) })
}

func (x *linkIndex) problems(link string) ([]Problem, int) {
	var out []Problem
	if l := x.links[link]; l != nil && l.fault != nil {
		out = append(out, *l.fault)
	}
	var first []*entry // of each set, enough to fill the list
	total := 0
	for set := range x.withProblems {
		if set.has(link) {
			total += set.problems
			first = append(first, set.troubled[:min(len(set.troubled), maxLinkProblems)]...)
		}
	}
	slices.SortFunc(first, func(a, b *entry) int { return a.key.Compare(b.key) })
	named := 0
	for _, e := range first {
		for _, p := range e.decision.problems {
			if named == maxLinkProblems {
				break
			}
			out = append(out, p)
			named++
		}
	}
	return out, total - named
}
