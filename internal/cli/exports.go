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

// reportExports describes the Services that a label or a ServiceExport exports, whether
// they can be exported or not, with the Links that admit them. own is Causeway's
// namespace. Only Services of namespace are described, or all if it is empty.
func reportExports(
	ctx context.Context, cl cluster, links []v1alpha1.Link, own, namespace string,
) ([]exportReport, error) {
	exports, err := serviceExports(ctx, cl, namespace)
	if err != nil {
		return nil, err
	}
	services, err := askedServices(ctx, cl, exports, namespace)
	if err != nil {
		return nil, err
	}
	namespaces, err := selectable(ctx, cl, links, namespace)
	if err != nil {
		return nil, err
	}
	x := catalog.NewIndex(catalog.Config{Namespace: own})
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
		if e, _ := x.Get(catalog.Key{Namespace: s.Namespace,
			Name: s.Name}); e != nil { // nil: its problem says why
			report.Links = append(report.Links, e.Links...)
		}
		out = append(out, report)
	}
	return out, nil
}

// serviceExports lists ServiceExports in the preferred version that the cluster has. It
// returns none if the cluster does not have the kind.
func serviceExports(ctx context.Context, cl cluster, namespace string) ([]metav1.PartialObjectMetadata,
	error) {
	for _, kind := range catalog.ServiceExportKinds() {
		var list metav1.PartialObjectMetadataList
		list.SetGroupVersionKind(kind.GroupVersion().WithKind(kind.Kind + "List"))
		err := cl.List(ctx, &list, client.InNamespace(namespace))
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

// askedServices returns the Services that are labeled for export, and those of
// ServiceExports, each once, sorted.
func askedServices(
	ctx context.Context, cl cluster, exports []metav1.PartialObjectMetadata, namespace string,
) ([]corev1.Service, error) {
	var out []corev1.Service
	for _, label := range []string{v1alpha1.ExportLabel, v1alpha1.LinkerdExportLabel} {
		var labeled corev1.ServiceList
		if err := cl.List(ctx, &labeled, client.MatchingLabels{label: "true"},
			client.InNamespace(namespace)); err != nil {
			return nil, fmt.Errorf("list exported Services: %w", err)
		}
		out = append(out, labeled.Items...)
	}
	for i := range exports {
		var s corev1.Service
		err := cl.Get(ctx, client.ObjectKeyFromObject(&exports[i]), &s)
		switch {
		case apierrors.IsNotFound(err): // its problem says so
		case err != nil:
			return nil, fmt.Errorf("get exported Service: %w", err)
		default:
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b corev1.Service) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	return slices.CompactFunc(out, func(a,
		b corev1.Service) bool {
		return a.Namespace == b.Namespace && a.Name == b.Name
	}), nil
}

// selectable returns the namespaces whose labels the Links' export rules select by. It
// returns none if no rule does.
func selectable(ctx context.Context, cl cluster, links []v1alpha1.Link,
	namespace string) ([]corev1.Namespace, error) {
	selects := func(l v1alpha1.Link) bool {
		return l.Spec.Export != nil &&
			l.Spec.Export.NamespaceSelector != nil
	}
	if !slices.ContainsFunc(links, selects) {
		return nil, nil
	}
	if namespace != "" {
		var one corev1.Namespace
		if err := cl.Get(ctx, client.ObjectKey{Name: namespace}, &one); err != nil {
			return nil, fmt.Errorf("get namespace: %w", err)
		}
		return []corev1.Namespace{one}, nil
	}
	var list corev1.NamespaceList
	if err := cl.List(ctx, &list); err != nil {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	return list.Items, nil
}
