package crds

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/causeway-mesh/causeway/charts"
)

func TestOutdated(t *testing.T) {
	for name, c := range map[string]struct {
		why  string
		edit func(all map[string]*unstructured.Unstructured)
		want []string
	}{
		"the same": {
			why:  "a cluster that install brought up to date",
			edit: func(map[string]*unstructured.Unstructured) {},
		},
		"a kind is missing": {
			why:  "an upgrade by Helm adds no kind",
			edit: func(all map[string]*unstructured.Unstructured) { delete(all, "invites.causeway.dev") },
			want: []string{"invites.causeway.dev"},
		},
		"a field is missing": {
			why: "an upgrade by Helm adds no field, and the API server would drop it without an error",
			edit: func(all map[string]*unstructured.Unstructured) {
				remove(t, all["links.causeway.dev"], "spec", "suspend")
			},
			want: []string{"links.causeway.dev:.spec.suspend"},
		},
		"a field of list entries is missing": {
			why: "lists are looked into",
			edit: func(all map[string]*unstructured.Unstructured) {
				remove(t, all["links.causeway.dev"], "status", "problems", "items", "reason")
			},
			want: []string{"links.causeway.dev:.status.problems[].reason"},
		},
		"the cluster's are newer": {
			why: "fields that this version does not know harm nothing",
			edit: func(all map[string]*unstructured.Unstructured) {
				schemaOf(t, all["links.causeway.dev"])["properties"].(map[string]any)["later"] = map[string]any{"type": "string"}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			crds, err := charts.CRDs()
			if err != nil {
				t.Fatal(err)
			}
			all := make(map[string]*unstructured.Unstructured)
			for _, crd := range crds {
				all[crd.GetName()] = crd.DeepCopy()
			}
			c.edit(all)
			var objects []client.Object
			for _, crd := range all {
				objects = append(objects, crd)
			}
			got, err := Outdated(context.Background(),
				fake.NewClientBuilder().WithObjects(objects...).Build())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", c.why, diff)
			}
		})
	}
}

func schemaOf(t *testing.T, crd *unstructured.Unstructured) map[string]any {
	t.Helper()
	versions := crd.Object["spec"].(map[string]any)["versions"].([]any)
	return versions[0].(map[string]any)["schema"].(map[string]any)["openAPIV3Schema"].(map[string]any)
}

// remove removes a field from a CRD's schema.
func remove(t *testing.T, crd *unstructured.Unstructured, path ...string) {
	t.Helper()
	at := schemaOf(t, crd)
	for _, step := range path[:len(path)-1] {
		if step == "items" {
			at = at["items"].(map[string]any)
			continue
		}
		at = at["properties"].(map[string]any)[step].(map[string]any)
	}
	delete(at["properties"].(map[string]any), path[len(path)-1])
}
