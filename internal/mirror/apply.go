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
	// retryRejected is when to try again what the API server does not accept.
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
// server refuses for good is a Problem and stops nobody else; one that lost to
// another writer is left. Any other error ends it: what was done is told with it.
func (r *Reconciler) Apply(ctx context.Context, d Desired, changes []Change, writes, deletes limiter) (Applied, error) {
	a := applier{Reconciler: r, desired: d, made: make(map[catalog.Key]types.UID), failed: make(map[catalog.Key]bool)}
	for i, c := range changes {
		budget := writes
		if c.Op == Delete && c.Service != nil {
			budget = deletes
		}
		if !budget.Allow() {
			a.leave(len(changes)-i, retryBudget)
			break
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
	desired Desired
	made    map[catalog.Key]types.UID // Services created by this plan
	failed  map[catalog.Key]bool      // Services that it could not create
	out     Applied
}

func (a *applier) leave(n int, again time.Duration) {
	a.out.Left += n
	if a.out.Again == 0 || again < a.out.Again {
		a.out.Again = again
	}
}

// one makes one change and judges how it went.
func (a *applier) one(ctx context.Context, c Change) error {
	k := keyOf(c.Object())
	if c.Slice != nil && c.Op != Delete {
		of := catalog.Key{Namespace: k.Namespace, Name: c.Slice.OwnerReferences[0].Name}
		if a.failed[of] {
			return nil // told already
		}
		if uid := a.made[of]; uid != "" {
			c.Slice.OwnerReferences[0].UID = uid
		}
	}
	err := a.write(ctx, c)
	switch {
	case err == nil:
		a.out.Made = append(a.out.Made, c)
		a.Metrics.wrote(c.Op)
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
		a.failed[k] = true
	}
	return a.judge(c, k, err)
}

// judge sorts the API server's errors: weather is left, refusals are problems,
// the rest is returned.
func (a *applier) judge(c Change, k catalog.Key, err error) error {
	switch {
	case c.Op == Create && (apierrors.IsNotFound(err) || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause)):
		a.out.Problems = append(a.out.Problems, problem(k, NamespaceMissing, "the namespace does not exist here: the mirror appears when it does"))
	case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err), apierrors.IsNotFound(err):
		a.leave(1, retryWeather)
	case apierrors.IsInvalid(err), apierrors.IsForbidden(err), apierrors.IsBadRequest(err):
		a.out.Problems = append(a.out.Problems, problem(k, Rejected, "the API server does not accept the mirror: %v", err))
		a.leave(0, retryRejected)
	default:
		return fmt.Errorf("%v: %w", c, err)
	}
	return nil
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
