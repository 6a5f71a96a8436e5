package controller

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/link"
)

// trusts keeps what is learnt of peers' issuers, in PeerTrusts. Any replica may
// learn; of two that do at once, one writes and the other finds it written.
type trusts struct {
	client    client.Client // reads live: learning is rare, and must not go back
	namespace string
}

// learn takes in a list of issuers that a peer sent. It returns the number of the
// newest list that is now kept. A list that the Link's root has not signed, or
// that is older than the one kept, changes nothing and is an error.
func (t trusts) learn(ctx context.Context, p link.Peer, der []byte) (uint64, error) {
	list, err := identity.VerifyIssuerList(p.Root, p.TrustDomain, der)
	if err != nil {
		return 0, fmt.Errorf("issuers of %s: %w", p.Name, err)
	}
	key := client.ObjectKey{Namespace: t.namespace, Name: p.Name}
	var kept v1alpha1.PeerTrust
	err = t.client.Get(ctx, key, &kept)
	switch {
	case apierrors.IsNotFound(err):
		kept = v1alpha1.PeerTrust{
			ObjectMeta: metav1.ObjectMeta{Namespace: t.namespace, Name: p.Name},
			Spec:       v1alpha1.PeerTrustSpec{LinkUID: p.UID, IssuerList: der},
		}
		err = t.client.Create(ctx, &kept)
	case err == nil:
		have, known := applied(p, &kept)
		switch {
		case known && have.Number > list.Number:
			return have.Number, fmt.Errorf("issuers of %s: the peer sent list %d, but list %d is known: a controller restored from a backup?", p.Name, list.Number, have.Number)
		case known && have.Number == list.Number:
			return have.Number, nil
		}
		kept.Spec = v1alpha1.PeerTrustSpec{LinkUID: p.UID, IssuerList: der}
		err = t.client.Update(ctx, &kept)
	}
	if err != nil {
		return 0, fmt.Errorf("keep the issuers of %s: %w", p.Name, err)
	}
	return list.Number, nil
}

// applied returns the list that a PeerTrust keeps for this very Link, verified
// again, and whether there is one.
func applied(p link.Peer, kept *v1alpha1.PeerTrust) (identity.IssuerList, bool) {
	if kept.Spec.LinkUID != p.UID {
		return identity.IssuerList{}, false
	}
	list, err := identity.VerifyIssuerList(p.Root, p.TrustDomain, kept.Spec.IssuerList)
	return list, err == nil
}
