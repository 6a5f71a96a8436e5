package controller

import (
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	toolscache "k8s.io/client-go/tools/cache"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayv1beta1 "sigs.k8s.io/gateway-api/apis/v1beta1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/ledger"
)

// changed holds the newest object of each key that changed; nil stands for a
// deleted object. Cluster-scoped objects have an empty namespace.
type changed[T any] map[catalog.Key]*T

// A batch is everything that arrived since the last pass. It is the snapshot that
// one pass decides from: objects in it are shared with the caches and immutable.
type batch struct {
	services       changed[corev1.Service]
	slices         changed[discoveryv1.EndpointSlice]
	pods           changed[corev1.Pod]
	namespaces     changed[corev1.Namespace]
	zones          map[string]string // by node; empty: the node has no zone, or is gone
	networks       changed[networkingv1.NetworkPolicy]
	policies       changed[v1alpha1.ExportPolicy]
	links          changed[v1alpha1.Link]
	ledgers        changed[v1alpha1.Ledger]
	trusts         changed[v1alpha1.PeerTrust]
	invites        changed[v1alpha1.Invite]
	joins          changed[v1alpha1.Join]
	serviceExports changed[metav1.PartialObjectMetadata]
	httpRoutes     changed[gatewayv1.HTTPRoute]
	grpcRoutes     changed[gatewayv1.GRPCRoute]
	grants         changed[gatewayv1.ReferenceGrant]
	betaGrants     changed[gatewayv1beta1.ReferenceGrant]
	// gatewayKeys are the keys of all existing objects, by kind of the Gateway API. It
	// has the kinds that were listed, and those that the cluster does not serve any more.
	// The objects in the batch are newer.
	gatewayKeys map[string]map[catalog.Key]bool
	// unreadKinds points to the list of the Gateway API kinds that are unread. It is nil
	// if the list has not changed. The objects of kinds that have left the list are in
	// this batch or in an earlier one.
	unreadKinds *[]string

	// conditionsKind is the version in which ServiceExports have conditions, or the zero
	// value if they have none. It is nil if it has not changed.
	conditionsKind *schema.GroupVersionKind
	// serviceExportKeys are the existing ServiceExports. It is nil if they were not
	// listed.
	serviceExportKeys map[catalog.Key]bool

	// peers are the Links whose peer's snapshot or addresses changed, catalogs those
	// whose peer's catalog changed, and mirrors those whose mirrors progressed.
	peers, catalogs, mirrors map[string]bool
	// stored are the results of ledger writes, ledgerList a live list of all Ledgers.
	stored       []storeResult
	ledgerList   []v1alpha1.Ledger
	ledgerListed bool
	// identity: this cluster's issuers or roots changed. inviteKeys: keys of open invites
	// were read.
	identity, inviteKeys bool
	// calls run in the reconciler's goroutine after the pass.
	calls []func()
}

// storeResult is what came of one ledger write.
type storeResult struct {
	write  ledger.Write
	object *v1alpha1.Ledger
	err    error
}

// inbox collects the changes between passes, and keeps the newest one per key. It is safe
// for concurrent use. While list reads a cache, all other calls wait.
type inbox struct {
	wake chan struct{} // holds one

	mu   sync.Mutex // guards next
	next *batch
}

func newInbox() *inbox { return &inbox{wake: make(chan struct{}, 1), next: new(batch)} }

// add lets f change the next batch and wakes the reconciler.
func (in *inbox) add(f func(*batch)) {
	in.mu.Lock()
	f(in.next)
	in.mu.Unlock()
	select {
	case in.wake <- struct{}{}:
	default:
	}
}

// take returns what arrived since the last take.
func (in *inbox) take() *batch {
	in.mu.Lock()
	defer in.mu.Unlock()
	b := in.next
	in.next = new(batch)
	return b
}

// list reads keys from a cache and adds them to the next batch. It blocks all events
// while it reads, so the keys are as new as the events before them. The error is that of
// read.
func (in *inbox) list(read func() (map[catalog.Key]bool, error), add func(*batch, map[catalog.Key]bool)) (
	err error) {
	in.add(func(b *batch) {
		var keys map[catalog.Key]bool
		if keys, err = read(); err == nil {
			add(b, keys)
		}
	})
	return err
}

func (in *inbox) peerChanged(link string) {
	in.add(func(b *batch) { put(&b.peers, link) })
}

func (in *inbox) catalogChanged(link string) {
	in.add(func(b *batch) { put(&b.catalogs, link) })
}

func (in *inbox) mirrorsChanged(link string) {
	in.add(func(b *batch) { put(&b.mirrors, link) })
}

func put(set *map[string]bool, key string) {
	if *set == nil {
		*set = make(map[string]bool)
	}
	(*set)[key] = true
}

// handler returns an informer's event handler that files objects under field.
func handler[T any](in *inbox, field func(*batch) *changed[T]) toolscache.ResourceEventHandler {
	file := func(o any, deleted bool) {
		if unknown, ok := o.(toolscache.DeletedFinalStateUnknown); ok {
			o = unknown.Obj
		}
		typed, ok := o.(*T)
		meta, ok2 := o.(metav1.Object)
		if !ok || !ok2 {
			return
		}
		key := catalog.Key{Namespace: meta.GetNamespace(), Name: meta.GetName()}
		if deleted {
			typed = nil
		}
		in.add(func(b *batch) {
			m := field(b)
			if *m == nil {
				*m = make(changed[T])
			}
			(*m)[key] = typed
		})
	}
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { file(o, false) },
		UpdateFunc: func(_, o any) { file(o, false) },
		DeleteFunc: func(o any) { file(o, true) },
	}
}

// nodeKind returns the object that makes an informer read only the metadata of Nodes.
func nodeKind() *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{
		TypeMeta: metav1.TypeMeta{APIVersion: corev1.SchemeGroupVersion.String(), Kind: "Node"},
	}
}

// zoneHandler returns an event handler for nodeKind that adds the zones of nodes to the
// inbox. It ignores other changes, because the kubelet writes its Node every few minutes.
func zoneHandler(in *inbox) toolscache.ResourceEventHandler {
	zone := func(o any) (node, zone string) {
		if unknown, ok := o.(toolscache.DeletedFinalStateUnknown); ok {
			o = unknown.Obj
		}
		if meta, ok := o.(metav1.Object); ok {
			return meta.GetName(), meta.GetLabels()[corev1.LabelTopologyZone]
		}
		return "", ""
	}
	file := func(node, zone string) {
		in.add(func(b *batch) {
			if b.zones == nil {
				b.zones = make(map[string]string)
			}
			b.zones[node] = zone
		})
	}
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc: func(o any) { file(zone(o)) },
		UpdateFunc: func(old, o any) {
			_, before := zone(old)
			if node, now := zone(o); now != before {
				file(node, now)
			}
		},
		DeleteFunc: func(o any) {
			node, _ := zone(o)
			file(node, "")
		},
	}
}
