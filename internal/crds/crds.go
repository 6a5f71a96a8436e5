// Package crds finds CustomResourceDefinitions that are older than this controller.
//
//	CRDs in the binary ─┐
//	CRDs in the cluster ┴─Outdated─▶ fields that the API server would drop
//
// Helm never upgrades what lies in a chart's crds folder. A newer controller would then
// write fields that the API server prunes without an error.
package crds

import (
	"context"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/charts"
)

var kind = schema.GroupVersionKind{
	Group:   "apiextensions.k8s.io",
	Version: "v1",
	Kind:    "CustomResourceDefinition",
}

// Outdated returns, sorted, the fields that this version's CRDs have and the cluster's
// lack, each as CRD:path, or CRD alone if the whole kind is missing. Nil means that the
// cluster's CRDs are new enough. r must read live.
func Outdated(ctx context.Context, r client.Reader) ([]string, error) {
	wanted, err := charts.CRDs()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, want := range wanted {
		have := &unstructured.Unstructured{}
		have.SetGroupVersionKind(kind)
		err := r.Get(ctx, client.ObjectKey{Name: want.GetName()}, have)
		if apierrors.IsNotFound(err) {
			out = append(out, want.GetName())
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("get CustomResourceDefinition %s: %w", want.GetName(), err)
		}
		for _, path := range Missing(want, have) {
			out = append(out, want.GetName()+":"+path)
		}
	}
	slices.Sort(out)
	return out, nil
}

// Missing returns, sorted, the paths of fields that want's stored version has and have's
// lacks. A path names a missing field without the fields below it.
func Missing(want, have *unstructured.Unstructured) []string {
	var out []string
	compare("", storedSchema(want), storedSchema(have), &out)
	slices.Sort(out)
	return out
}

// storedSchema returns the schema of a CRD's storage version; nil if it has none.
func storedSchema(crd *unstructured.Unstructured) map[string]any {
	versions, _, _ := unstructured.NestedSlice(crd.Object, "spec", "versions")
	for _, v := range versions {
		version, ok := v.(map[string]any)
		if stored, _ := version["storage"].(bool); !ok || !stored {
			continue
		}
		schema, _, _ := unstructured.NestedMap(version, "schema", "openAPIV3Schema")
		return schema
	}
	return nil
}

func compare(path string, want, have map[string]any, out *[]string) {
	if keepsUnknown, _ := have["x-kubernetes-preserve-unknown-fields"].(bool); keepsUnknown {
		return
	}
	wanted, _ := want["properties"].(map[string]any)
	present, _ := have["properties"].(map[string]any)
	for name, w := range wanted {
		next := path + "." + name
		h, ok := present[name].(map[string]any)
		if !ok {
			*out = append(*out, next)
			continue
		}
		if w, ok := w.(map[string]any); ok {
			compare(next, w, h, out)
		}
	}
	for _, nested := range []string{"items", "additionalProperties"} {
		w, ok := want[nested].(map[string]any)
		if !ok {
			continue
		}
		h, _ := have[nested].(map[string]any)
		compare(path+"[]", w, h, out)
	}
}
