package mirror

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
)

// ownerField is the cache's index of Services by the UID of the Link that owns them.
const ownerField = "causeway.dev/owner"

// Index registers with a manager's cache the index that Gather reads. Call it
// once, before the cache starts.
func Index(ctx context.Context, indexer client.FieldIndexer) error {
	if err := indexer.IndexField(ctx, &corev1.Service{}, ownerField, IndexOwner); err != nil {
		return fmt.Errorf("index Services by owner: %w", err)
	}
	return nil
}

// IndexField is the name of the index that Index registers, for clients that are
// told of their indexes otherwise.
const IndexField = ownerField

// IndexOwner returns the UIDs of the Links that own a Service: whatever became of its labels.
func IndexOwner(o client.Object) []string {
	var uids []string
	for _, ref := range o.GetOwnerReferences() {
		if isLinkRef(ref) {
			uids = append(uids, string(ref.UID))
		}
	}
	return uids
}

// Gather reads what stands for d's Link: from a cache, which is not changed.
func Gather(ctx context.Context, r client.Reader, d Desired) (Have, error) {
	g := gatherer{reader: r, have: Have{
		Services:   make(map[catalog.Key]*corev1.Service),
		Slices:     make(map[catalog.Key]*discoveryv1.EndpointSlice),
		Namespaces: make(map[string]bool),
		Leaving:    make(map[string]bool),
	}}
	if err := g.lists(ctx, d); err != nil {
		return Have{}, err
	}
	for _, w := range d.Mirrors {
		if err := g.want(ctx, w); err != nil {
			return Have{}, err
		}
	}
	for _, s := range g.have.Slices {
		of := catalog.Key{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}
		if err := get(ctx, r, of, g.have.Services, &corev1.Service{}); err != nil {
			return Have{}, err
		}
	}
	return g.have, nil
}

// gatherer is the state of one Gather.
type gatherer struct {
	reader client.Reader
	have   Have
}

// lists reads the Services that the Link owns and the slices that bear its marks.
func (g *gatherer) lists(ctx context.Context, d Desired) error {
	var services corev1.ServiceList
	if err := g.reader.List(ctx, &services, client.MatchingFields{ownerField: string(d.Link.UID)}, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list the mirrors of Link %s: %w", d.Link.Name, err)
	}
	for i := range services.Items {
		s := &services.Items[i]
		g.have.Services[catalog.Key{Namespace: s.Namespace, Name: s.Name}] = s
	}
	var endpoints discoveryv1.EndpointSliceList
	labels := client.MatchingLabels{v1alpha1.ManagedByLabel: v1alpha1.ManagedBy, v1alpha1.LinkLabel: d.Link.Name}
	if err := g.reader.List(ctx, &endpoints, labels, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list the EndpointSlices of Link %s: %w", d.Link.Name, err)
	}
	for i := range endpoints.Items {
		s := &endpoints.Items[i]
		g.have.Slices[catalog.Key{Namespace: s.Namespace, Name: s.Name}] = s
	}
	return nil
}

// want reads what stands under the names that w needs, and its namespace.
func (g *gatherer) want(ctx context.Context, w Want) error {
	k := w.key()
	if _, known := g.have.Namespaces[k.Namespace]; !known {
		if err := g.namespace(ctx, k.Namespace); err != nil {
			return err
		}
	}
	if !g.have.Namespaces[k.Namespace] {
		return nil
	}
	if err := get(ctx, g.reader, k, g.have.Services, &corev1.Service{}); err != nil {
		return err
	}
	for _, vip := range w.vips() {
		k := catalog.Key{Namespace: k.Namespace, Name: sliceName(k.Name, vip)}
		if err := get(ctx, g.reader, k, g.have.Slices, &discoveryv1.EndpointSlice{}); err != nil {
			return err
		}
	}
	return nil
}

func (g *gatherer) namespace(ctx context.Context, name string) error {
	var ns corev1.Namespace
	err := g.reader.Get(ctx, client.ObjectKey{Name: name}, &ns)
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("get namespace %s: %w", name, err)
	}
	g.have.Namespaces[name] = err == nil && ns.DeletionTimestamp.IsZero()
	g.have.Leaving[name] = err == nil && !ns.DeletionTimestamp.IsZero()
	return nil
}

// get reads the object k into found, unless it is there already or does not exist.
func get[T client.Object](ctx context.Context, r client.Reader, k catalog.Key, found map[catalog.Key]T, into T) error {
	if _, known := found[k]; known || k.Name == "" {
		return nil
	}
	err := r.Get(ctx, client.ObjectKey{Namespace: k.Namespace, Name: k.Name}, into)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("get %T %v: %w", into, k, err)
	}
	found[k] = into
	return nil
}
