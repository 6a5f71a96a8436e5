// Package mirror makes a peer's exports real in this cluster: a Service and
// EndpointSlices for each of them, which stay true for as long as the peer exports it.
//
// The life of one mirror, from catalog entry to EndpointSlice:
//
//	peer's catalog entry
//	   │ Rules.Wants     do the Link's import rules want it, where, under which name?
//	   ▼
//	ledger               stores its virtual IPs, port indexes and name
//	   │ Rules.Want      the entry, and what the peer says of the source now
//	   ▼
//	Writer.Set ─▶ queue  one key per mirror; Links take turns    ◀─ Touch: the cache changed
//	   │                                                         ◀─ timers, resync
//	   ▼
//	worker               reader.have: what stands, by the cache and our own recent writes
//	   │                 damper:      what to show of the source's readiness
//	   │                 PlanMirror:  what to write (pure)
//	   ▼
//	API server           the Service, then its EndpointSlices, back to back
//	   │
//	   ▼
//	informer ─▶ KeysOf ─▶ Touch: the worker looks once more and finds nothing to write
//
// What always holds:
//   - An object that Causeway did not make is never changed or deleted.
//   - Nothing is written when nothing differs, and only our own fields are written.
//   - A mirror is handled by one worker at a time. Work is proportional to the mirrors
//     that have changed.
//   - A slice of ours whose Service is missing or not ours is deleted before anything
//     else is done for that mirror.
//   - Only a complete catalog deletes mirrors, and many deletions at once are paced.
//   - A mirror is an output. Only its readiness is read back, to keep it from flapping.
//     (A headless mirror lists the addresses that Kubernetes gave the mirrors of the
//     named pods. That is for DNS; no agent reads it.)
//   - Links share workers and the global write budget in turns, and nothing else.
//   - What the API server refuses for one mirror stops no other mirror. It is not tried
//     again for a minute, unless something else is to be written.
//
// The owner reference, by UID, says to which Link a Service belongs. Tenants may strip
// labels, and they are then set again. When a Link is deleted, Kubernetes collects its
// mirrors, unless a standby Link for the same peer takes them over.
package mirror

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"k8s.io/apimachinery/pkg/api/equality"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/throttle"
)

// Options tune a Writer. The zero value works.
type Options struct {
	// WorkersPerLink bounds how many mirrors of one Link are handled at once. 0: 8.
	WorkersPerLink int
	// Workers bounds how many mirrors are handled at once in all. 0: 16.
	Workers int
	// WritesPerSecond is each Link's budget. 0: 400.
	WritesPerSecond int
	// TotalWritesPerSecond is the budget of all Links, unless WriterConfig.Throttle is
	// set. 0: 800.
	TotalWritesPerSecond int
	// DeletesPerSecond is the pace at which a mass of a Link's mirrors is deleted. 0: 20.
	DeletesPerSecond int
	// WriteTimeout bounds one write. 0: 10 s.
	WriteTimeout time.Duration
}

func (o Options) withDefaults() Options {
	return Options{
		WorkersPerLink:       cmp.Or(o.WorkersPerLink, 8),
		Workers:              cmp.Or(o.Workers, 16),
		WritesPerSecond:      cmp.Or(o.WritesPerSecond, 400),
		TotalWritesPerSecond: cmp.Or(o.TotalWritesPerSecond, 800),
		DeletesPerSecond:     cmp.Or(o.DeletesPerSecond, 20),
		WriteTimeout:         cmp.Or(o.WriteTimeout, 10*time.Second),
	}
}

// WriterConfig is what a Writer needs. Reader, Client and Live are required.
type WriterConfig struct {
	// Reader reads from a cache with the indexes of RegisterIndexes. Objects that it
	// returns for UnsafeDisableDeepCopy are not changed.
	Reader client.Reader
	// Client writes.
	Client client.Writer
	// Live reads from the API server itself. It is asked rarely.
	Live client.Reader
	// Namespace is Causeway's own.
	Namespace string
	// Version is Causeway's.
	Version string
	// OnStatus is called when the Status of a Link has changed, ten times per second and
	// Link at most. It must not block. nil: nothing is called.
	OnStatus func(link string)
	// Throttle is the budget of all Links. nil: a Limiter of the Writer's own, which sees
	// only those 429 answers that the client does not retry.
	Throttle *throttle.Limiter
	// Log may be nil.
	Log *slog.Logger
	// Metrics may be nil.
	Metrics *Metrics
	Options Options
}

// Writer keeps the mirrors of all Links. Its methods are safe for concurrent use and do
// not block on the API server. They only record what is to be done; Run does it. Create a
// Writer with NewWriter.
type Writer struct {
	WriterConfig
	expected *expectations
	wake     chan struct{} // holds a token when the dispatcher has to look again

	mu     sync.Mutex // guards all that follows, and what is reachable from it
	queue  queue
	links  map[string]*linkState
	byName map[string]map[string][]*mirrorState // namespace → name → mirrors of any Link
	// unreported are Links whose status may have changed since OnStatus was last called.
	unreported map[*linkState]bool
}

// linkState is what a Writer holds of one Link.
type linkState struct {
	linkQueue
	name     string
	scope    *Scope
	complete bool
	mirrors  map[catalog.Key]*mirrorState
	groups   map[catalog.Key]*headlessGroup // by the peer's Service
	report   report
	resync   resync
	adopting bool // what stands is not known yet
	removed  bool
	create   namespaceCreation
}

// headlessGroup is a headless mirror and the mirrors of its named pods.
type headlessGroup struct {
	parent     *mirrorState
	companions map[catalog.Key]*mirrorState
}

// mirrorState is what a Writer holds of one mirror. The last group of fields belongs to
// the worker that handles the mirror; the others are guarded by Writer.mu.
type mirrorState struct {
	link *linkState
	key  catalog.Key
	want *Want // nil: not wanted

	// Place in the queue.
	lane       lane
	queuedAt   time.Time
	running    bool
	again      bool // to be handled again once it is not running
	fromDelete bool
	onlyResync bool
	due        time.Time // when to look again though nothing happens; zero: never
	place      int       // in queue.delayed

	// What the last worker found.
	visited  bool // there was one for this want
	standing bool // the Service stands and is ours
	pending  bool // something is still to be written
	blocked  bool // something cannot be written, for which there is a problem
	problems []Problem
	shown    bool   // what the slices are to show
	address  string // the ClusterIPs of a companion

	damper   damper
	content  contentLimit
	refusals refusals
	failures int
	// collected is until when Kubernetes is given time to collect the slices of a Service
	// that was deleted by us; zero: it was not.
	collected time.Time
}

// NewWriter returns a Writer that has no Links.
func NewWriter(c WriterConfig) *Writer {
	c.Options = c.Options.withDefaults()
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.OnStatus == nil {
		c.OnStatus = func(string) {}
	}
	if c.Throttle == nil {
		c.Throttle = throttle.New(c.Options.TotalWritesPerSecond, c.Metrics.Throttled)
	}
	return &Writer{
		WriterConfig: c,
		expected:     newExpectations(),
		wake:         make(chan struct{}, 1),
		queue:        queue{options: c.Options, total: c.Throttle},
		links:        make(map[string]*linkState),
		byName:       make(map[string]map[string][]*mirrorState),
		unreported:   make(map[*linkState]bool),
	}
}

// SetLink adds a Link or replaces what is known of it. For a new one the Writer lists the
// mirrors that stand already. standby is a newer Link for the same peer, nil if there is
// none: mirrors then get a second owner reference to it, so that they survive the
// deletion of link. Only Links in force are set; a standby becomes one by RemoveLink of
// the older and SetLink of its own. A Link that is being deleted is removed.
func (w *Writer) SetLink(link, standby *v1alpha1.Link) {
	if !link.DeletionTimestamp.IsZero() {
		w.RemoveLink(link.Name)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.links[link.Name]
	if l == nil {
		l = w.newLink(link.Name)
		w.links[link.Name] = l
	} else if sameScope(l.scope, link, standby) {
		return
	}
	if l.scope == nil || l.scope.Link.UID != link.UID {
		l.adopt, l.adopting = true, true
		w.queue.activate(&l.linkQueue)
	}
	rules, _ := NewRules(link, w.Namespace) // the caller reports its problem
	l.scope = NewScope(link, standby, rules, w.Version, l.complete || !rules.Imports())
	l.pace()
	for _, m := range l.mirrors {
		w.enqueue(m)
	}
	w.changed(l)
}

func (w *Writer) newLink(name string) *linkState {
	o := w.Options
	l := &linkState{
		name: name,
		linkQueue: linkQueue{
			writes:  rate.NewLimiter(rate.Limit(o.WritesPerSecond), o.WritesPerSecond),
			deletes: rate.NewLimiter(rate.Limit(o.DeletesPerSecond), o.DeletesPerSecond),
			pauses:  backoff.Backoff{Min: time.Second, Max: maxRetry},
		},
		mirrors: make(map[catalog.Key]*mirrorState),
		groups:  make(map[catalog.Key]*headlessGroup),
		report:  newReport(w.Metrics.queue(name)),
	}
	l.owner = l
	return l
}

// sameScope reports whether nothing has changed that mirrors depend on. The status of a
// Link changes all the time.
func sameScope(s *Scope, link, standby *v1alpha1.Link) bool {
	if standby != nil && !CanTakeOver(link, standby) {
		standby = nil
	}
	return s.Link.UID == link.UID && (s.Standby == nil) == (standby == nil) &&
		(standby == nil || s.Standby.UID == standby.UID) &&
		equality.Semantic.DeepEqual(s.Link.Spec.Import, link.Spec.Import)
}

// RemoveLink forgets a Link and its mirrors. It deletes nothing: Kubernetes collects what
// a deleted Link owns.
func (w *Writer) RemoveLink(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.links[name]
	if l == nil {
		return
	}
	for _, m := range l.mirrors {
		w.drop(m)
	}
	w.queue.drop(&l.linkQueue)
	l.removed = true
	delete(w.links, name)
	w.Metrics.forget(name)
}

// Set says what the mirror k of a Link is to be; nil: it is not wanted any more. It is
// SetAll for one mirror.
func (w *Writer) Set(link string, k catalog.Key, want *Want) {
	w.SetAll(link, map[catalog.Key]*Want{k: want})
}

// SetAll says what some mirrors of a Link are to be, by their names; nil: such a mirror
// is not wanted any more, and is deleted once the Link's catalog is complete. No worker
// sees a part of the change: a headless mirror and the mirrors of its named pods must be
// set in one call, or the headless one would not list them for a moment. Unknown Links
// are ignored.
func (w *Writer) SetAll(link string, wants map[catalog.Key]*Want) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.links[link]
	if l == nil {
		return
	}
	for k, want := range wants {
		w.set(l, k, want)
	}
}

func (w *Writer) set(l *linkState, k catalog.Key, want *Want) {
	m := l.mirrors[k]
	if m == nil {
		if want == nil {
			return
		}
		m = w.add(l, k)
	}
	if m.want.sameMirror(want) {
		return
	}
	l.account(m, -1)
	w.leaveGroup(m)
	m.want, m.pending, m.visited = want, want != nil, false
	w.joinGroup(m)
	l.account(m, +1)
	w.enqueue(m)
	w.changed(l)
}

// Touch says that an object of a mirror has changed in the cache; see KeysOf. An empty
// link stands for all Links that have a mirror of that name, and a key without a name for
// all mirrors in the namespace. Keys that concern no mirror are ignored.
func (w *Writer) Touch(link string, k catalog.Key) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if k.Name == "" {
		for _, ms := range w.byName[k.Namespace] {
			for _, m := range ms {
				w.enqueue(m)
			}
		}
		return
	}
	if link == "" {
		for _, m := range w.byName[k.Namespace][k.Name] {
			w.enqueue(m)
		}
		return
	}
	if l := w.links[link]; l != nil {
		m := l.mirrors[k]
		if m == nil { // an object of the Link that is not wanted
			m = w.add(l, k)
		}
		w.enqueue(m)
	}
}

// SetComplete says whether the Link's wants are everything that its peer exports. Only
// then mirrors that are not wanted are deleted.
func (w *Writer) SetComplete(link string, complete bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.links[link]
	if l == nil || l.complete == complete {
		return
	}
	l.complete = complete
	s := *l.scope
	s.Complete = complete || !s.Rules.Imports()
	l.scope = &s
	l.pace()
	for _, m := range l.mirrors {
		if m.want == nil {
			w.enqueue(m)
		}
	}
	w.changed(l)
}

// Run handles mirrors until ctx ends, and returns nil after the last worker has returned.
// It must be called once.
func (w *Writer) Run(ctx context.Context) error {
	var workers sync.WaitGroup
	defer workers.Wait()
	resync := time.NewTicker(resyncInterval)
	defer resync.Stop()
	for {
		wait := w.dispatch(ctx, &workers)
		wait = sooner(wait, w.notify(time.Now()))
		var timer <-chan time.Time
		if wait > 0 {
			timer = time.After(wait)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-w.wake:
		case <-timer:
		case <-resync.C:
			w.resyncSome(time.Now())
		}
	}
}

// dispatch starts workers for what can be handled now. It returns after how long there
// may be more though nothing happens; 0: never.
func (w *Writer) dispatch(ctx context.Context, workers *sync.WaitGroup) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	var due time.Duration
	for {
		m, left := w.queue.delayed.next(now)
		if m == nil {
			due = left
			break
		}
		w.enqueue(m)
	}
	for {
		j, wait := w.nextJob(now)
		if j == nil {
			return sooner(due, wait)
		}
		workers.Go(func() { w.work(ctx, j) })
	}
}

// nextJob takes the next job from the queue. If there is none, wait is when to ask again;
// 0: when something has happened.
func (w *Writer) nextJob(now time.Time) (j *job, wait time.Duration) {
	l, m, wait := w.queue.pop(now)
	switch {
	case l == nil:
		return nil, wait
	case m == nil:
		return &job{link: l.owner, scope: l.owner.scope}, 0
	}
	m.link.report.showQueue(l.queued)
	return w.newJob(m), 0
}

// add makes the state of a mirror of which nothing is known yet.
func (w *Writer) add(l *linkState, k catalog.Key) *mirrorState {
	m := &mirrorState{link: l, key: k}
	l.mirrors[k] = m
	l.resync.order = append(l.resync.order, m)
	names := w.byName[k.Namespace]
	if names == nil {
		names = make(map[string][]*mirrorState)
		w.byName[k.Namespace] = names
	}
	names[k.Name] = append(names[k.Name], m)
	return m
}

// drop forgets a mirror.
func (w *Writer) drop(m *mirrorState) {
	l := m.link
	l.account(m, -1)
	w.leaveGroup(m)
	w.queue.remove(&l.linkQueue, m)
	delete(l.mirrors, m.key)
	names := w.byName[m.key.Namespace]
	names[m.key.Name] = slices.DeleteFunc(names[m.key.Name], func(x *mirrorState) bool { return x == m })
	if len(names[m.key.Name]) == 0 {
		delete(names, m.key.Name)
	}
	if len(names) == 0 {
		delete(w.byName, m.key.Namespace)
	}
}

// enqueue queues a mirror in the lane that its state asks for.
func (w *Writer) enqueue(m *mirrorState) { w.enqueueIn(m, m.properLane()) }

func (m *mirrorState) properLane() lane {
	switch {
	case m.want == nil:
		return deleteLane
	case m.standing:
		return repairLane
	}
	return createLane
}

func (w *Writer) enqueueIn(m *mirrorState, to lane) {
	w.queue.push(&m.link.linkQueue, m, to, time.Now())
	m.link.report.showQueue(m.link.queued)
	if w.queue.running < w.Options.Workers { // busy workers look for themselves
		w.signal()
	}
}

// enqueueAfter queues a mirror after a time, unless something happens to it before.
func (w *Writer) enqueueAfter(m *mirrorState, wait time.Duration, now time.Time) {
	w.queue.delayed.set(m, now.Add(wait))
	if m.place == 0 { // the dispatcher waits for another
		w.signal()
	}
}

// signal makes the dispatcher look again.
func (w *Writer) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// joinGroup adds m to the headless mirror that it is or belongs to, which then has
// another list to show.
func (w *Writer) joinGroup(m *mirrorState) {
	if m.want == nil || !m.want.isHeadlessParent() && m.want.Entry.Hostname == "" {
		return
	}
	source := m.want.source()
	g := m.link.groups[source]
	if g == nil {
		g = &headlessGroup{companions: make(map[catalog.Key]*mirrorState)}
		m.link.groups[source] = g
	}
	if m.want.isHeadlessParent() {
		g.parent = m
		return
	}
	g.companions[m.key] = m
	w.refreshParent(m)
}

// leaveGroup is the reverse of joinGroup.
func (w *Writer) leaveGroup(m *mirrorState) {
	if m.want == nil {
		return
	}
	source := m.want.source()
	g := m.link.groups[source]
	if g == nil {
		return
	}
	if g.parent == m {
		g.parent = nil
	}
	if g.companions[m.key] == m {
		delete(g.companions, m.key)
		w.refreshParent(m)
	}
	if g.parent == nil && len(g.companions) == 0 {
		delete(m.link.groups, source)
	}
}

// refreshParent queues the headless mirror that lists m.
func (w *Writer) refreshParent(m *mirrorState) {
	if m.want == nil || m.want.Entry.Hostname == "" {
		return
	}
	if g := m.link.groups[m.want.source()]; g != nil && g.parent != nil {
		w.enqueue(g.parent)
	}
}
