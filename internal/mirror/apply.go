package mirror

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// FieldOwner is the name under which the API server keeps our fields.
const FieldOwner = client.FieldOwner("causeway")

// applied is what has become of a plan.
type applied struct {
	// made are the changes made, their objects as the API server has them now.
	made []Change
	// left: a change was not made because something else has changed meanwhile.
	left bool
	// blocked: a change was not made for the reason that problems tell.
	blocked  bool
	problems []Problem
	// again is when to try again; 0: no need.
	again time.Duration
	// answered: the API server has answered.
	answered bool
}

// applier is the state of one apply.
type applier struct {
	*Writer
	*job
	out     applied
	service types.UID       // of the Service that the plan has created
	failed  map[string]bool // objects that could not be created or deleted
}

// apply makes the changes of a plan, in order. What the API server refuses is a problem.
// What has lost to another writer is left. Any other error, as of the connection, ends
// it.
func (w *Writer) apply(ctx context.Context, j *job, changes []Change) (applied, error) {
	a := applier{Writer: w, job: j}
	for _, c := range changes {
		if a.dependsOnFailed(c) {
			continue
		}
		if f, ok := j.m.refusals.standing(c, time.Now()); ok {
			a.refuse(c, f)
			continue
		}
		if err := a.make(ctx, c); err != nil {
			return a.out, err
		}
	}
	return a.out, nil
}

// dependsOnFailed reports whether c builds on a change that has failed.
func (a *applier) dependsOnFailed(c Change) bool {
	if len(a.failed) == 0 || c.Op == Delete {
		return false
	}
	switch {
	case c.Slice != nil: // the old slice of that name may still stand
		return a.failed["service "+a.m.key.String()] || a.failed[c.about()]
	case c.Service != nil && a.failed["namespace "+c.Service.Namespace]:
		a.fail(c)
		return true
	}
	return false
}

// fail records that c could not be made, for changes that build on it.
func (a *applier) fail(c Change) {
	if a.failed == nil {
		a.failed = make(map[string]bool)
	}
	a.failed[c.about()] = true
}

// make makes one change.
func (a *applier) make(ctx context.Context, c Change) error {
	if c.Slice != nil && c.Op != Delete && a.service != "" {
		c.Slice.OwnerReferences[0].UID = a.service
	}
	var err error
	if c.Namespace != nil {
		err = a.createNamespace(ctx, c)
	} else {
		err = a.write(ctx, c)
	}
	if err == nil {
		a.out.answered = true
		a.out.made = append(a.out.made, c)
		delete(a.m.refusals, c.about())
		if c.Op == Create && c.Service != nil {
			a.service = c.Service.UID
		}
		return nil
	}
	return a.judge(c, err)
}

// judge sorts the errors of a write: conflicts are left, refusals are problems and
// remembered, the rest is returned.
func (a *applier) judge(c Change, err error) error {
	var answer apierrors.APIStatus
	if errors.As(err, &answer) && !apierrors.IsTooManyRequests(err) && !apierrors.IsTimeout(err) {
		a.out.answered = true
	}
	var known problemError
	switch {
	case errors.As(err, &known):
		a.fail(c)
		a.problem(known.Problem, retryRefused)
	case c.Op == Delete && apierrors.IsNotFound(err):
	case c.Op == Create && isNamespaceGone(err):
		a.refused(c, problem(a.m.key, NamespaceMissing, namespaceMissing)) // the cache is behind
	case errors.Is(err, errNotOrphaned), apierrors.IsConflict(err), apierrors.IsAlreadyExists(err),
		apierrors.IsNotFound(err):
		if c.Op != Update {
			a.fail(c)
		}
		a.out.left = true
		a.out.again = sooner(a.out.again, retryConflict)
	case isRefusal(err):
		message := "the API server does not accept the mirror: " + answerText(err)
		a.refused(c, problem(keyOf(c.Object()), Rejected, message))
	default:
		return fmt.Errorf("%v: %w", c, err)
	}
	return nil
}

// isNamespaceGone reports whether a creation failed because its namespace does not exist
// or is being deleted.
func isNamespaceGone(err error) bool {
	return apierrors.IsNotFound(err) || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause)
}

// refused remembers a write that the API server has refused, and reports it.
func (a *applier) refused(c Change, p Problem) {
	if a.m.refusals == nil {
		a.m.refusals = make(refusals)
	}
	f := refusal{content: c.content(), until: time.Now().Add(retryRefused), problem: p}
	a.m.refusals[c.about()] = f
	a.refuse(c, f)
}

// refuse reports a write that the API server has refused.
func (a *applier) refuse(c Change, f refusal) {
	a.problem(f.problem, time.Until(f.until))
	if c.Op != Update { // an existing object can be built on
		a.fail(c)
	}
}

func (a *applier) problem(p Problem, again time.Duration) {
	a.out.problems = append(a.out.problems, p)
	a.out.again = sooner(a.out.again, again)
}

// errNotOrphaned reports a slice whose Service is there after all: the cache was behind.
var errNotOrphaned = errors.New("its Service is there")

// write sends one change to the API server, and takes its token from the budgets.
func (a *applier) write(ctx context.Context, c Change) error {
	ctx, cancel := context.WithTimeout(ctx, a.Options.WriteTimeout)
	defer cancel()
	if c.Orphaned {
		if err := a.confirmOrphaned(ctx, c); err != nil {
			return err
		}
	}
	l, start := a.m.link, time.Now()
	l.writes.ReserveN(start, 1)
	a.Throttle.Take(start)
	err := a.send(ctx, c)
	if err == nil {
		a.Metrics.wrote(c.Op, time.Since(start))
		a.expected.wrote(c, l.name, time.Now())
	}
	if apierrors.IsTooManyRequests(err) {
		a.Throttle.Overloaded(time.Now())
	}
	return err
}

func (a *applier) send(ctx context.Context, c Change) error {
	switch c.Op {
	case Create:
		return a.Client.Create(ctx, c.Object(), FieldOwner)
	case Update:
		// The patch holds our own fields alone, and loses to a newer object.
		patch := client.MergeFromWithOptions(c.Was, client.MergeFromWithOptimisticLock{})
		return a.Client.Patch(ctx, c.Object(), patch, FieldOwner)
	}
	o := c.Object()
	uid, version := o.GetUID(), o.GetResourceVersion()
	return a.Client.Delete(ctx, o, client.Preconditions{UID: &uid, ResourceVersion: &version})
}

// confirmOrphaned asks the API server itself, because Services and slices come by
// different watches, and the slice of a new mirror may be seen before its Service.
func (a *applier) confirmOrphaned(ctx context.Context, c Change) error {
	var svc corev1.Service
	err := a.Live.Get(ctx, client.ObjectKey{Namespace: a.m.key.Namespace, Name: a.m.key.Name}, &svc)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err == nil && a.scope.ours(&svc, a.want) {
		return errNotOrphaned
	}
	return err
}
