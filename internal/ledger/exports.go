package ledger

import (
	"cmp"
	"container/heap"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// ExportKey names a Service of this cluster.
type ExportKey struct{ Namespace, Service string }

func (k ExportKey) String() string { return k.Namespace + "/" + k.Service }

func (k ExportKey) compare(o ExportKey) int {
	return cmp.Or(strings.Compare(k.Namespace, o.Namespace), strings.Compare(k.Service, o.Service))
}

// ExportWant is one Service of this cluster to be exported.
type ExportWant struct {
	Namespace, Service string
	// Ports are those that are carried, each once. Without any it is not exported.
	Ports []ExportPort
	// Links are the names of those that it crosses.
	Links []string
}

// ExportPort is one port of an exported Service.
type ExportPort struct{ Name, Protocol string }

// Member is one Service of the committed export list. It is immutable.
type Member struct {
	// Routes are the route ids by port.
	Routes map[ExportPort]uint32
	// Links are the names of the Links that it crosses, sorted.
	Links []string
}

// exports is the part of the Book that is about this cluster's own Services.
type exports struct {
	objects      map[int]*exportObject
	dirtyObjects map[*exportObject]struct{}

	wants    map[ExportKey]*ExportWant
	arrived  map[ExportKey]uint64
	unwanted map[ExportKey]struct{}
	complete bool
	at       map[ExportKey][]exportPlace
	dirty    map[ExportKey]struct{}
	changed  map[ExportKey]struct{}
	view     map[ExportKey]*Member

	limit    int            // Services of one namespace
	live     map[string]int // pending, by namespace
	queues   map[string]*waiting
	waits    map[ExportKey]struct{}
	groups   []waitingGroup      // result of waitingGroups; nil if it is outdated
	freed    map[string]struct{} // namespaces whose waiting Services may try again
	problems map[ExportKey]Problem
	links    map[string][]string // see intern
	batch    uint64

	// committed is the generation of the export list, and highest the last that was sent.
	committed, highest int64
	storedEpoch        string
	budget             bucket
	writing            bool
}

// exportPlace is a slot of an exports object.
type exportPlace struct {
	object *exportObject
	slot   int
}

func (p exportPlace) pending() *exportRecord   { return p.object.pending[p.slot] }
func (p exportPlace) committed() *exportRecord { return p.object.committed[p.slot] }

// exportObject holds the entries of one exports object.
type exportObject struct {
	object
	exports            *exports
	number             int
	pending, committed [maxExports]*exportRecord
	sent               *[maxExports]*exportRecord
	members            [maxExports]*Member
	dirty              map[int]struct{}
	bytes, filled      int // of pending entries
	cursor             int
	hold               int64
	held               bool
	renumber           bool // another leader's write did not raise the generation
}

func newExports() exports {
	return exports{
		objects:      make(map[int]*exportObject),
		dirtyObjects: make(map[*exportObject]struct{}),
		wants:        make(map[ExportKey]*ExportWant),
		arrived:      make(map[ExportKey]uint64),
		unwanted:     make(map[ExportKey]struct{}),
		at:           make(map[ExportKey][]exportPlace),
		dirty:        make(map[ExportKey]struct{}),
		changed:      make(map[ExportKey]struct{}),
		view:         make(map[ExportKey]*Member),
		limit:        ExportsPerNamespace,
		live:         make(map[string]int),
		queues:       make(map[string]*waiting),
		waits:        make(map[ExportKey]struct{}),
		freed:        make(map[string]struct{}),
		problems:     make(map[ExportKey]Problem),
		links:        make(map[string][]string),
		budget:       allocationBudget(),
	}
}

// SetExportsPerNamespace sets how many Services of one namespace are exported at most.
// The ones that are exported already stay.
func (b *Book) SetExportsPerNamespace(n int) {
	e := &b.exports
	e.limit, e.groups = n, nil
	for ns := range e.queues {
		e.freed[ns] = struct{}{}
	}
}

// Export asks for a Service to be exported, or changes how. The slices of w must not be
// changed afterwards.
func (b *Book) Export(w ExportWant, now time.Time) {
	e := &b.exports
	k := ExportKey{w.Namespace, w.Service}
	if len(w.Ports) == 0 {
		b.Unexport(k, now)
		return
	}
	delete(e.unwanted, k)
	if !slices.IsSorted(w.Links) {
		w.Links = slices.Sorted(slices.Values(w.Links))
	}
	if old := e.wants[k]; old != nil && slices.Equal(old.Links, w.Links) && slices.Equal(old.Ports, w.Ports) {
		return
	}
	w.Links = e.intern(w.Links)
	e.wants[k], e.groups = &w, nil
	e.markDirty(k)
}

// intern returns a list of Links that exports with the same Links share.
func (e *exports) intern(links []string) []string {
	k := strings.Join(links, ",")
	if l, known := e.links[k]; known {
		return l
	}
	if len(e.links) >= maxInterned {
		clear(e.links)
	}
	e.links[k] = links
	return links
}

const maxInterned = 4096

// Unexport says that a Service is not exported any more.
func (b *Book) Unexport(k ExportKey, now time.Time) {
	e := &b.exports
	if e.wants[k] == nil && len(e.at[k]) == 0 {
		return
	}
	delete(e.wants, k)
	delete(e.arrived, k)
	delete(e.waits, k)
	e.groups = nil
	delete(e.problems, k)
	if !e.complete {
		e.unwanted[k] = struct{}{}
	}
	e.markDirty(k)
}

// ExportsComplete records that Export has been called for all exported Services. From now
// on, entries that are not wanted are released. Before that they stay.
func (b *Book) ExportsComplete(now time.Time) {
	e := &b.exports
	if e.complete {
		return
	}
	e.complete = true
	for k := range e.at {
		if e.wants[k] == nil {
			e.markDirty(k)
		}
	}
}

// object returns exports object n, made if need be.
func (e *exports) object(n int) *exportObject {
	x := e.objects[n]
	if x == nil {
		x = &exportObject{exports: e, number: n, dirty: make(map[int]struct{})}
		x.name = exportsName(n)
		e.objects[n] = x
	}
	return x
}

// set makes r the pending entry of a slot.
func (x *exportObject) set(slot int, r *exportRecord) {
	old := x.pending[slot]
	if r.same(x.committed[slot]) {
		r = x.committed[slot]
	}
	if old == r {
		return
	}
	e := x.exports
	if old.live() {
		addTo(e.live, old.Namespace, -1)
		if e.queues[old.Namespace] != nil {
			e.freed[old.Namespace] = struct{}{}
		}
	}
	x.pending[slot] = r
	x.bytes += r.size() - old.size()
	x.filled += compareBool(r != nil, old != nil)
	if r.live() {
		addTo(e.live, r.Namespace, 1)
	}
	e.relist(exportPlace{x, slot}, old)
	x.mark(slot)
}

// commit makes r the committed entry of a slot.
func (x *exportObject) commit(slot int, r *exportRecord) {
	old := x.committed[slot]
	if old == r {
		return
	}
	e := x.exports
	for _, each := range [...]*exportRecord{old, r} {
		if each != nil {
			e.changed[each.key()] = struct{}{}
		}
	}
	x.committed[slot], x.members[slot] = r, nil
	if x.pending[slot].same(r) {
		x.pending[slot] = r
	}
	e.relist(exportPlace{x, slot}, old)
	x.mark(slot)
}

// restore and open are those of block.
func (x *exportObject) restore(slot int) {
	c, n := x.committed[slot], x.pending[slot]
	if c == nil || n != nil && n.key() == c.key() {
		return
	}
	for _, r := range [...]*exportRecord{c, n} {
		if r != nil {
			x.exports.markDirty(r.key())
		}
	}
	x.set(slot, c)
}

func (x *exportObject) open(slot int) bool {
	n := x.pending[slot]
	return n.same(x.committed[slot]) && (x.sent == nil || n.same(x.sent[slot]))
}

func (x *exportObject) mark(slot int) {
	if x.pending[slot].same(x.committed[slot]) {
		delete(x.dirty, slot)
		return
	}
	x.dirty[slot] = struct{}{}
	x.exports.dirtyObjects[x] = struct{}{}
}

// relist keeps the index of places after an entry of at has changed. old is what it was.
func (e *exports) relist(at exportPlace, old *exportRecord) {
	holds := func(k ExportKey) bool {
		c, n := at.committed(), at.pending()
		return c != nil && c.key() == k || n != nil && n.key() == k
	}
	if old != nil && !holds(old.key()) {
		k := old.key()
		e.at[k] = slices.DeleteFunc(e.at[k], func(o exportPlace) bool { return o == at })
		if len(e.at[k]) == 0 {
			delete(e.at, k)
		}
	}
	for _, r := range [...]*exportRecord{at.pending(), at.committed()} {
		if r != nil && !slices.Contains(e.at[r.key()], at) {
			e.at[r.key()] = append(e.at[r.key()], at)
		}
	}
}

// oldestExport returns the place of the oldest live entry. What is not committed yet is
// younger than all that is.
func oldestExport(places []exportPlace, of func(exportPlace) *exportRecord) exportPlace {
	return slices.MinFunc(places, func(x, y exportPlace) int {
		return cmp.Or(
			compareBool(of(x) == x.pending() && !x.committed().live(), of(y) == y.pending() &&
				!y.committed().live()),
			cmp.Compare(of(x).Since, of(y).Since), cmp.Compare(x.object.number, y.object.number),
			cmp.Compare(x.slot, y.slot))
	})
}

func compareBool(x, y bool) int {
	switch {
	case x == y:
		return 0
	case x:
		return 1
	}
	return -1
}

func (e *exports) places(k ExportKey, of func(exportPlace) *exportRecord) []exportPlace {
	var out []exportPlace
	for _, at := range e.at[k] {
		if r := of(at); r.live() && r.key() == k {
			out = append(out, at)
		}
	}
	return out
}

// changes returns what has changed in the committed export list, sorted.
func (e *exports) changes() []ExportChange {
	var out []ExportChange
	for k := range e.changed {
		var m *Member
		if places := e.places(k, exportPlace.committed); len(places) > 0 {
			at := oldestExport(places, exportPlace.committed)
			if at.object.members[at.slot] == nil {
				at.object.members[at.slot] = at.committed().member(at.object.number)
			}
			m = at.object.members[at.slot]
		}
		if e.view[k] == m {
			continue
		}
		if m == nil {
			delete(e.view, k)
		} else {
			e.view[k] = m
		}
		out = append(out, ExportChange{k, m})
	}
	clear(e.changed)
	slices.SortFunc(out, func(x, y ExportChange) int { return x.Key.compare(y.Key) })
	return out
}

// settle plans everything that has changed.
func (e *exports) settle(now time.Time) {
	if !e.writing {
		e.writing = true
		for k := range e.at {
			e.markDirty(k)
		}
		for k := range e.wants {
			e.markDirty(k)
		}
	}
	e.batch++
	keys := make([]ExportKey, 0, len(e.dirty))
	for k := range e.dirty {
		if e.wants[k] != nil && e.arrived[k] == 0 {
			e.arrived[k] = e.batch
		}
		keys = append(keys, k)
	}
	clear(e.dirty)
	slices.SortFunc(keys, func(x, y ExportKey) int {
		return cmp.Or(cmp.Compare(e.arrived[x], e.arrived[y]), x.compare(y))
	})
	if len(keys)+len(e.freed) > 0 {
		e.groups = nil
	}
	for _, k := range keys {
		e.plan(k, now)
	}
	for _, ns := range slices.Sorted(maps.Keys(e.freed)) {
		e.retry(ns, now)
	}
	clear(e.freed)
}

// retry gives room in a namespace to those who wait for it, the oldest first.
func (e *exports) retry(ns string, now time.Time) {
	q := e.queues[ns]
	for q != nil && q.Len() > 0 && e.live[ns] < e.limit {
		w := heap.Pop(q).(waiter)
		k := ExportKey{w.source.Namespace, w.source.Service}
		if _, waits := e.waits[k]; waits && e.arrived[k] == w.arrived {
			delete(e.waits, k)
			e.plan(k, now)
		}
	}
	if q != nil && q.Len() == 0 {
		delete(e.queues, ns)
	}
}

// plan makes the pending entries of one Service what they should be.
func (e *exports) plan(k ExportKey, now time.Time) {
	w := e.wants[k]
	var at exportPlace
	places := e.places(k, exportPlace.pending)
	if len(places) > 0 {
		at = oldestExport(places, exportPlace.pending)
		for _, other := range places {
			switch {
			case other == at:
			case !other.committed().live():
				other.object.set(other.slot, other.committed())
			default:
				other.object.set(other.slot, other.pending().release(seconds(now)))
			}
		}
	}
	_, unwanted := e.unwanted[k]
	delete(e.unwanted, k)
	switch {
	case w == nil && len(places) == 0:
	case w == nil:
		if unwanted || e.complete {
			at.object.set(at.slot, at.pending().release(seconds(now)))
		}
	case len(places) > 0:
		delete(e.waits, k)
		e.update(at, w, at.pending().Since, now)
	case e.live[k.Namespace] >= e.limit:
		e.wait(k)
	default:
		e.admit(k, w, now)
	}
}

func (e *exports) wait(k ExportKey) {
	if _, waits := e.waits[k]; waits {
		return
	}
	q := e.queues[k.Namespace]
	if q == nil {
		q = new(waiting)
		e.queues[k.Namespace] = q
	}
	if q.Len() > 2*len(e.waits)+minHeap {
		*q = slices.DeleteFunc(*q, func(w waiter) bool {
			_, waits := e.waits[ExportKey{w.source.Namespace, w.source.Service}]
			return !waits
		})
		heap.Init(q)
	}
	e.waits[k] = struct{}{}
	heap.Push(q, waiter{e.arrived[k], Source{Namespace: k.Namespace, Service: k.Service}})
}

// admit gives a Service its entry: the one that it had, or a new one.
func (e *exports) admit(k ExportKey, w *ExportWant, now time.Time) {
	delete(e.waits, k)
	var had exportPlace
	for _, at := range e.at[k] {
		r := at.pending()
		if r != nil && !r.live() && r.key() == k && (had.object == nil ||
			r.Released > had.pending().Released) {
			had = at
		}
	}
	since := seconds(now)
	if had.object != nil {
		if c := had.committed(); c.live() && c.key() == k {
			since = c.Since // the release was never stored
		}
		e.update(had, w, since, now)
		return
	}
	// What the entry takes is known without its offsets.
	trial, _ := newExportRecord(w, nil, maxExports-1, since, func() (int,
		bool) {
		return routesPerObject - 1, true
	}, now)
	at, ok := e.allot(trial.size(), now)
	if !ok {
		e.note(k, "no route id is left: unexport something and wait a day")
		return
	}
	e.update(at, w, since, now)
}

// update makes the entry of at that of w. The slot's entry of another Service goes.
func (e *exports) update(at exportPlace, w *ExportWant, since int64, now time.Time) {
	x, k := at.object, ExportKey{w.Namespace, w.Service}
	had := at.pending()
	if had != nil && had.key() != k {
		had = nil
	}
	delete(e.problems, k)
	cursor := x.cursor
	r, left := newExportRecord(w, had, at.slot, since, x.newOffsets(), now)
	if x.bytes-at.pending().size()+r.size() > maxExportEntries && r.size() > had.size() {
		x.cursor = cursor
		r, left = newExportRecord(w, had, at.slot, since, func() (int, bool) { return 0, false }, now)
	}
	if len(left) > 0 {
		e.note(k,
			fmt.Sprintf("the Service has had too many ports within a day, so %d are not exported until "+
				"old ones are forgotten", len(left)))
	}
	x.set(at.slot, r)
}

// offsets are those that entries of x have.
func (x *exportObject) offsets() map[int]bool {
	used := make(map[int]bool)
	for _, entries := range [...]*[maxExports]*exportRecord{&x.pending, &x.committed, cmp.Or(x.sent,
		&x.pending)} {
		for _, r := range entries {
			if r != nil {
				for _, p := range r.Ports {
					used[p.Offset] = true
				}
			}
		}
	}
	return used
}

// newOffsets returns a function that returns offsets that no entry of x has.
func (x *exportObject) newOffsets() func() (int, bool) {
	var used map[int]bool
	return func() (int, bool) {
		if used == nil {
			used = x.offsets()
		}
		for range routesPerObject {
			offset := x.cursor % routesPerObject
			x.cursor = offset + 1
			if !used[offset] {
				used[offset] = true
				return offset, true
			}
		}
		return 0, false
	}
}

// allot returns a slot for an entry of need bytes: one without an entry, then the one
// that was released longest ago, then one of a new object.
func (e *exports) allot(need int, now time.Time) (exportPlace, bool) {
	numbers := make([]int, 0, len(e.objects))
	for n := range e.objects {
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	for _, n := range numbers {
		x := e.objects[n]
		if x.startHold(now); x.hold > now.Unix() || x.filled == maxExports ||
			x.bytes+need > maxExportEntries {
			continue
		}
		for slot, r := range x.pending {
			if r == nil && x.open(slot) {
				return exportPlace{x, slot}, true
			}
		}
	}
	var longest exportPlace
	for _, n := range numbers {
		x := e.objects[n]
		for slot, r := range x.pending {
			if r != nil && reusable(r.Released, now) && x.open(slot) &&
				x.bytes-r.size()+need <= maxExportEntries &&
				(longest.object == nil || r.Released < longest.pending().Released) {
				longest = exportPlace{x, slot}
			}
		}
	}
	if longest.object != nil {
		return longest, true
	}
	for n := range maxExportObjects {
		if e.objects[n] == nil {
			return exportPlace{e.object(n), 0}, true
		}
	}
	return exportPlace{}, false
}

func (x *exportObject) startHold(now time.Time) {
	if x.held {
		x.held, x.hold = false, seconds(now.Add(ReuseDelay))
	}
}

func (e *exports) note(k ExportKey, message string) {
	e.problems[k] = problem(k.String(), RoutesExhausted, message)
}

// loadExports takes exports object n as it is stored.
func (b *Book) loadExports(n int, o *v1alpha1.Ledger) []Problem {
	e := &b.exports
	x := e.object(n)
	known := x.known
	outcome := x.observe(o)
	if outcome == older {
		return nil
	}
	entries, data, problems, err := decodeExports(o)
	switch {
	case outcome == edited:
		e.dirtyObjects[x] = struct{}{}
		return []Problem{damaged(o.Name, "it was edited by hand, and is written again as it was")}
	case err != nil && known:
		x.overwrite = true
		e.dirtyObjects[x] = struct{}{}
		return []Problem{damaged(o.Name, err.Error()+"; it is written again as it was")}
	case err != nil:
		problems = append(problems, damaged(o.Name, err.Error()+"; its Services get other route ids"))
		data = exportData{}
	}
	x.accept(o.Generation)
	// Readers take the list's generation for its content. A write of another leader that
	// did not raise it, because that leader had missed ours, is made again with a higher
	// one.
	x.renumber = known && e.writing && o.Generation < e.highest
	e.committed, e.highest = max(e.committed, o.Generation), max(e.highest, o.Generation)
	e.storedEpoch = cmp.Or(e.storedEpoch, o.Epoch)
	x.hold, x.cursor = data.Hold, data.Cursor
	if len(problems) > 0 {
		x.overwrite, x.held = true, true
	}
	if x.overwrite || x.renumber {
		e.dirtyObjects[x] = struct{}{}
	}
	foreign := false
	for slot, theirs := range entries {
		if theirs.same(x.committed[slot]) {
			continue
		}
		foreign = foreign || !theirs.same(x.pending[slot]) && (x.sent == nil || !theirs.same(x.sent[slot]))
		x.commit(slot, theirs)
		x.restore(slot)
		if theirs == nil {
			continue
		}
		e.markDirty(theirs.key())
		if theirs.live() && len(e.places(theirs.key(), exportPlace.committed)) > 1 {
			problems = append(problems, problem(theirs.key().String(), Duplicate,
				"the ledger has two entries of the Service: the older stays"))
		}
	}
	if foreign {
		x.reset() // another leader may have given the route ids that pending entries have
	}
	return problems
}

// reset drops what is pending. All of it is planned again.
func (x *exportObject) reset() {
	for slot, mine := range x.pending {
		if mine != x.committed[slot] {
			if mine != nil {
				x.exports.markDirty(mine.key())
			}
			x.set(slot, x.committed[slot])
		}
	}
}

// markDirty sees that k is planned. A process that does not write plans nothing.
func (e *exports) markDirty(k ExportKey) {
	if e.writing {
		e.dirty[k] = struct{}{}
	}
}

// epoch is that of a stored exports object; empty: none is known.
func (e *exports) epoch() string { return e.storedEpoch }

// next returns the object to be written next. Exports objects are written one after
// another, so that who has read generation N has read all before it.
func (e *exports) next(now time.Time) *exportObject {
	var first *exportObject
	for x := range e.dirtyObjects {
		if x.inFlight != nil {
			return nil
		}
		if len(x.dirty) == 0 && !x.overwrite && !x.renumber {
			delete(e.dirtyObjects, x)
			continue
		}
		if x.ready(now) && (first == nil || x.number < first.number) {
			first = x
		}
	}
	return first
}

// due is when a write becomes possible that is not now.
func (e *exports) due(now time.Time) time.Time {
	if !e.writing {
		return time.Time{}
	}
	var next time.Time
	for x := range e.dirtyObjects {
		t := x.retryAt
		if n := e.budget.next(); n.After(t) {
			t = n
		}
		if t.After(now) && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	return next
}

// write returns the exports object that is to be written now.
func (e *exports) write(b *Book, now time.Time) (Write, bool) {
	x := e.next(now)
	if x == nil || !e.budget.take(now) {
		return Write{}, false
	}
	x.startHold(now)
	raw, err := encodeExports(&x.pending, x.cursor, x.hold)
	if err != nil {
		x.fail(err.Error(), now)
		return Write{}, false
	}
	e.highest = max(e.highest+1, now.UnixMilli())
	o := &v1alpha1.Ledger{
		Block:      int32(x.number),
		Generation: e.highest,
		Epoch:      b.directory.epoch,
		Data:       b.compressor.compress(raw),
	}
	for _, r := range x.pending {
		if r.live() {
			o.Entries++
		}
	}
	sent := x.pending
	x.sent, x.renumber = &sent, false
	return x.begin(o), true
}

func (e *exports) done(n int, w Write, stored *v1alpha1.Ledger, err error, now time.Time) {
	x := e.objects[n]
	if x == nil {
		return
	}
	e.dirtyObjects[x] = struct{}{}
	if !x.finish(w, stored, err, now) {
		return
	}
	e.committed = max(e.committed, w.Object.Generation)
	for slot, r := range x.sent {
		x.commit(slot, r)
		x.restore(slot)
	}
	x.sent = nil
}

// maxNamed is how many Services of a namespace a problem names.
const maxNamed = 8

// listProblems returns what is wrong with the exports that cross a Link, unsorted.
func (e *exports) listProblems(link string) []Problem {
	var out []Problem
	names, counts := make(map[string][]string), make(map[string]int) // by namespace
	for _, g := range e.waitingGroups() {
		if crosses(g.links, link) {
			ns := g.namespace
			names[ns] = append(names[ns], g.names[:min(len(g.names), maxNamed)]...)
			counts[ns] += len(g.names)
		}
	}
	for ns, first := range names {
		slices.Sort(first)
		first = first[:min(len(first), maxNamed)]
		text := strings.Join(first, ", ")
		if n := counts[ns] - len(first); n > 0 {
			text += fmt.Sprintf(" and %d more", n)
		}
		out = append(out, problem("", ExportCapReached, fmt.Sprintf(
			"namespace %s exports more than %d Services, so the newest are left out: %s", ns, e.limit, text)))
	}
	for k, p := range e.problems {
		if w := e.wants[k]; w != nil && crosses(w.Links, link) {
			out = append(out, p)
		}
	}
	for _, x := range e.objects {
		if x.failure != "" {
			out = append(out, writeFailed(x.name, x.failure))
		}
	}
	return out
}

// crosses reports whether links, which are sorted, contain link.
func crosses(links []string, link string) bool {
	_, found := slices.BinarySearch(links, link)
	return found
}

// waitingGroup holds the Services of one namespace that cross the same Links and are left
// out because the namespace has reached its limit of exports.
type waitingGroup struct {
	namespace string
	links     []string // sorted
	names     []string // of the Services, sorted
}

// waitingGroups returns the Services that are left out, in groups. There may be thousands
// of them, and the status of every Link needs them, so the result is cached until exports
// change.
func (e *exports) waitingGroups() []waitingGroup {
	if e.groups != nil {
		return e.groups
	}
	type key struct {
		namespace string
		links     *string // intern returns the same list for equal lists
	}
	at := make(map[key]int)
	e.groups = make([]waitingGroup, 0, 1)
	for k := range e.waits {
		w := e.wants[k]
		if w == nil || len(w.Links) == 0 {
			continue
		}
		id := key{k.Namespace, &w.Links[0]}
		i, ok := at[id]
		if !ok {
			i = len(e.groups)
			at[id] = i
			e.groups = append(e.groups, waitingGroup{namespace: k.Namespace, links: w.Links})
		}
		e.groups[i].names = append(e.groups[i].names, k.Service)
	}
	for _, g := range e.groups {
		slices.Sort(g.names)
	}
	return e.groups
}
