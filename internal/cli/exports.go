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

// reportExports lists the Services that somebody asks to export, by a label or a ServiceExport, whether they can be
// exported or not, with the Links that admit them.
func reportExports(ctx context.Context, cl cluster, links []v1alpha1.Link, namespace string) ([]exportReport, error) {
	exports, err := serviceExports(ctx, cl)
	if err != nil {
		return nil, err
	}
	services, err := askedServices(ctx, cl, exports)
	if err != nil {
		return nil, err
	}
	namespaces, err := selectable(ctx, cl, links)
	if err != nil {
		return nil, err
	}
	x := catalog.NewIndex(catalog.Config{Namespace: namespace})
	for i := range links {
		x.SetLink(links[i].Name, &links[i])
	}
	for i := range namespaces {
		x.SetNamespace(namespaces[i].Name, &namespaces[i])
	}
	for i := range exports {
		x.SetServiceExport(catalog.Key{Namespace: exports[i].Namespace, Name: exports[i].Name}, &exports[i])
	}
	for i := range services {
		x.SetService(catalog.Key{Namespace: services[i].Namespace, Name: services[i].Name}, &services[i])
	}
	x.Flush()
	out := []exportReport{}
	for i := range services {
		s := &services[i]
		report := exportReport{Namespace: s.Namespace, Name: s.Name, Ports: reportPorts(s), Links: []string{}}
		if e, _ := x.Get(catalog.Key{Namespace: s.Namespace, Name: s.Name}); e != nil { // nil: its problem says why
			report.Links = append(report.Links, e.Links...)
		}
		out = append(out, report)
	}
	return out, nil
}

// serviceExports lists the cluster's ServiceExports, in the preferred version that the cluster has. It returns none
// if the cluster does not have the kind.
func serviceExports(ctx context.Context, cl cluster) ([]metav1.PartialObjectMetadata, error) {
	for _, kind := range catalog.ServiceExportKinds() {
		var list metav1.PartialObjectMetadataList
		list.SetGroupVersionKind(kind.GroupVersion().WithKind(kind.Kind + "List"))
		err := cl.List(ctx, &list)
		switch {
		case err == nil:
			return list.Items, nil
		case meta.IsNoMatchError(err), apierrors.IsNotFound(err), runtime.IsNotRegisteredError(err):
		default:
			return nil, fmt.Errorf("list ServiceExports: %w", err)
		}
	}
	return nil, nil
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
