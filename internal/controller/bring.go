package controller

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

// caNotTaken is the reason of an Event: what a brought Secret holds cannot be this cluster's root.
const caNotTaken = "RootNotTaken"

// bring reads the root that somebody else keeps in a Secret, which is never written.
func bring(ctx context.Context, c client.Reader, namespace, name string, now time.Time) (*identity.Root, error) {
	key := client.ObjectKey{Namespace: namespace, Name: name}
	var s corev1.Secret
	err := c.Get(ctx, key, &s)
	if apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("Secret %v, which is to hold this cluster's root, is not there: has its maker, such as cert-manager, made it?", key)
	}
	if err != nil {
		return nil, fmt.Errorf("read Secret %v: %w", key, err)
	}
	root, err := identity.BringRoot(s.Data[corev1.TLSCertKey], s.Data[corev1.TLSPrivateKeyKey], s.Data[corev1.ServiceAccountRootCAKey], now)
	if err != nil {
		return nil, fmt.Errorf("Secret %v cannot be this cluster's root: %w", key, err)
	}
	return root, nil
}

// source is where another root comes from. While what is brought cannot be read, or taken, it
// is as if nothing had changed there, and fault says why.
func (r *rotator) source(ctx context.Context, now time.Time, have rotation.Roots) (from rotation.Source, fault error) {
	from.Make = func() (*identity.Root, error) { return identity.NewRoot(r.own.trustDomain, now) }
	if r.caSecret == "" {
		return from, nil
	}
	from.Name = r.namespace + "/" + r.caSecret
	from.Brought, fault = bring(ctx, r.client, r.namespace, r.caSecret, now)
	if fault == nil && from.Brought.TrustDomain() != r.own.trustDomain {
		fault = fmt.Errorf("Secret %s holds a root of trust domain %s, and this cluster is %s, which cannot change: its URI must be spiffe://%s",
			from.Name, from.Brought.TrustDomain(), r.own.trustDomain, r.own.trustDomain)
	}
	if fault != nil {
		from.Brought = have.Current
		if have.Next != nil {
			from.Brought = have.Next
		}
	}
	return from, fault
}

// complain tells once of what keeps a brought root from being taken.
func (r *rotator) complain(fault error) {
	if fault == nil {
		r.complained = ""
		return
	}
	if r.complained == fault.Error() {
		return
	}
	r.complained = fault.Error()
	r.log.Warn("the root that is brought is not taken, and the one of before stays in force", "error", fault)
	about := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: r.namespace, Name: r.caSecret}}
	r.events.Eventf(about, nil, corev1.EventTypeWarning, caNotTaken, "Rotating", "%s", r.complained)
}
