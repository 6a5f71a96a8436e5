package serviceexport

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/throttle"
)

const (
	// requestsPerSecond bounds the rate of a Writer's requests. 10,000 new ServiceExports
	// need a read and a write each, which takes about 7 minutes.
	requestsPerSecond = 50
	// objectPause is the shortest time between two reads of one object, and between two
	// writes of it.
	objectPause = 5 * time.Second
	// debounceDelay is how long a change waits for further changes of the same object.
	// For example, most exports are stored shortly after they were admitted.
	debounceDelay = 500 * time.Millisecond
	// pageSize is the number of objects in a page of a list. Only one page of whole
	// objects is in memory at a time.
	pageSize = 250
	// requestTimeout bounds the duration of one request.
	requestTimeout = 10 * time.Second
	// minRetry is the shortest delay after a failure. The backoff is added to it.
	minRetry = 500 * time.Millisecond
	// maxObjectPause is the longest pause of an object whose requests the API server
	// denies.
	maxObjectPause = time.Minute
	// deniedPause is the pause of all requests after a denied request, if more than
	// deniedInRow requests were denied since the last success.
	deniedPause = 100 * time.Millisecond
	deniedInRow = 5
)

// API is the part of a client of the API server that a Writer uses. Its reads must not
// come from a cache.
type API interface {
	client.Reader
	client.StatusClient
}

// Config is what a Writer needs. All fields are required.
type Config struct {
	API API
	// Budget is the request budget of the mirrors. Mirrors have priority, so the Writer
	// makes no request while the budget is used up.
	Budget  *throttle.Limiter
	Metrics *Metrics
	Log     *slog.Logger
}

// Writer writes the conditions of the ServiceExports that it has received by Set. Its
// methods are safe for concurrent use, and only Run blocks.
type Writer struct {
	c     Config
	limit *throttle.Limiter
	wake  chan struct{} // has a buffer of one

	mu   sync.Mutex              // guards the fields from kind to queue
	kind schema.GroupVersionKind // the version that Serve has set
	// term is incremented whenever Serve sets another version. What was read in an
	// earlier term is not used any more.
	term    int
	objects map[catalog.Key]*object
	queue   []queued // sorted by due

	// Only the goroutine of Run uses the fields below.

	// listedTerm is the last term whose list of all objects is complete. listingTerm is
	// the term of the last list that was begun. continueToken names the next page of that
	// list.
	listedTerm, listingTerm int
	continueToken           string
	retry                   backoff.Backoff
	retryAt                 time.Time // no request is made before
	// failing means that a failure was logged, and that no list and no write has
	// succeeded since. A read of one object does not count, because it succeeds even if
	// the controller has no right to write.
	failing bool
	denied  int // number of denied requests since the last success
}

// object is what a Writer keeps of a ServiceExport.
type object struct {
	meta        *metav1.PartialObjectMetadata // shared with the cache
	facts       Facts
	due         time.Time // of its entry in the queue; zero if it is not queued
	pausedUntil time.Time // no request is made for it before

	term    int    // the term in which it was last read; 0 if it was not read yet
	version string // the resourceVersion that stored belongs to
	stored  stored
	// refused means that the API server refused our conditions. The Writer does not apply
	// conditions again until the object changes.
	refused bool
	// denied is the number of denied requests for the object since the last success.
	denied int
}

// queued is an entry of the queue. It names an object that may need a request. The entry
// is ignored if its due differs from that of the object.
type queued struct {
	due time.Time
	key catalog.Key
}

// NewWriter returns a Writer that makes no requests until Serve sets a version.
func NewWriter(c Config) *Writer {
	return &Writer{
		c:       c,
		limit:   throttle.New(requestsPerSecond, nil),
		wake:    make(chan struct{}, 1),
		objects: make(map[catalog.Key]*object),
		retry:   backoff.Backoff{Min: time.Second, Max: time.Minute},
	}
}

// Serve sets the version in which the Writer writes conditions. With the zero value it
// writes none. Call Set for all ServiceExports before the first call of Serve, because
// the Writer's list covers only the objects that it has.
func (w *Writer) Serve(kind schema.GroupVersionKind) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if kind == w.kind {
		return
	}
	w.kind = kind
	w.term++
	now := time.Now()
	for key, o := range w.objects {
		w.push(key, o, now)
	}
	w.notify()
}

// Set sets the newest metadata and the Facts of a ServiceExport.
func (w *Writer) Set(key catalog.Key, meta *metav1.PartialObjectMetadata, facts Facts) {
	w.mu.Lock()
	defer w.mu.Unlock()
	o := w.objects[key]
	if o == nil || o.meta.UID != meta.UID {
		o = &object{}
		w.objects[key] = o
	}
	o.meta, o.facts = meta, facts
	w.push(key, o, time.Now())
	w.notify()
}

// Remove makes the Writer forget a ServiceExport that does not exist any more.
func (w *Writer) Remove(key catalog.Key) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.objects, key)
}

func (w *Writer) notify() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// push puts an object into the queue, unless it is there already. While no version is
// served it does nothing, because Serve pushes all objects. The caller holds the lock.
func (w *Writer) push(key catalog.Key, o *object, now time.Time) {
	if !o.due.IsZero() || w.kind.Empty() {
		return
	}
	if len(w.queue) > 2*len(w.objects)+pageSize { // most entries are of removed objects
		w.queue = slices.DeleteFunc(w.queue, func(q queued) bool {
			o := w.objects[q.key]
			return o == nil || !o.due.Equal(q.due)
		})
	}
	due := now.Add(debounceDelay)
	if due.Before(o.pausedUntil) {
		due = o.pausedUntil
	}
	o.due = due
	i, _ := slices.BinarySearchFunc(w.queue, due, func(q queued, due time.Time) int {
		if q.due.After(due) {
			return 1
		}
		return -1 // insert after entries that are due at the same time
	})
	w.queue = slices.Insert(w.queue, i, queued{due, key})
}

// Run makes the requests, one at a time, until ctx ends.
func (w *Writer) Run(ctx context.Context) {
	for ctx.Err() == nil {
		wait, idle := w.step(ctx, time.Now())
		var due <-chan time.Time
		if !idle {
			due = time.After(wait)
		}
		select {
		case <-ctx.Done():
		case <-w.wake:
		case <-due:
		}
	}
}

// step makes one request, or reads an object and then writes its conditions. It returns
// how long to wait before the next step. If idle is true, there is nothing to do before
// the next call of Set or Serve.
func (w *Writer) step(ctx context.Context, now time.Time) (wait time.Duration, idle bool) {
	if wait := w.retryAt.Sub(now); wait > 0 {
		return wait, false
	}
	do, wait := w.next(now)
	if do == nil {
		return wait, wait == 0
	}
	if wait := max(w.limit.Wait(now), w.c.Budget.Wait(now)); wait > 0 {
		return wait, false
	}
	err := do(ctx)
	switch {
	case err == nil:
		w.retryAt, w.denied = time.Time{}, 0
		w.retry.Reset()
	case ctx.Err() != nil:
	case concernsObject(err): // the object has a separate pause
		w.log(err)
		if w.denied++; w.denied > deniedInRow {
			w.retryAt = time.Now().Add(deniedPause)
		}
	default:
		w.log(err)
		w.retryAt = time.Now().Add(minRetry + w.retry.Next())
	}
	return 0, false
}

// concernsObject reports whether the API server denied a request for a reason that may
// concern only its object, such as an admission policy of one namespace. Other failures
// have the same cause for all objects.
func concernsObject(err error) bool {
	switch apierrors.ReasonForError(err) {
	case metav1.StatusReasonForbidden, metav1.StatusReasonInternalError:
		return true
	}
	return false
}

// log logs a failure. The first failure of an outage is a warning.
func (w *Writer) log(err error) {
	level := slog.LevelWarn
	if w.failing {
		level = slog.LevelDebug
	}
	w.failing = true
	w.c.Log.Log(context.Background(), level, "cannot write conditions of ServiceExports, retrying",
		"error", err)
}

// next returns the function that makes the next request. If it returns nil, nothing is
// due now: the next object is due after wait, or there is nothing to do if wait is 0.
func (w *Writer) next(now time.Time) (do func(context.Context) error, wait time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.kind.Empty() {
		return nil, 0
	}
	if w.listedTerm != w.term {
		kind, term := w.kind, w.term
		return func(ctx context.Context) error { return w.list(ctx, kind, term) }, 0
	}
	for len(w.queue) > 0 {
		head := w.queue[0]
		if wait := head.due.Sub(now); wait > 0 {
			return nil, wait
		}
		if o := w.objects[head.key]; o != nil && o.due.Equal(head.due) {
			if read := w.needsRead(o); read || w.needsWrite(o, now) {
				return func(ctx context.Context) error { return w.reconcile(ctx, head.key, read) }, 0
			}
			o.due = time.Time{}
		}
		w.queue = w.queue[1:]
	}
	w.queue = nil
	return nil, 0
}

// needsRead reports whether an object was not read in this term, or has changed since.
func (w *Writer) needsRead(o *object) bool {
	return o.term != w.term || o.version != o.meta.ResourceVersion
}

// needsWrite reports whether the stored conditions of an object have to be written.
func (w *Writer) needsWrite(o *object, now time.Time) bool {
	if o.refused {
		return false
	}
	_, needed := plan(o.facts.conditions(w.kind), o.stored, o.meta.Generation, now)
	return needed
}
