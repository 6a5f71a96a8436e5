package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/clusterid"
	"github.com/causeway-mesh/causeway/internal/clusterinfo"
	"github.com/causeway-mesh/causeway/internal/joinflow"
	"github.com/causeway-mesh/causeway/internal/link"
	"github.com/causeway-mesh/causeway/internal/mirror"
)

// leader is all that writes, but for trust and identity: the books, and a writer
// for each Link, so that one Link's trouble or back-off holds up no other.
type leader struct {
	client     client.Client
	reconciler *mirror.Reconciler
	books      *books
	identity   *clusterid.Identity
	events     events.EventRecorder
	o          Options
	log        *slog.Logger

	running sync.WaitGroup
	writers map[string]*writer // of the brain's goroutine alone
	joiner  *joinflow.Joiner
	house   *writer
	told    map[catalog.Problem]bool // export problems with an Event; of the house's goroutine alone
	// named are the gateways that the identity was last published with, and when, and
	// of which generation its roots were: of the house's goroutine alone.
	named          []string
	namedWhen      time.Time
	namedRoots     uint64
	expiryWarnings clusterid.ExpiryWarnings // of the house's goroutine alone
}

// reread is how often the published identity, which is not in the cache, is looked at.
const reread = time.Minute

// A job is the newest that a Link's writer must make true.
type job struct {
	link    *v1alpha1.Link
	peer    mirror.Peer
	entries []v1alpha1.LedgerMirror
	seen    link.Observed
	// exported are problems of exports: their Events are the Services'.
	exported []catalog.Problem
	// due is when seen may be said, if the Link has a status already; zero: at once.
	due time.Time
}

// house is what the leader keeps in order beside the Links.
type house struct {
	gateways []string
	exports  []catalog.Problem
	trusts   []v1alpha1.PeerTrust
	services []corev1.Service
	// serviceExports are where problems of exports without a Service are told.
	serviceExports []metav1.PartialObjectMetadata
	links          []v1alpha1.Link
	invites        []v1alpha1.Invite
	joins          []v1alpha1.Join
	expiries       []clusterid.Expiry
}

// A writer does the newest of its work, again until it succeeds.
type writer struct {
	cancel context.CancelFunc
	wake   chan struct{}
	says   *rate.Limiter // of status writes

	mu   sync.Mutex // guards work
	work work
}

// work is to be done again after a while, if it says so or fails. It is told how
// many times the writer has failed in a row.
type work func(ctx context.Context, failures int) (again time.Duration, err error)

func (w *writer) set(work work) {
	w.mu.Lock()
	w.work = work
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// breath bounds the rest that a writer takes after its work, which is as long as
// the work took.
const breath = 250 * time.Millisecond

// run works whenever there is new work, when the last asked to be done again, and
// after errors with back-off, until ctx ends.
func (w *writer) run(ctx context.Context, log *slog.Logger) {
	waits := backoff.Backoff{Min: 200 * time.Millisecond, Max: 30 * time.Second}
	failures := 0
	for again := (<-chan time.Time)(nil); ; {
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-again:
		}
		w.mu.Lock()
		work := w.work
		w.mu.Unlock()
		start := time.Now()
		wait, err := work(ctx, failures)
		took := time.Since(start)
		if err == nil {
			waits.Reset()
			failures = 0
		} else if ctx.Err() == nil {
			complain(ctx, log, err, failures)
			failures++
			wait = waits.Next() + settle
		}
		again = nil
		if wait > 0 {
			again = time.After(wait)
		}
		backoff.Sleep(ctx, min(took, breath))
	}
}

// complain logs the first of a series of failures. Write conflicts are routine and logged at
// debug level only.
func complain(ctx context.Context, log *slog.Logger, err error, failures int) {
	level := slog.LevelWarn
	if failures > 0 || apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
		level = slog.LevelDebug
	}
	log.Log(ctx, level, "write failed; will retry", "error", err)
}

func (l *leader) writer(ctx context.Context, log *slog.Logger) *writer {
	ctx, cancel := context.WithCancel(ctx)
	w := &writer{cancel: cancel, wake: make(chan struct{}, 1), says: rate.NewLimiter(rate.Every(statusPause), statusBurst)}
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
		w.set(func(ctx context.Context, failures int) (time.Duration, error) {
			return l.write(ctx, &j, failures, w.says)
		})
	}
	links := make(map[string]bool, len(jobs))
	for name := range jobs {
		links[name] = true
	}
	l.house.set(func(ctx context.Context, _ int) (time.Duration, error) { return reread, l.keep(ctx, h, links) })
}

// write makes one Link's mirrors and status true.
func (l *leader) write(ctx context.Context, j *job, failures int, says *rate.Limiter) (time.Duration, error) {
	result, err := l.reconciler.Reconcile(ctx, j.link, j.peer, j.entries)
	seen := j.seen
	seen.Standing, seen.Pending = result.Mirrors, result.Pending
	seen.Problems = slices.Concat(seen.Problems, result.Problems)
	if err != nil {
		if failures < 2 {
			return 0, err
		}
		// It goes on failing: the mirrors do not stand, and that much can be said.
		seen.Standing, seen.Pending, seen.Problems = int(j.link.Status.Mirrors), max(1, seen.Pending), j.link.Status.Problems
	}
	wait := time.Until(j.due)
	if wait <= 0 || len(j.link.Status.Conditions) == 0 {
		later, serr := l.say(ctx, j, seen, says)
		if result.RecheckAfter > 0 && (later == 0 || result.RecheckAfter < later) {
			later = result.RecheckAfter
		}
		return later, errors.Join(err, serr)
	}
	if result.RecheckAfter > 0 {
		wait = min(wait, result.RecheckAfter)
	}
	return wait, err
}

// How often a Link's status is written: a peer whose word changes all the time
// must not make us write all the time.
const (
	statusBurst = 10
	statusPause = 2 * time.Second
)

// say writes the Link's status, if it differs, and tells of what is new in it. It
// returns after how long to try again if it has written too often; 0: no need.
func (l *leader) say(ctx context.Context, j *job, seen link.Observed, says *rate.Limiter) (time.Duration, error) {
	status, changed := link.Status(j.link, seen, time.Now())
	if !changed {
		return 0, nil
	}
	if !says.Allow() {
		return statusPause, nil
	}
	updated := j.link.DeepCopy()
	updated.Status = status
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := l.client.Status().Update(ctx, updated); err != nil {
		return 0, client.IgnoreNotFound(err)
	}
	l.tell(j, status.Problems)
	j.link = updated // the cache may not show it yet
	return 0, nil
}

// tell makes an Event of each problem that is new, but those of exports.
func (l *leader) tell(j *job, now []v1alpha1.ServiceProblem) {
	for _, p := range now {
		if p.Reason == link.More || slices.Contains(j.link.Status.Problems, p) || slices.Contains(j.exported, p) {
			continue
		}
		note := p.Message
		if p.Service != "" { // otherwise it is of the whole Link, as a quota is
			note = p.Service + ": " + note
		}
		l.events.Eventf(j.link, serviceOf(p), corev1.EventTypeWarning, p.Reason, "Mirroring", "%s", note)
	}
}

// serviceOf is what a problem is about, so that Events of two do not become one.
func serviceOf(p v1alpha1.ServiceProblem) runtime.Object {
	namespace, name, ok := strings.Cut(p.Service, "/")
	if !ok {
		return nil
	}
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
}

// keep keeps the published identity true, and forgets the trust of Links that are gone.
func (l *leader) keep(ctx context.Context, h house, links map[string]bool) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	l.tellExporters(h)
	l.warnOfExpiries(h, time.Now())
	errs := []error{l.identify(ctx, h.gateways), l.keepCanary(ctx, h.services), joinflow.Maintain(ctx, l.client, pointers(h.invites), pointers(h.joins), time.Now())}
	for i := range h.trusts {
		t := &h.trusts[i]
		if !links[t.Name] {
			err := l.client.Delete(ctx, t, client.Preconditions{UID: &t.UID, ResourceVersion: &t.ResourceVersion})
			if client.IgnoreNotFound(err) != nil {
				errs = append(errs, fmt.Errorf("forget the issuers of %s: %w", t.Name, err))
			}
		}
	}
	return errors.Join(errs...)
}

// identify publishes the identity if that is due.
func (l *leader) identify(ctx context.Context, gateways []string) error {
	roots := l.identity.Issuers().RootGeneration()
	if slices.Equal(gateways, l.named) && time.Since(l.namedWhen) < reread && roots == l.namedRoots {
		return nil
	}
	if err := l.identity.Publish(ctx, l.client, gateways); err != nil {
		return err
	}
	l.named, l.namedWhen, l.namedRoots = gateways, time.Now(), roots
	return nil
}

// warnOfExpiries emits an Event, once a day, for each certificate that ends soon.
func (l *leader) warnOfExpiries(h house, now time.Time) {
	for _, e := range l.expiryWarnings.Due(h.expiries, now) {
		about := h.certificateOwner(e, l.o.Namespace)
		if about == nil {
			continue
		}
		l.log.Warn("certificate ends soon", "certificate", e.Kind, "link", e.Link, "notAfter", e.NotAfter)
		l.events.Eventf(about, nil, corev1.EventTypeWarning, clusterid.CertificateEndsSoon, "Rotating", "%s", e.Warning(now))
	}
}

// certificateOwner is the object that an Event about e names: the Link, or the ConfigMap with
// this cluster's identity. It is nil if the Link is gone.
func (h *house) certificateOwner(e clusterid.Expiry, namespace string) runtime.Object {
	if e.Link == "" {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: clusterinfo.IdentityConfigMap}}
	}
	for i := range h.links {
		if h.links[i].Name == e.Link {
			return &h.links[i]
		}
	}
	return nil
}

// tellExporters makes an Event, at the Service or its ServiceExport, of each problem of an export that
// is new. What a Link's status says already was told by an earlier leader.
func (l *leader) tellExporters(h house) {
	if l.told == nil {
		l.told = make(map[catalog.Problem]bool)
		for i := range h.links {
			for _, p := range h.links[i].Status.Problems {
				l.told[p] = true
			}
		}
	}
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
		if about := h.exporter(key, p.Reason); about != nil {
			l.events.Eventf(about, nil, corev1.EventTypeWarning, p.Reason, "Exporting", "%s", p.Message)
		}
	}
	l.told = now
}

// exporter is the object in which a person asked for an export; nil: it is gone meanwhile.
func (h *house) exporter(key catalog.Key, reason string) runtime.Object {
	if reason == catalog.ServiceMissing {
		for i := range h.serviceExports {
			if x := &h.serviceExports[i]; x.Namespace == key.Namespace && x.Name == key.Name {
				about := x.DeepCopy()
				about.SetGroupVersionKind(catalog.ServiceExportKind) // a list does not say it of each
				return about
			}
		}
		return nil
	}
	for i := range h.services {
		if svc := &h.services[i]; svc.Namespace == key.Namespace && svc.Name == key.Name {
			return svc
		}
	}
	return nil
}
