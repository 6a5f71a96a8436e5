package mirror

import (
	"context"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

const (
	// retryConflict is when to look again after a write that has lost to another writer.
	retryConflict = time.Second
	// retryRefused is when to try again what the API server has refused, and not before.
	retryRefused = time.Minute
	// minRetry and maxRetry bound the wait after a write that has failed without an
	// answer.
	minRetry = time.Second
	maxRetry = 10 * time.Second
)

// job is one mirror to be handled, and what a worker may read of it without the lock. If
// m is nil, what stands of the Link is to be listed.
type job struct {
	link       *linkState
	m          *mirrorState
	scope      *Scope
	want       *Want
	companions []Companion // their Services are yet to be read
	resync     bool        // only the resync has queued it
	// early: the mirrors that a headless mirror lists have not been looked at yet. Their
	// workers queue it again.
	early bool
}

// newJob returns the job of a mirror.
func (w *Writer) newJob(m *mirrorState) *job {
	j := &job{link: m.link, m: m, scope: m.link.scope, want: m.want, resync: m.onlyResync}
	if m.want != nil && m.want.isHeadlessParent() {
		if g := m.link.groups[m.want.source()]; g != nil {
			for _, c := range g.companions {
				j.companions = append(j.companions, Companion{Want: c.want, Ready: c.shown})
				j.early = j.early || !c.visited
			}
		}
	}
	return j
}

// outcome is what has become of a job.
type outcome struct {
	service *corev1.Service // as it stands now; nil: there is none
	ready   bool            // what the slices are to show
	decided bool            // ready is known
	applied
}

// work handles a job, and then others for as long as there are some.
func (w *Writer) work(ctx context.Context, j *job) {
	for j != nil {
		switch {
		case j.m == nil:
			w.adopt(ctx, j.link, j.scope)
		case j.early:
			w.finishEarly(j)
		default:
			out, err := w.process(ctx, j)
			w.finish(ctx, j, out, err)
		}
		j = w.following(ctx)
	}
}

// following returns the next job for a worker that has finished one; nil: there is none,
// and the dispatcher starts a worker when there is.
func (w *Writer) following(ctx context.Context) *job {
	if ctx.Err() != nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	j, _ := w.nextJob(time.Now())
	if j == nil {
		w.signal()
	}
	return j
}

// process looks at one mirror and writes what differs. Its error is one of the connection
// or the cache, after which the mirror is to be tried again.
func (w *Writer) process(ctx context.Context, j *job) (outcome, error) {
	now := time.Now()
	r := reader{Reader: w.Reader, expected: w.expected, now: now}
	have, err := r.have(ctx, j.m.key, j.want, j.companions)
	if err != nil {
		return outcome{}, err
	}
	have.Collecting = now.Before(j.m.collected)
	if !have.NamespaceExists {
		j.m.refusals = nil // once the namespace is there, all is to be tried again
	}
	ready, shown, again := j.readiness(have, now)
	changes, problems := PlanMirror(j.scope, j.m.key, j.want, ready, have)
	changes, held := j.m.content.hold(changes, now)
	out := outcome{service: have.Service, ready: ready, decided: true}
	if len(changes) > 0 {
		out.applied, err = w.apply(ctx, j, changes)
	}
	out.problems = append(problems, out.problems...)
	out.blocked = len(out.problems) > 0
	for _, c := range out.made {
		if c.Service != nil {
			out.service = c.Service
			if c.Op == Delete {
				out.service = nil
				j.m.collected = now.Add(expectFor)
			}
		}
		if c.Slice != nil && c.Op == Update && shown && !ready {
			j.m.damper.wentDown(now)
			shown = false // once, though there is a slice per family
		}
	}
	j.m.content.wrote(out.made, now)
	again = sooner(again, held)
	if left := j.m.content.heldFor(now); left > 0 && j.want != nil {
		out.problems = append(out.problems, problem(j.m.key, ChangesTooOften, keepsChanging))
		again = sooner(again, left)
	}
	if left := j.m.damper.calmAfter(now); left > 0 && j.want != nil {
		out.problems = append(out.problems, problem(j.m.key, Flapping, keepsFlapping))
		again = sooner(again, left)
	}
	if len(out.made) > 0 {
		again = sooner(again, expectFor)
	}
	out.again = sooner(sooner(out.again, again), sooner(r.overlaid, max(j.m.collected.Sub(now), 0)))
	return out, err
}

// readiness decides what the mirror's slices are to show, and returns whether they say
// ready now. It returns when to decide again though nothing happens; 0: never.
func (j *job) readiness(have Have, now time.Time) (ready, shown bool, again time.Duration) {
	w := j.want
	if w == nil || w.isHeadlessParent() { // those that it lists show each their own
		return false, false, 0
	}
	shown, stands := w.shown(have.Slices)
	switch {
	case !w.Known && stands:
		return shown, shown, 0
	case !w.Known:
		return true, false, 0
	case !stands:
		return w.Ready, false, 0
	}
	ready, again = j.m.damper.decide(shown, w.Ready, now)
	return ready, shown, again
}

// finish records what has become of a job, and queues the mirror again if there is a
// need.
func (w *Writer) finish(ctx context.Context, j *job, out outcome, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m, l, now := j.m, j.m.link, time.Now()
	w.queue.done(&l.linkQueue, m)
	if l.removed {
		return
	}
	if j.resync {
		w.Metrics.repaired(len(out.made))
	}
	if out.answered && l.answered() {
		w.Log.Info("mirrors are written again", "link", l.name)
	}
	if err != nil {
		if out.decided {
			w.visit(j, out.ready, m.address)
		}
		w.retry(ctx, m, err, now)
		return
	}
	m.failures = 0
	w.record(j, out)
	switch {
	case m.again:
		m.again = false
		w.enqueue(m)
	case m.want == nil && !m.standing && !out.left && !m.blocked && !now.Before(m.collected):
		w.drop(m)
		w.changed(l)
	case out.again > 0:
		w.enqueueAfter(m, out.again, now)
	}
}

// finishEarly returns a mirror that was looked at too early.
func (w *Writer) finishEarly(j *job) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queue.done(&j.m.link.linkQueue, j.m)
	if j.m.again && !j.m.link.removed {
		j.m.again = false
		w.enqueue(j.m)
	}
}

// visit records what a headless mirror lists of the mirror. It ignores a result for an
// earlier want, because the mirror may not have been wanted then.
func (w *Writer) visit(j *job, shown bool, address string) {
	m := j.m
	if j.want != m.want {
		return
	}
	if !m.visited || address != m.address || shown != m.shown {
		defer w.refreshParent(m)
	}
	m.visited, m.address, m.shown = true, address, shown
}

// retry queues a mirror again, some time after a failure that says nothing about it.
func (w *Writer) retry(ctx context.Context, m *mirrorState, err error, now time.Time) {
	l := m.link
	if ctx.Err() == nil && l.failed(now) {
		w.Log.Warn("writing mirrors fails and will be tried again", "link", l.name, "mirror", m.key, "error",
			err)
	}
	if !m.pending {
		l.account(m, -1)
		m.pending = m.want != nil
		l.account(m, +1)
		w.changed(l)
	}
	m.again = false
	wait := min(minRetry<<min(m.failures, 4), maxRetry)
	m.failures++
	w.enqueueAfter(m, wait, now)
}

// record takes over what a worker has found.
func (w *Writer) record(j *job, out outcome) {
	m, l := j.m, j.m.link
	standing := out.service != nil && j.scope.ours(out.service, j.want) &&
		out.service.DeletionTimestamp.IsZero()
	pending := m.want != nil && (out.left || !standing && !out.blocked || m.want != j.want && m.pending)
	address := ""
	if standing && j.want != nil && j.want.Entry.Hostname != "" {
		address = strings.Join(out.service.Spec.ClusterIPs, ",")
	}
	if standing != m.standing {
		defer w.refreshParent(m)
	}
	w.visit(j, out.ready, address)
	if standing == m.standing && pending == m.pending && out.blocked == m.blocked &&
		slices.Equal(m.problems, out.problems) {
		return
	}
	l.account(m, -1)
	m.standing, m.pending, m.blocked, m.problems = standing, pending, out.blocked, out.problems
	l.account(m, +1)
	w.changed(l)
}
