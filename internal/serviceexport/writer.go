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
	// requestsPerSecond bounds the requests of a Writer. 10,000 new ServiceExports take
	// about 7 minutes.
	requestsPerSecond = 50
	// objectPause is the shortest time between two reads and between two writes of one
	// object.
	objectPause = 5 * time.Second
	// settleDelay is how long a change waits for another one that follows from it: most
	// exports are stored a moment after they were admitted.
	settleDelay = 500 * time.Millisecond
	// pageSize is the number of objects that are in memory as a whole at one time.
	pageSize = 250
	// requestTimeout bounds one request.
	requestTimeout = 10 * time.Second
	// minRetry is the shortest pause after a failure.
	minRetry = 500 * time.Millisecond
	// maxObjectPause bounds the pause of an object whose requests the API server denies.
	maxObjectPause = time.Minute
	// deniedPause is the pause of all requests after one that the API server denied, and
	// none succeeded for deniedInRow requests.
	deniedPause = 100 * time.Millisecond
	deniedInRow = 5
)

// API is the part of the API server that a Writer uses. Its reads must not be cached.
type API interface {
	client.Reader
	client.StatusClient
}

// Config is what a Writer needs. All fields are required.
type Config struct {
	API API
	// Budget is the budget of the mirrors, which have priority: the Writer does nothing
	// while it is used up.
	Budget  *throttle.Limiter
	Metrics *Metrics
	Log     *slog.Logger
}

// Writer writes the conditions of the ServiceExports that are set. Its methods are safe
// for concurrent use, and only Run blocks.
type Writer struct {
	c     Config
	limit *throttle.Limiter
	wake  chan struct{} // holds one

	mu   sync.Mutex // guards what follows
	kind schema.GroupVersionKind
	// term counts the versions that were served: what was read in another one is void.
	term    int
	objects map[catalog.Key]*object
	queue   []queued // sorted by due

	// These belong to the goroutine of Run. Of the term listed all objects were listed.
	// page is where the list of listing continues.
	listed, listing int
	page            string
	retry           backoff.Backoff
	retryAt         time.Time
	// failing means that a failure was logged and no list or write has succeeded since.
	// A read of one object does not count: reads succeed where the right to write lacks.
	failing bool
	denied  int // requests since the last success
}

// object is what a Writer keeps of a ServiceExport.
type object struct {
	meta  *metav1.PartialObjectMetadata // shared with the cache
	facts Facts
	due   time.Time // of its element of the queue; zero: it is not queued
	pause time.Time // no request before

	term    int    // in which it was read; 0: never
	version string // the resourceVersion of stored
	stored  stored
	// left means that the API server refused to take our conditions. They are not
	// written until the object changes.
	left bool
	// denied counts the failed requests since the last success.
	denied int
}

// queued is an object that may need a request. It is void if the object has another due.
type queued struct {
	due time.Time
	key catalog.Key
}

// NewWriter returns a Writer that does nothing until a version is served.
func NewWriter(c Config) *Writer {
	return &Writer{
		c:       c,
		limit:   throttle.New(requestsPerSecond, nil),
		wake:    make(chan struct{}, 1),
		objects: make(map[catalog.Key]*object),
		retry:   backoff.Backoff{Min: time.Second, Max: time.Minute},
	}
}

// Serve sets the version in which conditions are written; the zero value: none is
// written. The first call is made after Set was called for all ServiceExports.
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

// Set sets the newest metadata of a ServiceExport and what its conditions follow from.
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

// Remove forgets a ServiceExport that does not exist any more.
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

// push puts an object into the queue, unless no version is served: Serve then does. The
// caller holds the lock.
func (w *Writer) push(key catalog.Key, o *object, now time.Time) {
	if !o.due.IsZero() || w.kind.Empty() {
		return
	}
	if len(w.queue) > 2*len(w.objects)+pageSize { // most are of objects that were removed
		w.queue = slices.DeleteFunc(w.queue, func(q queued) bool {
			o := w.objects[q.key]
			return o == nil || !o.due.Equal(q.due)
		})
	}
	due := now.Add(settleDelay)
	if due.Before(o.pause) {
		due = o.pause
	}
	o.due = due
	i, _ := slices.BinarySearchFunc(w.queue, due, func(q queued, due time.Time) int {
		if q.due.After(due) {
			return 1
		}
		return -1 // after those that are due at the same time
	})
	w.queue = slices.Insert(w.queue, i, queued{due, key})
}

// Run writes until ctx ends.
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

// step makes one request, or one read and the write that follows from it. It returns
// after how long there may be more to do; idle: only after a call of Set or Serve.
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

// concernsObject reports whether the API server denied a request, for example by an
// admission policy of one namespace. Other failures have the same cause for all objects.
func concernsObject(err error) bool {
	switch apierrors.ReasonForError(err) {
	case metav1.StatusReasonForbidden, metav1.StatusReasonInternalError:
		return true
	}
	return false
}

// log logs a failure: the first of an outage as a warning.
func (w *Writer) log(err error) {
	level := slog.LevelWarn
	if w.failing {
		level = slog.LevelDebug
	}
	w.failing = true
	w.c.Log.Log(context.Background(), level, "cannot write conditions of ServiceExports, retrying",
		"error", err)
}

// next returns what to request next; nil: nothing before wait, or at all if wait is 0.
func (w *Writer) next(now time.Time) (do func(context.Context) error, wait time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.kind.Empty() {
		return nil, 0
	}
	if w.listed != w.term {
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

// needsRead reports whether an object has changed since it was read.
func (w *Writer) needsRead(o *object) bool {
	return o.term != w.term || o.version != o.meta.ResourceVersion
}

func (w *Writer) needsWrite(o *object, now time.Time) bool {
	if o.left {
		return false
	}
	_, needed := plan(o.facts.conditions(w.kind), o.stored, o.meta.Generation, now)
	return needed
}
