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

	"github.com/causeway-mesh/causeway/internal/catalog"
)

// FieldOwner is the name under which the API server keeps our fields.
const FieldOwner = client.FieldOwner("causeway")

const (
	// retryWeather is when to look again after a write that lost to another.
	retryWeather = time.Second
	// retryRejected is when to try again what the API server does not accept, and not before.
	retryRejected = time.Minute
	// retryBudget lets some budget gather before the next writes.
	retryBudget = time.Second
)

// limiter says whether one more write may be made now, as rate.Limiter does.
type limiter interface {
	Allow() bool
}

// Applied is what became of a plan.
type Applied struct {
	// Made are the changes made, their objects as the API server has them now.
	Made []Change
	// Left is the number of changes not made: for lack of budget, or because the
	// cache was behind. The next plan has them again, if they are still right.
	Left int
	// Again is when to make it; 0 if there is nothing to try again.
	Again    time.Duration
	Problems []Problem
}

// Apply makes the changes that Plan found for d, in order, as far as budgets allow. A change that the API
// server refuses is a Problem and stops nobody else; it is noted in was, and as long
// as it stands there it is a Problem without being tried and costs no budget. One
// that lost to another writer is left. Any other error, as of the connection, ends
// it: what was done is told with it.
func (r *Reconciler) Apply(ctx context.Context, d Desired, changes []Change, was refusals, writes, deletes limiter) (Applied, error) {
	a := applier{Reconciler: r, desired: d, refusals: was, made: make(map[catalog.Key]types.UID), failed: make(map[string]bool)}
	was.forget(time.Now())
	spent := false
	for _, c := range changes {
		a.adopt(c)
		if a.hopeless(c) || a.standing(c) {
			continue
		}
		budget := writes
		if c.Op == Delete && c.Service != nil {
			budget = deletes
		}
		if spent = spent || !budget.Allow(); spent {
			a.leave(1, retryBudget)
			continue
		}
		if err := a.one(ctx, c); err != nil {
			return a.out, err
		}
	}
	catalog.SortProblems(a.out.Problems)
	return a.out, nil
}

// applier is the state of one Apply.
type applier struct {
	*Reconciler
	desired  Desired
	refusals refusals
	made     map[catalog.Key]types.UID // Services created by this plan
	failed   map[string]bool           // objects that it could not create or delete
	out      Applied
}

func (a *applier) leave(n int, again time.Duration) {
	a.out.Left += n
	if a.out.Again == 0 || again < a.out.Again {
		a.out.Again = again
	}
}

// adopt gives a slice the UID of its Service, if this plan made that.
func (a *applier) adopt(c Change) {
	if c.Slice == nil || c.Op == Delete {
		return
	}
	owner := &c.Slice.OwnerReferences[0]
	if uid := a.made[catalog.Key{Namespace: c.Slice.Namespace, Name: owner.Name}]; uid != "" {
		owner.UID = uid
	}
}

// hopeless reports whether c builds on a change that failed, having told what was not told with that.
func (a *applier) hopeless(c Change) bool {
	switch {
	case c.Op == Delete:
		return false
	case c.Slice != nil:
		of := Change{Service: &corev1.Service{}}
		of.Service.Namespace, of.Service.Name = c.Slice.Namespace, c.Slice.OwnerReferences[0].Name
		return a.failed[of.about()] || a.failed[c.about()] // the old one still stands
	case c.Service != nil && a.failed["namespace "+c.Service.Namespace]:
		a.missing(c)
		a.failed[c.about()] = true
		return true
	}
	return false
}

// standing reports whether c was refused and is not to be tried yet, having told that.
func (a *applier) standing(c Change) bool {
	now := time.Now()
	f, ok := a.refusals.of(c, now)
	if ok {
		a.refuse(c, f, now)
	}
	return ok
}

// one makes one change and judges how it went.
func (a *applier) one(ctx context.Context, c Change) error {
	k, content := keyOf(c.Object()), c.content() // a write may change the object
	err := a.write(ctx, c)
	switch {
	case err == nil:
		a.out.Made = append(a.out.Made, c)
		a.Metrics.wrote(c.Op)
		delete(a.refusals, c.about())
		if c.Op == Create && c.Service != nil {
			a.made[k] = c.Service.UID
		}
		return nil
	case errors.Is(err, errNotLoose):
		a.leave(1, retryWeather)
		return nil
	case c.Op == Delete && apierrors.IsNotFound(err):
		return nil
	}
	if c.Op == Create && c.Service != nil {
		a.failed[c.about()] = true
	}
	return a.judge(c, content, err)
}

// judge sorts the API server's errors: weather is left, refusals are problems and
// noted, the rest is returned.
func (a *applier) judge(c Change, content uint64, err error) error {
	switch {
	case c.Op == Create && (apierrors.IsNotFound(err) || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause)):
		a.missing(c)
	case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err), apierrors.IsNotFound(err):
		a.leave(1, retryWeather)
	case refused(err):
		now := time.Now()
		p := problem(keyOf(c.Object()), Rejected, "the API server does not accept the mirror: %s", said(err))
		f := refusal{content: content, until: now.Add(retryRejected), problem: p}
		a.refusals[c.about()] = f
		a.refuse(c, f, now)
	default:
		return fmt.Errorf("%v: %w", c, err)
	}
	return nil
}

// refuse tells that c was refused. It is not left: it waits for its time.
func (a *applier) refuse(c Change, f refusal, now time.Time) {
	a.out.Problems = append(a.out.Problems, f.problem)
	a.leave(0, f.until.Sub(now))
	if c.Op != Update { // what is there already can be built on
		a.failed[c.about()] = true
	}
}

// missing tells that c's namespace is not there.
func (a *applier) missing(c Change) {
	a.out.Problems = append(a.out.Problems, problem(keyOf(c.Object()), NamespaceMissing, namespaceMissing))
}

// errNotLoose reports a slice whose Service is there after all: the cache was behind.
var errNotLoose = errors.New("its Service is there")

func (a *applier) write(ctx context.Context, c Change) error {
	ctx, cancel := context.WithTimeout(ctx, a.Options.writeTimeout())
	defer cancel()
	switch c.Op {
	case Create:
		return a.Client.Create(ctx, c.Object(), FieldOwner)
	case Update:
		// The patch holds our own fields alone, and loses to a newer object.
		return a.Client.Patch(ctx, c.Object(), client.MergeFromWithOptions(c.Was, client.MergeFromWithOptimisticLock{}), FieldOwner)
	}
	if c.Orphan != "" {
		if err := a.confirmLoose(ctx, c); err != nil {
			return err
		}
	}
	o := c.Object()
	uid, version := o.GetUID(), o.GetResourceVersion()
	return a.Client.Delete(ctx, o, client.Preconditions{UID: &uid, ResourceVersion: &version})
}

// confirmLoose asks the API server itself, as Services and slices come by
// different watches and a new mirror's slice may be seen before its Service.
func (a *applier) confirmLoose(ctx context.Context, c Change) error {
	var svc corev1.Service
	err := a.Live.Get(ctx, client.ObjectKey{Namespace: c.Slice.Namespace, Name: c.Orphan}, &svc)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err == nil && a.desired.owned(&svc) {
		return errNotLoose
	}
	return err
}

func keyOf(o client.Object) catalog.Key {
	return catalog.Key{Namespace: o.GetNamespace(), Name: o.GetName()}
}
