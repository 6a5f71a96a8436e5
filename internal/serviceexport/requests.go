package serviceexport

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/internal/catalog"
)

// list reads the next page of the list of all ServiceExports in a version. A new leader
// lists them because a request for each object would take much longer.
func (w *Writer) list(ctx context.Context, kind schema.GroupVersionKind, term int) error {
	if w.listingTerm != term {
		w.listingTerm, w.continueToken = term, ""
	}
	var page unstructured.UnstructuredList
	page.SetGroupVersionKind(kind.GroupVersion().WithKind(kind.Kind + "List"))
	err := w.request(ctx, func(ctx context.Context) error {
		return w.c.API.List(ctx, &page, client.Limit(pageSize), client.Continue(w.continueToken))
	})
	if apierrors.IsResourceExpired(err) {
		w.continueToken = ""
	}
	if err != nil {
		return fmt.Errorf("list ServiceExports: %w", err)
	}
	w.failing = false
	types := conditionTypes(kind)
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range page.Items {
		item := &page.Items[i]
		o := w.objects[catalog.Key{Namespace: item.GetNamespace(), Name: item.GetName()}]
		if o != nil && o.meta.UID == item.GetUID() {
			o.keep(item, types, term)
		}
	}
	if w.continueToken = page.GetContinue(); w.continueToken == "" {
		w.listedTerm = term
	}
	return nil
}

// keep records the state of the object that a request returned. The caller holds the
// Writer's lock, unless o is a copy.
func (o *object) keep(read *unstructured.Unstructured, types [2]string, term int) {
	o.term, o.version, o.refused = term, read.GetResourceVersion(), false
	o.stored = readStored(read, types)
}

// reconcile reads an object if read is true. It then writes the object's conditions if
// they differ from the wanted ones.
func (w *Writer) reconcile(ctx context.Context, key catalog.Key, read bool) error {
	w.mu.Lock()
	o, kind, term := w.objects[key], w.kind, w.term
	if o == nil || kind.Empty() {
		w.mu.Unlock()
		return nil
	}
	o.due, o.pausedUntil = time.Time{}, time.Now().Add(objectPause)
	current, uid, generation := *o, o.meta.UID, o.meta.Generation
	w.mu.Unlock()

	found := &unstructured.Unstructured{}
	found.SetGroupVersionKind(kind)
	found.SetNamespace(key.Namespace)
	found.SetName(key.Name)
	if read {
		err := w.request(ctx, func(ctx context.Context) error {
			return w.c.API.Get(ctx, client.ObjectKey{Namespace: key.Namespace, Name: key.Name}, found)
		})
		if apierrors.IsNotFound(err) {
			return nil // the watch will report the deletion
		}
		if err != nil {
			w.requeue(key, o, err)
			return fmt.Errorf("get ServiceExport %s: %w", key, err)
		}
		if found.GetUID() != uid {
			return nil // the watch will report the new object
		}
		generation = max(generation, found.GetGeneration())
		current.keep(found, conditionTypes(kind), term)
		w.store(key, o, &current)
	}
	conditions, needed := plan(current.facts.conditions(kind), current.stored, generation, time.Now())
	if !needed || current.refused {
		return nil
	}
	return w.apply(ctx, key, o, &current, kind, conditions)
}

// apply writes the conditions of an object. It returns an error only if the Writer has to
// try again.
func (w *Writer) apply(ctx context.Context, key catalog.Key, o, current *object,
	kind schema.GroupVersionKind, conditions []metav1.Condition) error {
	next := applyConfiguration(key, kind, current.meta.UID, conditions)
	err := w.request(ctx, func(ctx context.Context) error {
		return w.c.API.Status().Apply(ctx, client.ApplyConfigurationFromUnstructured(next),
			client.FieldOwner(FieldOwner))
	})
	switch {
	case err == nil:
		w.failing = false
		w.c.Metrics.count(written)
		current.keep(next, conditionTypes(kind), current.term)
		current.denied = 0
	case apierrors.IsConflict(err):
		w.c.Metrics.count(conflict)
		current.refused = true
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err):
		w.c.Metrics.count(rejected)
		current.refused = true
	default:
		w.c.Metrics.count(failed)
		w.requeue(key, o, err)
		return fmt.Errorf("write the conditions of ServiceExport %s: %w", key, err)
	}
	if current.refused {
		w.c.Log.Debug("API server refused the conditions of a ServiceExport",
			"serviceExport", key.String(), "error", err)
	}
	w.store(key, o, current)
	return nil
}

// applyConfiguration returns what to apply to the status of a ServiceExport. It contains
// the UID, so that the API server refuses it if another object has the name now.
func applyConfiguration(key catalog.Key, kind schema.GroupVersionKind, uid types.UID,
	conditions []metav1.Condition) *unstructured.Unstructured {
	out := &unstructured.Unstructured{}
	out.SetGroupVersionKind(kind)
	out.SetNamespace(key.Namespace)
	out.SetName(key.Name)
	out.SetUID(uid)
	var list []any
	for _, c := range conditions {
		list = append(list, map[string]any{
			"type":               c.Type,
			"status":             string(c.Status),
			"reason":             c.Reason,
			"message":            c.Message,
			"observedGeneration": c.ObservedGeneration,
			"lastTransitionTime": c.LastTransitionTime.UTC().Format(time.RFC3339),
		})
	}
	if len(list) > 0 {
		out.Object["status"] = map[string]any{"conditions": list}
	}
	return out
}

// store records the result of the requests for an object, unless the object was removed
// or replaced since they began.
func (w *Writer) store(key catalog.Key, o, current *object) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.objects[key] == o {
		o.term, o.version = current.term, current.version
		o.stored, o.refused = current.stored, current.refused
		o.denied = current.denied
	}
}

// requeue queues an object for a retry at the end of its pause. The pause grows while the
// API server denies requests for the object.
func (w *Writer) requeue(key catalog.Key, o *object, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.objects[key] == o {
		if concernsObject(err) {
			o.pausedUntil = time.Now().Add(min(objectPause<<min(o.denied, 10), maxObjectPause))
			o.denied++
		}
		w.push(key, o, time.Now())
	}
}

// request calls do, which makes one request. It charges the request to both budgets and
// ends it after requestTimeout.
func (w *Writer) request(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	now := time.Now()
	w.limit.Take(now)
	w.c.Budget.Take(now)
	err := do(ctx)
	if apierrors.IsTooManyRequests(err) {
		w.limit.Overloaded(time.Now())
	}
	return err
}
