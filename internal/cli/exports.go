package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
)

// reportExports lists the Services that somebody has asked to export, by a label or a ServiceExport, whether they can cross
// or not. Which Links let them cross is the catalog's to say.
func reportExports(ctx context.Context, cl cluster, links []v1alpha1.Link, namespace string) ([]exportReport, error) {
	in := catalog.Inputs{Namespace: namespace, Links: links}
	var err error
	if in.ServiceExports, err = serviceExports(ctx, cl); err != nil {
		return nil, err
	}
	if in.Services, err = askedServices(ctx, cl, in.ServiceExports); err != nil {
		return nil, err
	}
	if in.Namespaces, err = selectable(ctx, cl, links); err != nil {
		return nil, err
	}
	admit := map[catalog.Key][]string{}
	for _, e := range catalog.Build(in).List {
		admit[e.Key()] = e.Links
	}
	out := []exportReport{}
	for i := range in.Services {
		s := &in.Services[i]
		out = append(out, exportReport{
			Namespace: s.Namespace, Name: s.Name, Ports: reportPorts(s),
			Links: append([]string{}, admit[catalog.Key{Namespace: s.Namespace, Name: s.Name}]...), // none: its problem says why
		})
	}
	return out, nil
}

// serviceExports lists the cluster's ServiceExports: none where it has no such kind.
func serviceExports(ctx context.Context, cl cluster) ([]metav1.PartialObjectMetadata, error) {
	var list metav1.PartialObjectMetadataList
	list.SetGroupVersionKind(catalog.ServiceExportKind.GroupVersion().WithKind(catalog.ServiceExportKind.Kind + "List"))
	err := cl.List(ctx, &list)
	if meta.IsNoMatchError(err) || apierrors.IsNotFound(err) || runtime.IsNotRegisteredError(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list ServiceExports: %w", err)
	}
	return list.Items, nil
}

// askedServices returns the Services that are labelled for export, and those of ServiceExports, each once, sorted.
func askedServices(ctx context.Context, cl cluster, exports []metav1.PartialObjectMetadata) ([]corev1.Service, error) {
	var out []corev1.Service
	for _, label := range []string{v1alpha1.ExportLabel, v1alpha1.LinkerdExportLabel} {
		var labelled corev1.ServiceList
		if err := cl.List(ctx, &labelled, client.MatchingLabels{label: "true"}); err != nil {
			return nil, fmt.Errorf("list exported Services: %w", err)
		}
		out = append(out, labelled.Items...)
	}
	for i := range exports {
		var s corev1.Service
		err := cl.Get(ctx, client.ObjectKeyFromObject(&exports[i]), &s)
		switch {
		case apierrors.IsNotFound(err): // its problem says so
		case err != nil:
			return nil, fmt.Errorf("look at an exported Service: %w", err)
		default:
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b corev1.Service) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	return slices.CompactFunc(out, func(a, b corev1.Service) bool { return a.Namespace == b.Namespace && a.Name == b.Name }), nil
}

// selectable lists the namespaces, if a Link's export rules choose among them by their labels.
func selectable(ctx context.Context, cl cluster, links []v1alpha1.Link) ([]corev1.Namespace, error) {
	if !slices.ContainsFunc(links, func(l v1alpha1.Link) bool { return l.Spec.Export != nil && l.Spec.Export.NamespaceSelector != nil }) {
		return nil, nil
	}
	var list corev1.NamespaceList
	if err := cl.List(ctx, &list); err != nil {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	return list.Items, nil
}
