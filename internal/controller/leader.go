package controller

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/link"
	"github.com/causeway-mesh/causeway/internal/mirror"
)

// leader is all that writes, but for trust and identity: the books, and a writer
// for each Link, so that one Link's trouble or back-off holds up no other.
type leader struct {
	client     client.Client
	reconciler *mirror.Reconciler
	books      *books
	own        *own
	events     events.EventRecorder
	o          Options
	log        *slog.Logger

	running sync.WaitGroup
	writers map[string]*writer // of the brain's goroutine alone
	house   *writer
	told    map[catalog.Problem]bool // export problems with an Event; of the house's goroutine alone
}

// A job is the newest that a Link's writer must make true.
type job struct {
	link    *v1alpha1.Link
	peer    mirror.Peer
	entries []v1alpha1.LedgerMirror
	seen    link.Seen
}

// house is what the leader keeps in order beside the Links.
type house struct {
	gateways []string
	exports  []catalog.Problem
	trusts   []v1alpha1.PeerTrust
	services []corev1.Service
}

// A writer does the newest of its work, again until it succeeds.
type writer struct {
	cancel context.CancelFunc
	wake   chan struct{}

	mu   sync.Mutex // guards work
	work func(context.Context) (again time.Duration, err error)
}

func (w *writer) set(work func(context.Context) (time.Duration, error)) {
	w.mu.Lock()
	w.work = work
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// run works whenever there is new work, when the last asked to be done again, and
// after errors with back-off, until ctx ends.
func (w *writer) run(ctx context.Context, log *slog.Logger) {
	waits := backoff.Backoff{Min: 200 * time.Millisecond, Max: 30 * time.Second}
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-again:
		}
		w.mu.Lock()
		work := w.work
		w.mu.Unlock()
		again = nil
		switch wait, err := work(ctx); {
		case err != nil && ctx.Err() == nil:
			if !apierrors.IsConflict(err) { // a conflict is weather
				log.Warn("writing failed and will be tried again", "error", err)
			}
			again = time.After(waits.Next() + 50*time.Millisecond)
		case wait > 0:
			waits.Reset()
			again = time.After(wait)
		default:
			waits.Reset()
		}
	}
}

func (l *leader) writer(ctx context.Context, log *slog.Logger) *writer {
	ctx, cancel := context.WithCancel(ctx)
	w := &writer{cancel: cancel, wake: make(chan struct{}, 1)}
	l.running.Go(func() { w.run(ctx, log) })
	return w
}

// offer gives every Link's writer its newest job, and ends those of Links that are gone.
func (l *leader) offer(ctx context.Context, jobs map[string]job, h house) {
	if l.writers == nil {
		l.writers = make(map[string]*writer)
		l.house = l.writer(ctx, l.log)
	}
	for name, w := range l.writers {
		if _, ok := jobs[name]; !ok {
			w.cancel()
			delete(l.writers, name)
			l.reconciler.Forget(name)
		}
	}
	for name, j := range jobs {
		w := l.writers[name]
		if w == nil {
			w = l.writer(ctx, l.log.With("link", name))
			l.writers[name] = w
		}
		w.set(func(ctx context.Context) (time.Duration, error) { return l.write(ctx, j) })
	}
	links := make(map[string]bool, len(jobs))
	for name := range jobs {
		links[name] = true
	}
	l.house.set(func(ctx context.Context) (time.Duration, error) { return 0, l.keep(ctx, h, links) })
}

// write makes one Link's mirrors and status true.
func (l *leader) write(ctx context.Context, j job) (time.Duration, error) {
	result, err := l.reconciler.Reconcile(ctx, j.link, j.peer, j.entries)
	seen := j.seen
	seen.Mirrors, seen.Pending = result.Mirrors, result.Pending
	seen.Problems = append(slices.Clone(seen.Problems), result.Problems...)
	if err != nil {
		return 0, err
	}
	status, changed := link.Status(j.link, seen, time.Now())
	if changed {
		l.tell(j.link, j.link.Status.Problems, status.Problems)
		updated := j.link.DeepCopy()
		updated.Status = status
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		if err := l.client.Status().Update(ctx, updated); err != nil && !apierrors.IsNotFound(err) {
			return 0, err
		}
	}
	return result.RecheckAfter, nil
}

// tell makes an Event of each problem that is new.
func (l *leader) tell(about runtime.Object, before, now []v1alpha1.ServiceProblem) {
	for _, p := range now {
		if !slices.Contains(before, p) {
			l.events.Eventf(about, nil, corev1.EventTypeWarning, p.Reason, "Mirroring", "%s: %s", p.Service, p.Message)
		}
	}
}

// keep keeps the published identity true, and forgets the trust of Links that are gone.
func (l *leader) keep(ctx context.Context, h house, links map[string]bool) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := l.own.publish(ctx, l.client, l.o.Namespace, l.o.ClusterName, h.gateways); err != nil {
		return err
	}
	l.tellExporters(h)
	for i := range h.trusts {
		t := &h.trusts[i]
		if !links[t.Name] {
			if err := l.client.Delete(ctx, t, client.Preconditions{UID: &t.UID, ResourceVersion: &t.ResourceVersion}); client.IgnoreNotFound(err) != nil {
				return err
			}
		}
	}
	return nil
}

// tellExporters makes an Event, at the Service, of each problem of an export that is new.
func (l *leader) tellExporters(h house) {
	now := make(map[catalog.Problem]bool, len(h.exports))
	for _, p := range h.exports {
		now[p] = true
		if l.told[p] {
			continue
		}
		key, err := catalog.ParseKey(p.Service)
		if err != nil {
			continue
		}
		for i := range h.services {
			if svc := &h.services[i]; svc.Namespace == key.Namespace && svc.Name == key.Name {
				l.events.Eventf(svc, nil, corev1.EventTypeWarning, p.Reason, "Exporting", "%s", p.Message)
			}
		}
	}
	l.told = now
}
