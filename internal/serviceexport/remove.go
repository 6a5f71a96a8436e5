package serviceexport

import (
	"context"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/internal/catalog"
)

// RemoveConditions removes the conditions that Writers own from all ServiceExports, and
// returns the number of objects that it changed. Call it when no Writer runs any more. It
// may be called again, for example after an error. It returns 0 if the cluster does not
// serve the kind.
func RemoveConditions(ctx context.Context, api API) (int, error) {
	for _, kind := range catalog.ServiceExportKinds() {
		removed, err := removeConditions(ctx, api, kind)
		if !meta.IsNoMatchError(err) && !apierrors.IsNotFound(err) {
			return removed, err // one version is enough: each version serves all objects
		}
	}
	return 0, nil
}

func removeConditions(ctx context.Context, api API, kind schema.GroupVersionKind) (removed int, err error) {
	for next := ""; ; {
		var page unstructured.UnstructuredList
		page.SetGroupVersionKind(kind.GroupVersion().WithKind(kind.Kind + "List"))
		err := api.List(ctx, &page, client.Limit(pageSize), client.Continue(next))
		if apierrors.IsResourceExpired(err) && next != "" {
			next = "" // the objects that were changed already are skipped
			continue
		}
		if err != nil {
			return removed, fmt.Errorf("list ServiceExports: %w", err)
		}
		for i := range page.Items {
			o := &page.Items[i]
			if !slices.ContainsFunc(o.GetManagedFields(), isWriter) {
				continue
			}
			key := catalog.Key{Namespace: o.GetNamespace(), Name: o.GetName()}
			none := applyConfiguration(key, kind, o.GetUID(), nil)
			err := api.Status().Apply(ctx, client.ApplyConfigurationFromUnstructured(none),
				client.FieldOwner(FieldOwner))
			if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
				continue // the object was deleted or replaced since the list
			}
			if err != nil {
				return removed, fmt.Errorf("remove the conditions of ServiceExport %s: %w", key, err)
			}
			removed++
		}
		if next = page.GetContinue(); next == "" {
			return removed, nil
		}
	}
}

func isWriter(m metav1.ManagedFieldsEntry) bool { return m.Manager == FieldOwner }
