package mirror

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/fields"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
)

// Names of the indexes of the cache. They are exported for clients whose indexes are
// registered in another way than by RegisterIndexes.
const (
	// OwnerIndex finds Services by the UID of the Link that owns them; see IndexOwner.
	OwnerIndex = "causeway.dev/owner"
	// ServiceIndex finds Causeway's EndpointSlices with unusual names by
	// "namespace/service"; see IndexService.
	ServiceIndex = "causeway.dev/service"
	// LinkIndex finds Causeway's EndpointSlices and Namespaces by the Link that their
	// label names; see IndexLink.
	LinkIndex = "causeway.dev/link"
)

// RegisterIndexes registers with a manager's cache the indexes that a Writer reads. Call
// it once, before the cache starts.
func RegisterIndexes(ctx context.Context, indexer client.FieldIndexer) error {
	for _, i := range []struct {
		kind    client.Object
		field   string
		extract client.IndexerFunc
	}{
		{&corev1.Service{}, OwnerIndex, IndexOwner},
		{&discoveryv1.EndpointSlice{}, ServiceIndex, IndexService},
		{&discoveryv1.EndpointSlice{}, LinkIndex, IndexLink},
		{&corev1.Namespace{}, LinkIndex, IndexLink},
	} {
		if err := indexer.IndexField(ctx, i.kind, i.field, i.extract); err != nil {
			return fmt.Errorf("index %T by %s: %w", i.kind, i.field, err)
		}
	}
	return nil
}

// IndexOwner returns the UIDs of the Links that own an object. It does not use labels.
func IndexOwner(o client.Object) []string {
	var uids []string
	for _, ref := range o.GetOwnerReferences() {
		if isLinkRef(ref) {
			uids = append(uids, string(ref.UID))
		}
	}
	return uids
}

// IndexService returns "namespace/service" for an EndpointSlice that has Causeway's label
// but not the name that a slice of that mirror has. The index finds such slices of one
// mirror without a walk of all slices in the cluster. It leaves out slices with the usual
// names, because a Writer gets those by name and an index of them would take much memory.
func IndexService(o client.Object) []string {
	service := labeledMirror(o)
	if service == "" || o.GetName() == service+sliceSuffix4 || o.GetName() == service+sliceSuffix6 {
		return nil
	}
	return []string{o.GetNamespace() + "/" + service}
}

// labeledMirror returns the name of the mirror to which an EndpointSlice belongs
// according to its labels. The mirror is in the same namespace. The name is empty if the
// slice does not have Causeway's label.
func labeledMirror(o client.Object) string {
	if labels := o.GetLabels(); labels[v1alpha1.ManagedByLabel] == v1alpha1.ManagedBy {
		return labels[discoveryv1.LabelServiceName]
	}
	return ""
}

// IndexLink returns the Link that the labels of one of Causeway's objects name.
func IndexLink(o client.Object) []string {
	labels := o.GetLabels()
	if link := labels[v1alpha1.LinkLabel]; link != "" &&
		labels[v1alpha1.ManagedByLabel] == v1alpha1.ManagedBy {
		return []string{link}
	}
	return nil
}

// LinkKey names a mirror of one Link. An empty Link stands for every Link that has a
// mirror of that name, and a Key without a Name for every mirror in the namespace.
type LinkKey struct {
	Link string
	Key  catalog.Key
}

// KeysOf returns the mirrors that a Service, EndpointSlice or Namespace concerns: those
// to Touch when it appears, changes or goes away. Most objects of a cluster concern none.
// For an object that is gone its namespace, name, labels and owner references are enough,
// and for Services and Namespaces the name alone.
func KeysOf(o client.Object) []LinkKey {
	switch o := o.(type) {
	case *corev1.Namespace:
		return []LinkKey{{Key: catalog.Key{Namespace: o.Name}}}
	case *corev1.Service:
		return serviceKeys(o)
	case *discoveryv1.EndpointSlice:
		return sliceKeys(o)
	}
	return nil
}

// serviceKeys names the mirror of the Service's name, and the Links that may own it
// though they do not know it yet.
func serviceKeys(svc *corev1.Service) []LinkKey {
	k := keyOf(svc)
	out := append(make([]LinkKey, 0, 2), LinkKey{Key: k})
	for _, ref := range svc.OwnerReferences {
		if isLinkRef(ref) {
			out = append(out, LinkKey{Link: ref.Name, Key: k})
		}
	}
	return out
}

// sliceKeys names the mirror that an EndpointSlice claims to belong to, and the one whose
// name it bears: both labels and owner references are a tenant's to edit.
func sliceKeys(slice *discoveryv1.EndpointSlice) []LinkKey {
	link := ""
	if slice.Labels[v1alpha1.ManagedByLabel] == v1alpha1.ManagedBy {
		link = slice.Labels[v1alpha1.LinkLabel]
	}
	named := strings.TrimSuffix(strings.TrimSuffix(slice.Name, sliceSuffix6), sliceSuffix4)
	if link == "" && len(named) == len(slice.Name) {
		return nil
	}
	var out []LinkKey
	if of := slice.Labels[discoveryv1.LabelServiceName]; of != "" && link != "" {
		out = append(out, LinkKey{Link: link, Key: catalog.Key{Namespace: slice.Namespace, Name: of}})
	}
	if len(named) < len(slice.Name) && (len(out) == 0 || out[0].Key.Name != named) {
		out = append(out, LinkKey{Key: catalog.Key{Namespace: slice.Namespace, Name: named}})
	}
	return out
}

// reader reads the existing objects of one mirror from the cache, with our own recent
// writes applied to them.
type reader struct {
	client.Reader
	expected *expectations
	now      time.Time
	// overlaid is how long the first of the applied writes stays in effect; 0: none was
	// applied.
	overlaid time.Duration
}

// have reads the existing objects of the mirror k. w is the wanted mirror; nil: it is not
// wanted.
func (r *reader) have(ctx context.Context, k catalog.Key, w *Want, companions []Companion) (Have, error) {
	var h Have
	var err error
	if h.Service, err = r.service(ctx, k); err != nil {
		return Have{}, err
	}
	if h.Slices, err = r.slices(ctx, k, w); err != nil {
		return Have{}, err
	}
	for i := range companions {
		if companions[i].Service, err = r.service(ctx, companions[i].Want.key()); err != nil {
			return Have{}, err
		}
	}
	h.Companions = companions
	if w == nil || h.Service != nil && len(h.Slices) >= len(w.Entry.VIPs) {
		h.NamespaceExists = true // nothing is going to be created
		return h, nil
	}
	h.NamespaceExists, h.NamespaceTerminating, err = r.namespace(ctx, k.Namespace)
	return h, err
}

func (r *reader) service(ctx context.Context, k catalog.Key) (*corev1.Service, error) {
	svc := &corev1.Service{}
	found, err := r.get(ctx, k, svc)
	if err != nil {
		return nil, err
	}
	if !found {
		svc = nil
	}
	svc, left := r.expected.service(k, svc, r.now)
	r.overlaid = sooner(r.overlaid, left)
	return svc, nil
}

// slices returns the slices that claim to belong to k, and those with the names of w's.
func (r *reader) slices(ctx context.Context, k catalog.Key, w *Want) ([]*discoveryv1.EndpointSlice, error) {
	var list discoveryv1.EndpointSliceList
	err := r.List(ctx, &list, byField(ServiceIndex, k.String()), client.UnsafeDisableDeepCopy)
	if err != nil {
		return nil, fmt.Errorf("list the EndpointSlices of %v: %w", k, err)
	}
	out := make([]*discoveryv1.EndpointSlice, 0, 2)
	for i := range list.Items {
		out = r.appendSlice(out, keyOf(&list.Items[i]), &list.Items[i])
	}
	for _, suffix := range []string{sliceSuffix4, sliceSuffix6} {
		name := catalog.Key{Namespace: k.Namespace, Name: k.Name + suffix}
		slice := &discoveryv1.EndpointSlice{}
		found, err := r.get(ctx, name, slice)
		if err != nil {
			return nil, err
		}
		if !found {
			slice = nil
		}
		if w.hasSlice(suffix) || slice == nil || labeledMirror(slice) == k.Name {
			out = r.appendSlice(out, name, slice)
		}
	}
	return out, nil
}

// hasSlice reports whether the wanted mirror has a slice whose name ends with suffix.
func (w *Want) hasSlice(suffix string) bool {
	return w != nil && slices.ContainsFunc(w.Entry.VIPs, func(vip netip.Addr) bool {
		return sliceSuffix(vip) == suffix
	})
}

// appendSlice appends a slice of the cache, with our own recent write applied to it.
func (r *reader) appendSlice(
	out []*discoveryv1.EndpointSlice, k catalog.Key, cached *discoveryv1.EndpointSlice,
) []*discoveryv1.EndpointSlice {
	slice, left := r.expected.slice(k, cached, r.now)
	r.overlaid = sooner(r.overlaid, left)
	if slice == nil {
		return out
	}
	return append(out, slice)
}

func (r *reader) namespace(ctx context.Context, name string) (exists, terminating bool, err error) {
	var ns corev1.Namespace
	found, err := r.get(ctx, catalog.Key{Name: name}, &ns)
	switch {
	case err != nil:
		return false, false, err
	case !found:
		return r.expected.namespace(name, r.now), false, nil
	}
	return ns.DeletionTimestamp.IsZero(), !ns.DeletionTimestamp.IsZero(), nil
}

// get reads one object without copying what it points to.
func (r *reader) get(ctx context.Context, k catalog.Key, into client.Object) (bool, error) {
	err := r.Get(ctx, client.ObjectKey{
		Namespace: k.Namespace,
		Name:      k.Name,
	}, into, client.UnsafeDisableDeepCopy)
	switch {
	case err == nil:
		return true, nil
	case apierrors.IsNotFound(err):
		return false, nil
	}
	return false, fmt.Errorf("get %T %v: %w", into, k, err)
}

func byField(field, value string) client.ListOption {
	return client.MatchingFieldsSelector{Selector: fields.OneTermEqualSelector(field, value)}
}
