package clusterid

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/rotation"
)

// InvalidCASecret is the reason of an Event: the content of the configured CA Secret
// cannot be this cluster's root.
const InvalidCASecret = "InvalidCASecret"

// importRoot reads the root from the Secret of an external CA. Causeway never writes it.
func importRoot(ctx context.Context, c client.Reader, namespace, name string,
	now time.Time) (*identity.Root, error) {
	key := client.ObjectKey{Namespace: namespace, Name: name}
	var s corev1.Secret
	err := c.Get(ctx, key, &s)
	if apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("the CA Secret %v does not exist: "+
			"check that its issuer, such as cert-manager, has created it", key)
	}
	if err != nil {
		return nil, fmt.Errorf("read the CA Secret %v: %w", key, err)
	}
	root, err := identity.ImportRoot(s.Data[corev1.TLSCertKey], s.Data[corev1.TLSPrivateKeyKey],
		s.Data[corev1.ServiceAccountRootCAKey], now)
	if err != nil {
		return nil, fmt.Errorf("the CA Secret %v cannot be this cluster's root: %w", key, err)
	}
	return root, nil
}

// rootSource says where a successor of the root comes from. If the external CA's Secret
// cannot be used, fault says why and the source offers the newest root that is known, so
// that nothing changes.
func (r *Rotator) rootSource(ctx context.Context, now time.Time,
	have rotation.Roots) (from rotation.RootSource, fault error) {
	o, trustDomain := r.c.Identity.options, r.c.Identity.trustDomain
	from.Generate = func() (*identity.Root, error) { return identity.NewRoot(trustDomain, now) }
	if o.CASecret == "" {
		return from, nil
	}
	from.SecretName = o.Namespace + "/" + o.CASecret
	from.External, fault = importRoot(ctx, r.c.Client, o.Namespace, o.CASecret, now)
	if fault == nil && from.External.TrustDomain() != trustDomain {
		fault = fmt.Errorf("the CA Secret %s holds a root of trust domain %s, but this cluster's trust "+
			"domain "+
			"is %s and cannot change: set the certificate's URI to spiffe://%s",
			from.SecretName, from.External.TrustDomain(), trustDomain, trustDomain)
	}
	if fault != nil {
		from.External = have.Current
		if have.Next != nil {
			from.External = have.Next
		}
	}
	return from, fault
}

// reportCAFault logs a fault of the CA Secret and emits an Event, once until the fault
// changes.
func (r *Rotator) reportCAFault(fault error) {
	if fault == nil {
		r.reportedFault = ""
		return
	}
	if r.reportedFault == fault.Error() {
		return
	}
	r.reportedFault = fault.Error()
	o := r.c.Identity.options
	r.c.Log.Warn("ignoring the CA in the configured Secret; keeping the current root", "error", fault)
	about := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: o.CASecret}}
	r.c.Events.Eventf(about, nil, corev1.EventTypeWarning, InvalidCASecret, "Rotating", "%s", r.reportedFault)
}
