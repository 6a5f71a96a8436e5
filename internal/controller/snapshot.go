package controller

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/mirror"
)

// A snapshot is what the caches hold at one moment. Nothing in it may be changed.
type snapshot struct {
	services []corev1.Service
	slices   []discoveryv1.EndpointSlice
	pods     []corev1.Pod
	policies []v1alpha1.ExportPolicy
	networks []networkingv1.NetworkPolicy
	links    []v1alpha1.Link
	ledgers  []v1alpha1.Ledger
	trusts   []v1alpha1.PeerTrust
	invites  []v1alpha1.Invite
	joins    []v1alpha1.Join
	// namespaces, without what this package does not read of them.
	namespaces []corev1.Namespace
	// serviceExports are none where the cluster has no such kind.
	serviceExports []metav1.PartialObjectMetadata
	namespace      string
}

// home is what of this cluster decides on what is mirrored.
func (s *snapshot) home(own string) mirror.Home {
	h := mirror.Home{Own: own, Namespaces: make(map[string]map[string]string, len(s.namespaces))}
	for i := range s.namespaces {
		h.Namespaces[s.namespaces[i].Name] = s.namespaces[i].Labels
	}
	return h
}

// gather reads a snapshot from the caches behind c. Deep copies are spared.
// serviceExports: the cluster has the kind.
func gather(ctx context.Context, c client.Reader, namespace string, serviceExports bool) (*snapshot, error) {
	s := &snapshot{namespace: namespace}
	shared := client.UnsafeDisableDeepCopy
	in := client.InNamespace(namespace)
	var (
		services corev1.ServiceList
		slices   discoveryv1.EndpointSliceList
		pods     corev1.PodList
		policies v1alpha1.ExportPolicyList
		networks networkingv1.NetworkPolicyList
		links    v1alpha1.LinkList
		ledgers  v1alpha1.LedgerList
		trusts   v1alpha1.PeerTrustList
		invites  v1alpha1.InviteList
		joins    v1alpha1.JoinList
		names    corev1.NamespaceList
		exports  metav1.PartialObjectMetadataList
	)
	type list struct {
		into client.ObjectList
		opts []client.ListOption
	}
	lists := []list{
		{&services, nil}, {&slices, nil}, {&pods, nil}, {&policies, nil}, {&networks, nil}, {&links, nil}, {&names, nil},
		{&ledgers, []client.ListOption{in}}, {&trusts, []client.ListOption{in}},
		{&invites, []client.ListOption{in}}, {&joins, []client.ListOption{in}},
	}
	if serviceExports {
		exports.SetGroupVersionKind(catalog.ServiceExportKind.GroupVersion().WithKind(catalog.ServiceExportKind.Kind + "List"))
		lists = append(lists, list{&exports, nil})
	}
	for _, l := range lists {
		if err := c.List(ctx, l.into, append(l.opts, shared)...); err != nil {
			return nil, fmt.Errorf("read the cluster's state from the cache: %w", err)
		}
	}
	s.services, s.slices, s.pods, s.policies = services.Items, slices.Items, pods.Items, policies.Items
	s.networks, s.links, s.ledgers, s.trusts = networks.Items, links.Items, ledgers.Items, trusts.Items
	s.invites, s.joins = invites.Items, joins.Items
	s.namespaces, s.serviceExports = names.Items, exports.Items
	return s, nil
}

// kinds are the objects that caches are kept of, beside ServiceExports; any change of one wakes the brain.
func kinds() []client.Object {
	return []client.Object{
		&corev1.Service{}, &discoveryv1.EndpointSlice{}, &corev1.Pod{}, &corev1.Namespace{}, &networkingv1.NetworkPolicy{},
		&v1alpha1.Link{}, &v1alpha1.ExportPolicy{}, &v1alpha1.Ledger{}, &v1alpha1.PeerTrust{},
		&v1alpha1.Invite{}, &v1alpha1.Join{},
	}
}
