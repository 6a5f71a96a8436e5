package cli

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/causeway-mesh/causeway/internal/gatewayroutes"
)

// routePage is the number of routes in a page of a list.
const routePage = 250

// removeRouteParents removes Causeway's entries from the status of all routes, and returns
// how many routes it changed. Call it when no controller runs any more. It does nothing if
// the cluster does not serve routes.
func removeRouteParents(ctx context.Context, c client.Client) (removed int, err error) {
	for _, kind := range []gatewayroutes.Kind{gatewayroutes.HTTPRoute, gatewayroutes.GRPCRoute} {
		for next := ""; ; {
			var page unstructured.UnstructuredList
			page.SetGroupVersionKind(schema.GroupVersionKind{
				Group:   gatewayv1.GroupName,
				Version: "v1",
				Kind:    string(kind) + "List",
			})
			err := c.List(ctx, &page, client.Limit(routePage), client.Continue(next))
			if meta.IsNoMatchError(err) || apierrors.IsNotFound(err) {
				break
			}
			if err != nil {
				return removed, fmt.Errorf("list %ss: %w", kind, err)
			}
			for i := range page.Items {
				changed, err := removeParents(ctx, c, &page.Items[i])
				if err != nil {
					return removed, err
				}
				if changed {
					removed++
				}
			}
			if next = page.GetContinue(); next == "" {
				break
			}
		}
	}
	return removed, nil
}

// removeParents removes Causeway's entries from the status of one route.
func removeParents(ctx context.Context, c client.Client, o *unstructured.Unstructured) (bool, error) {
	for {
		parents, _, _ := unstructured.NestedSlice(o.Object, "status", "parents")
		kept := make([]any, 0, len(parents))
		for _, p := range parents {
			entry, ok := p.(map[string]any)
			if !ok || entry["controllerName"] != string(gatewayroutes.ControllerName) {
				kept = append(kept, p)
			}
		}
		if len(kept) == len(parents) {
			return false, nil
		}
		before := o.DeepCopy()
		if err := unstructured.SetNestedSlice(o.Object, kept, "status", "parents"); err != nil {
			return false, fmt.Errorf("status of %s %s/%s: %w", o.GetKind(), o.GetNamespace(), o.GetName(), err)
		}
		patch := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
		err := c.Status().Patch(ctx, o, patch)
		if apierrors.IsConflict(err) {
			err = c.Get(ctx, client.ObjectKeyFromObject(o), o)
			if err == nil {
				continue
			}
		}
		if apierrors.IsNotFound(err) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("remove status from %s %s/%s: %w", o.GetKind(), o.GetNamespace(), o.GetName(), err)
		}
		return true, nil
	}
}
