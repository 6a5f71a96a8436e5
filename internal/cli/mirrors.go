package cli

import (
	"context"
	"fmt"
	"slices"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/clusterinfo"
)

// mirrors finds what Links own in tenants' namespaces, which Kubernetes collects once they are gone.
type mirrors struct {
	client client.Reader
	// of tells whether a reference is to a Link that is meant, and label what its mirrors and slices are labelled with.
	of    func(metav1.OwnerReference) bool
	label client.MatchingLabels
}

// mirrorsOf finds the mirrors of one Link, and not those of another of its name.
func mirrorsOf(c client.Reader, l *v1alpha1.Link) mirrors {
	return mirrors{
		client: c,
		of:     func(o metav1.OwnerReference) bool { return v1alpha1.IsLinkReference(o) && o.UID == l.UID },
		label:  client.MatchingLabels{v1alpha1.ManagedByLabel: v1alpha1.ManagedBy, v1alpha1.LinkLabel: l.Name},
	}
}

// allMirrors finds the mirrors of every Link, those included that are gone already.
func allMirrors(c client.Reader) mirrors {
	return mirrors{client: c, of: v1alpha1.IsLinkReference, label: client.MatchingLabels{v1alpha1.ManagedByLabel: v1alpha1.ManagedBy}}
}

// services returns the mirrors, namespace/name, sorted. Without more it reads every Service's metadata: what is ours is
// ours whatever became of its labels.
func (m mirrors) services(ctx context.Context, more ...client.ListOption) ([]string, error) {
	return m.list(ctx, schema.GroupVersionKind{Version: "v1", Kind: "Service"}, func(o metav1.PartialObjectMetadata) bool {
		return slices.ContainsFunc(o.OwnerReferences, m.of)
	}, more...)
}

// slices returns the EndpointSlices that await Kubernetes' collector.
func (m mirrors) slices(ctx context.Context) ([]string, error) {
	return m.list(ctx, discoveryv1.SchemeGroupVersion.WithKind("EndpointSlice"), func(o metav1.PartialObjectMetadata) bool {
		return o.Labels[discoveryv1.LabelManagedBy] == clusterinfo.SliceManager && len(o.OwnerReferences) > 0
	}, m.label)
}

// list returns the names of the objects that match admits, sorted.
func (m mirrors) list(ctx context.Context, gvk schema.GroupVersionKind, match func(metav1.PartialObjectMetadata) bool, more ...client.ListOption) ([]string, error) {
	var names []string
	var page metav1.PartialObjectMetadataList
	page.SetGroupVersionKind(gvk.GroupVersion().WithKind(gvk.Kind + "List"))
	for first := true; first || page.Continue != ""; first = false {
		options := append([]client.ListOption{sample, client.Continue(page.Continue)}, more...)
		if err := m.client.List(ctx, &page, options...); err != nil {
			return nil, fmt.Errorf("list %ss: %w", gvk.Kind, err)
		}
		for _, o := range page.Items {
			if match(o) {
				names = append(names, o.Namespace+"/"+o.Name)
			}
		}
	}
	slices.Sort(names)
	return names, nil
}

// left says what still stands of them; "": nothing. It asks for all Services only once none with our labels is left.
func (m mirrors) left(ctx context.Context) (string, error) {
	services, err := m.services(ctx, m.label)
	if err == nil && len(services) == 0 {
		services, err = m.services(ctx)
	}
	if err != nil {
		return "", err
	}
	if len(services) > 0 {
		return fmt.Sprintf("%s left, such as %s", count(len(services), "mirror"), services[0]), nil
	}
	endpoints, err := m.slices(ctx)
	if err != nil || len(endpoints) == 0 {
		return "", err
	}
	return fmt.Sprintf("%s left, such as %s", count(len(endpoints), "EndpointSlice"), endpoints[0]), nil
}

// count is "1 mirror" or "2 mirrors".
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
