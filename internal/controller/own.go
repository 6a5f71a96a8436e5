package controller

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/rotation"
)

// The objects that hold what this cluster is. Only controllers read the Secrets;
// the ConfigMap is the public half.
const (
	rootSecret   = "causeway-root"
	issuerSecret = "causeway-issuer"
	keysSecret   = "causeway-keys"

	// IdentityConfigMap is what agents and gateways mount, and `causeway identity` prints.
	IdentityConfigMap = "causeway-identity"
)

// Keys of the ConfigMap.
const (
	KeyTrustDomain   = "trustDomain"
	KeyClusterName   = "clusterName"
	KeyRoot          = "root.pem"
	KeyLinkPublicKey = "linkPublicKey"
	KeyGateways      = "gateways"
	// KeyCASecret names the Secret that the root is brought by, if what peers pin is another's.
	KeyCASecret = "caSecret"
)

// own is this cluster's identity. It is immutable, but that its roots and issuers are
// exchanged whole. It must not be copied.
type own struct {
	trustDomain string
	linkKey     identity.LinkKey
	hopMaster   [32]byte
	issuers     atomic.Pointer[issuing]
}

// root is the one that signs now.
func (o *own) root() *identity.Root { return o.issuers.Load().roots.Current }

// loadOwn reads the cluster's identity, making what is missing. Replicas may do
// so at the same time: of two who make a Secret, the loser reads the winner's. What
// peers have been told to trust is not made anew in silence when it is lost.
func loadOwn(ctx context.Context, c client.Client, as Options, now time.Time) (*own, error) {
	// Read before the Secrets, which are there before it tells of them.
	told, err := published(ctx, c, as.Namespace)
	if err != nil {
		return nil, err
	}
	if told {
		for _, name := range []string{rootSecret, keysSecret} {
			if err := notLost(ctx, c, as.Namespace, name); err != nil {
				return nil, err
			}
		}
	}
	o := &own{}
	if err := o.loadTrust(ctx, c, as, now); err != nil {
		return nil, err
	}
	return o, o.loadKeys(ctx, c, as.Namespace)
}

// published reports whether the cluster's root and link key were told before.
func published(ctx context.Context, c client.Client, namespace string) (bool, error) {
	var cm corev1.ConfigMap
	err := c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: IdentityConfigMap}, &cm)
	if client.IgnoreNotFound(err) != nil {
		return false, fmt.Errorf("read ConfigMap %s/%s: %w", namespace, IdentityConfigMap, err)
	}
	return cm.Data[KeyRoot] != "" && cm.Data[KeyLinkPublicKey] != "", nil
}

// notLost refuses to go on without a Secret whose public half is with the peers.
func notLost(ctx context.Context, c client.Client, namespace, name string) error {
	err := c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &corev1.Secret{})
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("Secret %s/%s is gone, and peers trust what it held: restore it from a backup; "+
			"if it is lost for good, delete ConfigMap %s and Secret %s, too, and link every peer anew", namespace, name, IdentityConfigMap, issuerSecret)
	}
	if err != nil {
		return fmt.Errorf("read Secret %s/%s: %w", namespace, name, err)
	}
	return nil
}

// loadTrust reads roots and issuers.
func (o *own) loadTrust(ctx context.Context, c client.Client, as Options, now time.Time) error {
	namespace := as.Namespace
	roots, err := loadRoots(ctx, c, as, now)
	if err != nil {
		return err
	}
	o.trustDomain = roots.Current.TrustDomain()
	data, err := secret(ctx, c, namespace, issuerSecret, corev1.SecretTypeTLS, func() (map[string][]byte, error) {
		issuer, err := roots.Current.NewIssuer(now)
		if err != nil {
			return nil, err
		}
		return pair(issuer.MarshalPEM())
	})
	if err != nil {
		return err
	}
	// Roots are written before their issuers, so that they have to be read after them.
	if roots, err = loadRoots(ctx, c, as, now); err != nil {
		return err
	}
	state, err := rotation.Parse(data, roots.Known()...)
	if err != nil {
		return fmt.Errorf("Secret %s/%s: %w", namespace, issuerSecret, err)
	}
	if !roots.Honours(state) {
		// The root was revoked, and whoever did so ended before the issuer was, too: it is as good
		// as none. The leader stores another, under the next number; this one is for until then.
		number := state.Number
		if state, _, err = rotation.Decide(now, state, roots, nil, rotation.Request{}); err != nil {
			return err
		}
		state.Number = number
	}
	return o.adopt(roots, state)
}

// loadRoots reads the roots, making one, or taking the one that is brought, at the cluster's
// first start.
func loadRoots(ctx context.Context, c client.Client, as Options, now time.Time) (rotation.Roots, error) {
	data, err := secret(ctx, c, as.Namespace, rootSecret, corev1.SecretTypeTLS, func() (map[string][]byte, error) {
		if as.CASecret != "" {
			root, err := bring(ctx, c, as.Namespace, as.CASecret, now)
			if err != nil {
				return nil, err
			}
			return rotation.FirstRoots(root).Marshal()
		}
		var kubeSystem corev1.Namespace
		if err := c.Get(ctx, client.ObjectKey{Name: metav1.NamespaceSystem}, &kubeSystem); err != nil {
			return nil, fmt.Errorf("read the UID of namespace kube-system: %w", err)
		}
		trustDomain, err := identity.TrustDomainFor(as.ClusterName, string(kubeSystem.UID))
		if err != nil {
			return nil, err
		}
		root, err := identity.NewRoot(trustDomain, now)
		if err != nil {
			return nil, err
		}
		return pair(root.MarshalPEM())
	})
	if err != nil {
		return rotation.Roots{}, err
	}
	roots, err := rotation.ParseRoots(data)
	if err != nil {
		return rotation.Roots{}, fmt.Errorf("Secret %s/%s: %w", as.Namespace, rootSecret, err)
	}
	return roots, nil
}

func (o *own) loadKeys(ctx context.Context, c client.Client, namespace string) error {
	const linkKey, hopMaster = "link-key", "hop-master"
	data, err := secret(ctx, c, namespace, keysSecret, corev1.SecretTypeOpaque, func() (map[string][]byte, error) {
		key, err := identity.NewLinkKey()
		if err != nil {
			return nil, err
		}
		master := make([]byte, len(o.hopMaster))
		rand.Read(master)
		return map[string][]byte{linkKey: key.Bytes(), hopMaster: master}, nil
	})
	if err != nil {
		return err
	}
	o.linkKey, err = identity.ParseLinkKey(data[linkKey])
	if err != nil {
		return fmt.Errorf("Secret %s/%s: %w", namespace, keysSecret, err)
	}
	if len(data[hopMaster]) != len(o.hopMaster) {
		return fmt.Errorf("Secret %s/%s: %s has %d bytes, want %d", namespace, keysSecret, hopMaster, len(data[hopMaster]), len(o.hopMaster))
	}
	o.hopMaster = [32]byte(data[hopMaster])
	return nil
}

func pair(certPEM, keyPEM []byte, err error) (map[string][]byte, error) {
	return map[string][]byte{corev1.TLSCertKey: certPEM, corev1.TLSPrivateKeyKey: keyPEM}, err
}

// secret returns the data of a Secret, which is made by fill if it is missing.
func secret(ctx context.Context, c client.Client, namespace, name string, kind corev1.SecretType, fill func() (map[string][]byte, error)) (map[string][]byte, error) {
	key := client.ObjectKey{Namespace: namespace, Name: name}
	var s corev1.Secret
	err := c.Get(ctx, key, &s)
	if err == nil {
		return s.Data, nil
	}
	if !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("read Secret %v: %w", key, err)
	}
	data, err := fill()
	if err != nil {
		return nil, fmt.Errorf("make Secret %v: %w", key, err)
	}
	s = corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{v1alpha1.ManagedByLabel: v1alpha1.ManagedBy}},
		Type:       kind, Data: data,
	}
	err = c.Create(ctx, &s)
	if apierrors.IsAlreadyExists(err) {
		err = c.Get(ctx, key, &s)
	}
	if err != nil {
		return nil, fmt.Errorf("make Secret %v: %w", key, err)
	}
	return s.Data, nil
}

// publish keeps the ConfigMap with the public half as it should be. It writes
// only what differs. With nil gateways those that it names stay: they are not
// known yet. Of two who publish at once the loser gets a conflict or an
// AlreadyExists, as the API server has it.
func (o *own) publish(ctx context.Context, c client.Client, as Options, gateways []string) error {
	want := map[string]string{
		KeyTrustDomain:   o.trustDomain,
		KeyClusterName:   as.ClusterName,
		KeyRoot:          string(bytes.TrimSpace(o.root().AnchorPEM())) + "\n",
		KeyLinkPublicKey: base64.StdEncoding.EncodeToString(o.linkKey.Public()),
		KeyGateways:      strings.Join(gateways, ","),
	}
	if as.CASecret != "" && len(o.root().Way()) > 0 {
		want[KeyCASecret] = as.CASecret
	}
	key := client.ObjectKey{Namespace: as.Namespace, Name: IdentityConfigMap}
	var cm corev1.ConfigMap
	err := c.Get(ctx, key, &cm)
	if gateways == nil {
		want[KeyGateways] = cm.Data[KeyGateways]
	}
	switch {
	case apierrors.IsNotFound(err):
		cm = corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: as.Namespace, Name: IdentityConfigMap, Labels: map[string]string{v1alpha1.ManagedByLabel: v1alpha1.ManagedBy}},
			Data:       want,
		}
		err = c.Create(ctx, &cm)
	case err == nil && !maps.Equal(cm.Data, want):
		cm.Data = want
		err = c.Update(ctx, &cm)
	}
	if err != nil {
		return fmt.Errorf("publish the cluster's identity in ConfigMap %v: %w", key, err)
	}
	return nil
}

// controllerCredential signs this replica's own certificate, and shows the way to the root.
// Its key stays in memory.
func (o *own) controllerCredential(namespace string, now time.Time) (*identity.Credential, error) {
	name, err := identity.NewName(o.trustDomain, namespace, identity.ControllerServiceAccount)
	if err != nil {
		return nil, err
	}
	key, err := identity.NewPrivateKey()
	if err != nil {
		return nil, err
	}
	service := "causeway-controller." + namespace
	roots := o.issuers.Load().roots
	chain, err := roots.Current.SignController(key.Public(), name, []string{service + ".svc", service + ".svc.cluster.local"}, now)
	if err != nil {
		return nil, errors.Join(errors.New("sign the controller's certificate"), err)
	}
	for _, cross := range roots.Presented() {
		chain = append(chain, cross.Raw)
	}
	return identity.NewCredential(chain, key)
}
