//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/mirror"
)

const usersOwn = `
apiVersion: v1
kind: Service
metadata:
  name: toy-east
  namespace: shop
  labels: {team: toys}
  annotations: {owner: somebody}
spec:
  selector: {app: toys}
  ports: [{name: web, port: 8080}]
`

// TestUsersOwnServiceIsUntouched: a user's own Service in a mirror's way is untouched, and named in a condition and an Event.
func TestUsersOwnServiceIsUntouched(t *testing.T) {
	ctx := t.Context()
	must(t, west.kubectl(ctx, usersOwn, "apply", "-f", "-"))
	t.Cleanup(func() {
		_ = west.kubectl(background(), "", "-n", "shop", "delete", "service", "toy-east", "--ignore-not-found")
	})
	before := have(west.serviceJSON(ctx, "toy-east"))(t)
	since := time.Now().Add(-time.Second) // Events count in whole seconds
	exportAs(t, "toy")

	within(t, soon, "the Link's status names it", func() error {
		var l v1alpha1.Link
		if err := west.read(ctx, links, "", "east", &l); err != nil {
			return err
		}
		for _, p := range l.Status.Problems {
			if p.Service == "shop/toy-east" && p.Reason == mirror.NameTaken && p.Message != "" {
				t.Logf("it says: %s", p.Message)
				return nil
			}
		}
		return fmt.Errorf("problems are %+v", l.Status.Problems)
	})
	within(t, soon, "an Event names it", func() error {
		list, err := west.api.EventsV1().Events("").List(ctx, listOptions)
		if err != nil {
			return err
		}
		for _, e := range list.Items {
			if e.Reason == mirror.NameTaken && e.Regarding.Kind == "Link" && e.Regarding.Name == "east" && strings.Contains(e.Note, "toy-east") && !e.CreationTimestamp.Time.Before(since.Truncate(time.Second)) {
				return nil
			}
		}
		return fmt.Errorf("none of %d Events does", len(list.Items))
	})
	if after := have(west.serviceJSON(ctx, "toy-east"))(t); after != before {
		t.Errorf("the user's Service was changed: %s", cmp.Diff(before, after))
	}
	for _, s := range have(west.slices(ctx, "toy-east"))(t) {
		if s.Labels[v1alpha1.ManagedByLabel] == v1alpha1.ManagedBy || s.Labels[discoveryv1.LabelManagedBy] == v1alpha1.ManagedBy || len(s.OwnerReferences) > 0 && s.Labels[v1alpha1.LinkLabel] != "" {
			t.Errorf("slice %s lends our VIP to the user's Service", s.Name)
		}
	}
	// Out of the way, it makes room.
	must(t, west.kubectl(ctx, "", "-n", "shop", "delete", "service", "toy-east"))
	within(t, soon, "the mirror takes the name when it is free", func() error {
		s, err := west.api.CoreV1().Services("shop").Get(ctx, "toy-east", getOptions)
		if err == nil && s.Labels[v1alpha1.LinkLabel] != "east" {
			err = fmt.Errorf("labels %v", s.Labels)
		}
		return err
	})
	within(t, soon, "and the status no longer names it", func() error {
		var l v1alpha1.Link
		if err := west.read(ctx, links, "", "east", &l); err != nil {
			return err
		}
		if len(l.Status.Problems) > 0 {
			return fmt.Errorf("problems are %+v", l.Status.Problems)
		}
		return nil
	})
}

func (c *cluster) serviceJSON(ctx context.Context, name string) (string, error) {
	s, err := c.api.CoreV1().Services("shop").Get(ctx, name, getOptions)
	if err != nil {
		return "", err
	}
	raw, err := json.MarshalIndent(s, "", " ")
	return string(raw), err
}

// essence is what of a mirror Causeway says: all but what the API server keeps.
type essence struct {
	Labels, Annotations           map[string]string
	Spec                          corev1.ServiceSpec
	SliceLabels, SliceAnnotations map[string]string
	Endpoints                     []discoveryv1.Endpoint
	Ports                         []discoveryv1.EndpointPort
}

func (c *cluster) essence(ctx context.Context, name string) (essence, error) {
	s, err := c.api.CoreV1().Services("shop").Get(ctx, name, getOptions)
	if err != nil {
		return essence{}, err
	}
	all, err := c.slices(ctx, name)
	if err != nil {
		return essence{}, err
	}
	if len(all) != 1 {
		return essence{}, fmt.Errorf("mirror %s has %d slices, want one", name, len(all))
	}
	p := all[0]
	return essence{s.Labels, s.Annotations, s.Spec, p.Labels, p.Annotations, p.Endpoints, p.Ports}, nil
}

// TestTenantsEditsAreRepaired: what a tenant changes of a mirror comes back, and lands nobody's calls elsewhere for good.
func TestTenantsEditsAreRepaired(t *testing.T) {
	ctx := t.Context()
	want := have(west.essence(ctx, "bar-east"))(t)
	slice := west.slice(t, "bar-east").Name
	if len(want.Annotations) == 0 {
		t.Fatal("the mirror has no annotations to edit")
	}
	baz := vip(t, "baz-east")
	edits := map[string]struct{ kind, patch string }{
		"annotations":      {"service", annotated("shop/vault", slices.Collect(maps.Keys(want.Annotations))...)},
		"labels":           {"service", `{"metadata":{"labels":{"causeway.dev/link":"elsewhere","app.kubernetes.io/managed-by":null}}}`},
		"ports":            {"service", `{"spec":{"ports":[{"name":"http","port":8080,"protocol":"TCP","targetPort":1}]}}`},
		"a selector":       {"service", `{"spec":{"selector":{"app":"mallory"}}}`},
		"slice's address":  {"slice", `{"endpoints":[{"addresses":["` + baz + `"]}]}`},
		"slice's ports":    {"slice", `{"ports":[{"name":"http","port":4217,"protocol":"TCP"}]}`},
		"slice's labels":   {"slice", `{"metadata":{"labels":{"causeway.dev/link":null,"endpointslice.kubernetes.io/managed-by":"mallory"}}}`},
		"slice's services": {"slice", `{"metadata":{"labels":{"kubernetes.io/service-name":"baz-east"}}}`},
	}
	for name, tc := range edits {
		t.Run(name, func(t *testing.T) {
			must(t, west.patch(ctx, tc.kind, "bar-east", slice, tc.patch))
			within(t, soon, "it is repaired", func() error {
				got, err := west.essence(ctx, "bar-east")
				if err != nil {
					return err
				}
				if diff := cmp.Diff(want, got); diff != "" {
					return fmt.Errorf("it differs (-want +got):\n%s", diff)
				}
				return nil
			})
		})
	}
	t.Run("deleted", func(t *testing.T) {
		must(t, west.kubectl(ctx, "", "-n", "shop", "delete", "endpointslice", slice))
		within(t, soon, "the slice is back", func() error {
			got, err := west.essence(ctx, "bar-east")
			if err == nil && !cmp.Equal(want, got) {
				err = fmt.Errorf("it differs (-want +got):\n%s", cmp.Diff(want, got))
			}
			return err
		})
	})
	serves(t)
}

// TestTenantsEditChangesNoTraffic: a tenant's edit of a mirror's annotations changes no traffic, also while no controller repairs it.
func TestTenantsEditChangesNoTraffic(t *testing.T) {
	ctx := t.Context()
	want := have(west.essence(ctx, "bar-east"))(t)
	slice := west.slice(t, "bar-east").Name
	client, address := netOf(t, west, "client"), "http://"+mirrorOf(t, "bar-east", 80)
	// Those that Causeway writes, and some that one could think it reads: what is not its own, it leaves alone.
	own, others := slices.Collect(maps.Keys(want.Annotations)), []string{"causeway.dev/vip", "causeway.dev/route", "causeway.dev/service"}
	t.Cleanup(func() {
		for _, kind := range []string{"service", "slice"} {
			if err := west.patch(background(), kind, "bar-east", slice, annotated(nil, others...)); err != nil {
				t.Error(err)
			}
		}
		err := poll(background(), 30*time.Second, func() error {
			got, err := west.essence(background(), "bar-east")
			if err == nil && !cmp.Equal(want, got) {
				err = fmt.Errorf("it differs (-want +got):\n%s", cmp.Diff(want, got))
			}
			return err
		})
		if err != nil {
			t.Errorf("the mirror is not repaired when the controllers are back: %v", err)
		}
	})
	withoutController(t, west)
	must(t, west.patch(ctx, "service", "bar-east", slice, annotated("shop/vault", append(own, others...)...)))
	must(t, west.patch(ctx, "slice", "bar-east", slice, annotated("240.64.0.99", others...)))
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		said, err := fetch(ctx, client, address)
		if err != nil || !strings.Contains(said, "bar served by bar-") {
			t.Fatalf("bar-east answers %q, %v", said, err)
		}
	}
}

// annotated is a patch of annotations. A nil value takes them away.
func annotated(value any, keys ...string) string {
	all := make(map[string]any)
	for _, k := range keys {
		all[k] = value
	}
	raw, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": all}})
	if err != nil {
		panic(err)
	}
	return string(raw)
}

// patch edits a mirror or its slice as a tenant with the right to edit would.
func (c *cluster) patch(ctx context.Context, kind, service, slice, patch string) error {
	var err error
	if kind == "slice" {
		_, err = c.api.DiscoveryV1().EndpointSlices("shop").Patch(ctx, slice, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	} else {
		_, err = c.api.CoreV1().Services("shop").Patch(ctx, service, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	}
	return err
}
