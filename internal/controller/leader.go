package controller

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/clusterid"
	"github.com/causeway-mesh/causeway/internal/joinflow"
	"github.com/causeway-mesh/causeway/internal/ledger"
	"github.com/causeway-mesh/causeway/internal/link"
	"github.com/causeway-mesh/causeway/internal/mirror"
	"github.com/causeway-mesh/causeway/internal/serviceexport"
)

// leader is everything that writes to the API server, apart from this cluster's identity
// and what is learned of peers. Its methods are called from the reconciler's goroutine
// and return at once; the work is done by tasks that it owns.
type leader struct {
	client   client.Client // reads from the cache
	live     client.Client
	identity *clusterid.Identity
	events   events.EventRecorder
	writer   *mirror.Writer
	// conditions writes the conditions of ServiceExports.
	conditions *serviceexport.Writer
	// routes writes the statuses of Gateway API routes.
	routes *routeStatuses
	joiner *joinflow.Joiner
	o      Options
	ranges []netip.Prefix
	inbox  *inbox
	log    *slog.Logger

	tasks        tasks
	started      bool
	ledgerRead   bool // the book holds a live list of Ledgers
	statuses     map[string]*statusTask
	housekeeping *task
	limits       eventLimits
}

// statusTask writes one Link's status.
type statusTask struct {
	*task
	limit *rate.Limiter
	due   time.Time // when the newest of the changes is written at the latest
	// countsDue is when a status that differs only in counts is written. It is zero if
	// there is no such status. Only the task's goroutine uses it.
	countsDue time.Time
}

// How often a Link's status is written: a peer that changes all the time must not make
// us write all the time.
const (
	statusBurst = 10
	statusPause = 2 * time.Second
	// statusDelay is how long a change waits for another one that reverses it: a new
	// leader must not report mirrors as pending that only have to be looked at.
	statusDelay = 250 * time.Millisecond
	// countsInterval is the least time between two writes of a Link's status that change
	// only counts. It is long because one new export changes a count of every Link that
	// admits it.
	countsInterval = 30 * time.Second
)

// nextCounts returns the next time after now at which a status of a Link may be written
// if only counts differ. It is at most countsInterval after now. Each Link has a fixed
// offset within countsInterval, so that the Links do not all write at the same time.
func nextCounts(link string, now time.Time) time.Time {
	h := fnv.New64a()
	h.Write([]byte(link)) // never fails
	offset := time.Duration(h.Sum64() % uint64(countsInterval))
	next := now.Truncate(countsInterval).Add(offset)
	if !next.After(now) {
		next = next.Add(countsInterval)
	}
	return next
}

// start begins to lead. The mirror writer runs from now on, and the ledger is read live,
// because the cache may lag behind what an earlier leader wrote.
func (l *leader) start(ctx context.Context) {
	if l.started {
		return
	}
	l.started = true
	l.statuses = make(map[string]*statusTask)
	l.housekeeping = l.tasks.start(ctx, l.log)
	l.routes.task = l.tasks.start(ctx, l.log)
	l.tasks.running.Go(func() { l.writer.Run(ctx) })
	l.tasks.running.Go(func() { l.conditions.Run(ctx) })
	l.tasks.running.Go(func() { l.readLedger(ctx) })
}

// wait waits for everything that start began.
func (l *leader) wait() {
	l.tasks.running.Wait()
	l.joiner.Wait()
}

// readLedger lists the Ledgers live and hands them to the reconciler.
func (l *leader) readLedger(ctx context.Context) {
	t := l.tasks.start(ctx, l.log)
	t.set(func(ctx context.Context, _ int) (time.Duration, error) {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		var list v1alpha1.LedgerList
		if err := l.live.List(ctx, &list, client.InNamespace(l.o.Namespace)); err != nil {
			return 0, fmt.Errorf("list Ledgers: %w", err)
		}
		l.inbox.add(func(b *batch) { b.ledgerList = list.Items; b.ledgerListed = true })
		t.cancel()
		return 0, nil
	})
}

// store writes one object of the ledger and hands the result to the reconciler.
func (l *leader) store(ctx context.Context, w ledger.Write) {
	l.tasks.running.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		object := w.Object.DeepCopy()
		object.Namespace = l.o.Namespace
		var err error
		if object.ResourceVersion == "" {
			err = l.live.Create(ctx, object)
		} else {
			err = l.live.Update(ctx, object)
		}
		if err == nil && len(object.Data) == 0 && len(w.Object.Data) > 0 {
			err = errOldCRDs
		}
		l.inbox.add(func(b *batch) { b.stored = append(b.stored, storeResult{w, object, err}) })
	})
}

// errOldCRDs reports that the API server dropped fields that this version writes.
var errOldCRDs = errors.New("the API server dropped fields: the CustomResourceDefinitions are older than " +
	"this controller, run `causeway install`")

// emit emits Events, as far as their rate allows.
func (l *leader) emit(all []event, now time.Time) {
	for _, e := range all {
		if l.limits.allow(e, now) {
			l.events.Eventf(e.about, e.related, corev1.EventTypeWarning, e.reason, e.action, "%s", e.message)
		}
	}
}

// eventLimits bounds Events per object's namespace or Link: a tenant or a peer must not
// fill the API server with them.
type eventLimits struct{ byOwner map[string]*rate.Limiter }

const (
	eventBurst   = 32
	eventPause   = 10 * time.Second
	maxEventKeys = 4096
)

func (l *eventLimits) allow(e event, now time.Time) bool {
	if l.byOwner == nil || len(l.byOwner) > maxEventKeys {
		l.byOwner = make(map[string]*rate.Limiter)
	}
	limit := l.byOwner[e.owner]
	if limit == nil {
		limit = rate.NewLimiter(rate.Every(eventPause), eventBurst)
		l.byOwner[e.owner] = limit
	}
	return limit.AllowN(now, 1)
}

// applyMirrors passes the decisions of a plan to the mirror writer. A catalog is complete
// only once the writer has all wants of the plan: it deletes what is not wanted then.
func (l *leader) applyMirrors(p *plan) {
	for _, c := range p.links {
		if c.link == nil {
			l.writer.RemoveLink(c.name)
			continue
		}
		l.writer.SetLink(c.link, c.standby)
	}
	// A headless mirror and those of its named pods go in one call, or the list would
	// shrink for a moment.
	wants := make(map[string]map[catalog.Key]*mirror.Want)
	for _, m := range p.mirrors { // of several changes of a mirror the last one counts
		if wants[m.link] == nil {
			wants[m.link] = make(map[catalog.Key]*mirror.Want)
		}
		wants[m.link][m.key] = m.want
	}
	for link, all := range wants {
		l.writer.SetAll(link, all)
	}
	for _, c := range p.links {
		if c.link != nil {
			l.writer.SetComplete(c.name, c.complete)
		}
	}
}

// A statusJob is the content of a Link's next status.
type statusJob struct {
	link     *v1alpha1.Link
	observed link.Observed
	// exported are problems of exports: their Events are at the Services.
	exported []catalog.Problem
	// due is when observed may be written, if the Link has a status already; zero: at
	// once.
	due time.Time
}

// writeStatus writes what was observed into the status of a Link.
func (l *leader) writeStatus(ctx context.Context, name string, j statusJob) {
	t := l.statuses[name]
	if t == nil {
		t = &statusTask{
			task:  l.tasks.start(ctx, l.log.With("link", name)),
			limit: rate.NewLimiter(rate.Every(statusPause), statusBurst),
		}
		l.statuses[name] = t
	}
	if now := time.Now(); now.After(t.due) {
		t.due = now.Add(statusDelay)
	}
	if j.due.Before(t.due) {
		j.due = t.due
	}
	t.set(func(ctx context.Context, _ int) (time.Duration, error) {
		if wait := time.Until(j.due); wait > 0 && len(j.link.Status.Conditions) > 0 {
			return wait, nil
		}
		return l.updateStatus(ctx, &j, t)
	})
}

// updateStatus writes the status if it differs. It returns after how long to try again if
// the status must not be written yet, and 0 otherwise.
func (l *leader) updateStatus(ctx context.Context, j *statusJob, t *statusTask) (time.Duration, error) {
	now := time.Now()
	status, difference := link.Status(j.link, j.observed, now)
	if difference != link.CountsOnly {
		t.countsDue = time.Time{}
	} else if t.countsDue.IsZero() {
		t.countsDue = nextCounts(j.link.Name, now)
	}
	if difference == link.Unchanged {
		return 0, nil
	}
	if wait := t.countsDue.Sub(now); wait > 0 {
		return wait, nil
	}
	if !t.limit.Allow() {
		return statusPause, nil
	}
	updated := j.link.DeepCopy()
	updated.Status = status
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := l.client.Status().Update(ctx, updated); err != nil {
		return 0, client.IgnoreNotFound(err)
	}
	before := j.link
	j.link = updated // the cache may not show it yet
	t.countsDue = time.Time{}
	l.inbox.add(func(b *batch) {
		b.calls = append(b.calls, func() {
			l.emit(statusEvents(before, status.Problems, j.exported),
				time.Now())
		})
	})
	return 0, nil
}

// statusEvents are Events of the problems that are new in a status, apart from those of
// exports.
func statusEvents(l *v1alpha1.Link, now []v1alpha1.ServiceProblem, exported []catalog.Problem) []event {
	var out []event
	for _, p := range now {
		if p.Reason == link.More || slices.Contains(l.Status.Problems, p) || slices.Contains(exported, p) {
			continue
		}
		note := p.Message
		if p.Service != "" {
			note = p.Service + ": " + note
		}
		out = append(out, event{
			about:   l,
			related: serviceOf(p),
			owner:   l.Name,
			reason:  p.Reason,
			action:  "Mirroring",
			message: note,
		})
	}
	return out
}

// serviceOf is the Service that a problem is about, so that Events of two Services do not
// become one; nil if it is about the whole Link.
func serviceOf(p v1alpha1.ServiceProblem) runtime.Object {
	namespace, name, ok := strings.Cut(p.Service, "/")
	if !ok {
		return nil
	}
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
}

// forgetLinks ends the status tasks of Links that are gone.
func (l *leader) forgetLinks(links map[string]*v1alpha1.Link) {
	for name, t := range l.statuses {
		if links[name] == nil {
			t.cancel()
			delete(l.statuses, name)
		}
	}
}

// rereadInterval is how often the published identity, which is not in the cache, is
// checked.
const rereadInterval = time.Minute

// chores are what the leader keeps in order beside the Links.
type chores struct {
	gateways []string
	canary   *corev1.Service
	// obsolete are what was learned of peers whose Link is gone.
	obsolete []*v1alpha1.PeerTrust
	invites  []*v1alpha1.Invite
	joins    []*v1alpha1.Join
}

// keep runs the chores now and every rereadInterval.
func (l *leader) keep(c chores) {
	l.housekeeping.set(func(ctx context.Context, _ int) (time.Duration, error) {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		errs := []error{
			l.identity.Publish(ctx, l.client, c.gateways),
			l.keepCanary(ctx, c.canary),
			joinflow.Maintain(ctx, l.client, c.invites, c.joins, time.Now()),
		}
		for _, t := range c.obsolete {
			errs = append(errs, l.forgetTrust(ctx, t))
		}
		return rereadInterval, errors.Join(errs...)
	})
}

// forgetTrust deletes what was learned of a peer, if a live read confirms that its Link
// is gone: the cache may not show a new one yet.
func (l *leader) forgetTrust(ctx context.Context, t *v1alpha1.PeerTrust) error {
	var found v1alpha1.Link
	err := l.live.Get(ctx, client.ObjectKey{Name: t.Name}, &found)
	if err == nil {
		return nil
	}
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("get Link %s: %w", t.Name, err)
	}
	err = l.client.Delete(ctx, t.DeepCopy(), client.Preconditions{
		UID:             &t.UID,
		ResourceVersion: &t.ResourceVersion,
	})
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("delete PeerTrust %s: %w", t.Name, err)
	}
	return nil
}

// sortedObjects returns the values of m in the order of their keys.
func sortedObjects[T any](m map[catalog.Key]*T) []*T {
	out := make([]*T, 0, len(m))
	for _, k := range slices.SortedFunc(maps.Keys(m), catalog.Key.Compare) {
		out = append(out, m[k])
	}
	return out
}
