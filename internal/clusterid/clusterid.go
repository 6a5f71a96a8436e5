// Package clusterid holds what this cluster is to its peers and its own processes: the
// trust domain, the root and the issuers of certificates, the link key, and the hop
// master key.
//
//	Secrets ──Load──▶ Identity ──▶ hello to peers, node streams, signer, own credential
//	Secrets ──Rotator, every replica──▶ Identity          (adopts what is stored)
//	request, acknowledgements ──Rotator, leader──▶ Secrets (decides what is stored)
//	Identity ──Publish, leader──▶ ConfigMap causeway-identity, the public half
//
// What always holds:
//   - Private keys are in Secrets that only controllers read, and in memory.
//   - A lost Secret whose public half peers may hold is never replaced silently.
//   - A Snapshot is immutable. Rotation replaces it as a whole.
//   - An older generation than the one in force is never adopted.
//   - Only the leader changes what is stored, except at the first start of a cluster.
package clusterid

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/clusterinfo"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/rotation"
)

// Names of the Secrets that hold the private half. Only controllers read them.
const (
	rootSecret   = "causeway-root"
	issuerSecret = "causeway-issuer"
	keysSecret   = "causeway-keys"
)

// Options configure Load.
type Options struct {
	// ClusterName begins the trust domain at the first start of a cluster. Required.
	ClusterName string
	// Namespace is Causeway's own namespace. Required.
	Namespace string
	// CASecret names a Secret of Namespace in which an external issuer, such as
	// cert-manager, keeps this cluster's root. If empty, Causeway makes its own root.
	CASecret string
}

// Identity is this cluster's identity. Its trust domain and keys never change; its
// roots and issuers are replaced as a whole by a Rotator. It is safe for concurrent use
// and must not be copied.
type Identity struct {
	options      Options
	trustDomain  string
	linkKey      identity.LinkKey
	hopMasterKey [32]byte
	current      atomic.Pointer[Snapshot]

	mu                   sync.Mutex // guards what follows
	credential           *identity.Credential
	credentialGeneration uint64 // generation of the roots that signed credential
}

// Load reads the cluster's identity from its Secrets and creates those that are
// missing. Several replicas may call it at once: when two create the same Secret, the
// loser reads the winner's. Load fails if a Secret is gone that peers may depend on,
// which is the case once the public half has been published.
func Load(ctx context.Context, c client.Client, o Options) (*Identity, error) {
	return load(ctx, c, o, time.Now())
}

func load(ctx context.Context, c client.Client, o Options, now time.Time) (*Identity, error) {
	// The ConfigMap is written after the Secrets, so it must be read before them.
	published, err := isPublished(ctx, c, o.Namespace)
	if err != nil {
		return nil, err
	}
	if published {
		for _, name := range []string{rootSecret, keysSecret} {
			if err := requireSecret(ctx, c, o.Namespace, name); err != nil {
				return nil, err
			}
		}
	}
	i := &Identity{options: o}
	if err := i.loadAuthorities(ctx, c, now); err != nil {
		return nil, err
	}
	return i, i.loadKeys(ctx, c)
}

// TrustDomain is the trust domain of every name that this cluster signs. It implements
// signer.Issuer.
func (i *Identity) TrustDomain() string { return i.trustDomain }

// LinkKey is the X25519 key pair from which this cluster and each peer derive a secret.
func (i *Identity) LinkKey() identity.LinkKey { return i.linkKey }

// HopMasterKey derives the keys with which gateways authenticate connections that they
// hand over inside this cluster.
func (i *Identity) HopMasterKey() [32]byte { return i.hopMasterKey }

// Issuers returns the roots and issuers that are in force now.
func (i *Identity) Issuers() *Snapshot { return i.current.Load() }

// RootHash identifies the certificate that peers pin. Invite tokens carry it.
func (i *Identity) RootHash() [32]byte { return identity.RootHash(i.Issuers().Anchor()) }

// catalogService is the name under which gateways know the controllers' replicas.
const catalogService = "causeway/catalog"

// ReplicaID names a controller replica to peers, by the UID of its pod. Gateways of this
// cluster hand a stream that asks for it to that replica. It tells nothing about the pod.
func (i *Identity) ReplicaID(podUID string) [8]byte {
	return identity.EndpointID(identity.EndpointKey(i.hopMasterKey), catalogService, podUID)
}

// Hello is what peers learn about this cluster in every catalog stream.
type Hello struct {
	// IssuerList is the signed list of issuers, DER.
	IssuerList []byte
	// LinkPublicKey is the public half of the link key.
	LinkPublicKey []byte
}

// Hello returns what to send to peers now. Its content changes with Issuers.
func (i *Identity) Hello() Hello {
	return Hello{IssuerList: i.Issuers().SignedList(), LinkPublicKey: i.linkKey.Public()}
}

// SignWorkload signs a workload certificate with the current issuer. It implements
// signer.Issuer.
func (i *Identity) SignWorkload(pub *ecdsa.PublicKey, name identity.Name, now time.Time) ([][]byte, error) {
	return i.Issuers().state.Current.SignWorkload(pub, name, now)
}

func (i *Identity) loadAuthorities(ctx context.Context, c client.Client, now time.Time) error {
	roots, err := i.loadRoots(ctx, c, now)
	if err != nil {
		return err
	}
	i.trustDomain = roots.Current.TrustDomain()
	data, err := ensureSecret(ctx, c, i.secretKey(issuerSecret), corev1.SecretTypeTLS,
		func() (map[string][]byte, error) {
			issuer, err := roots.Current.NewIssuer(now)
			if err != nil {
				return nil, err
			}
			return keyPairData(issuer.MarshalPEM())
		})
	if err != nil {
		return err
	}
	// The leader writes roots before issuers. Reading the roots again after the issuers
	// guarantees that the root of each issuer is known.
	if roots, err = i.loadRoots(ctx, c, now); err != nil {
		return err
	}
	state, err := rotation.Parse(data, roots.Known()...)
	if err != nil {
		return fmt.Errorf("parse Secret %v: %w", i.secretKey(issuerSecret), err)
	}
	if !roots.Trusts(state) {
		// A revocation of the root ended before it replaced the issuer. The stored
		// issuer must not be used. The leader will store a successor under the next
		// number; until then this replica signs with one that it keeps in memory.
		number := state.Number
		state, _, err = rotation.Decide(now, state, roots, nil, rotation.Request{})
		if err != nil {
			return err
		}
		state.Number = number
	}
	return i.adopt(roots, state)
}

// loadRoots reads the roots. At the first start of a cluster it makes a root, or imports
// the one of the external CA.
func (i *Identity) loadRoots(ctx context.Context, c client.Client, now time.Time) (rotation.Roots, error) {
	o := i.options
	data, err := ensureSecret(ctx, c, i.secretKey(rootSecret), corev1.SecretTypeTLS,
		func() (map[string][]byte, error) {
			if o.CASecret != "" {
				root, err := importRoot(ctx, c, o.Namespace, o.CASecret, now)
				if err != nil {
					return nil, err
				}
				return rotation.NewRoots(root).Marshal()
			}
			var kubeSystem corev1.Namespace
			err := c.Get(ctx, client.ObjectKey{Name: metav1.NamespaceSystem}, &kubeSystem)
			if err != nil {
				return nil, fmt.Errorf("read the UID of namespace kube-system: %w", err)
			}
			trustDomain, err := identity.TrustDomainFor(o.ClusterName, string(kubeSystem.UID))
			if err != nil {
				return nil, err
			}
			root, err := identity.NewRoot(trustDomain, now)
			if err != nil {
				return nil, err
			}
			return keyPairData(root.MarshalPEM())
		})
	if err != nil {
		return rotation.Roots{}, err
	}
	roots, err := rotation.ParseRoots(data)
	if err != nil {
		return rotation.Roots{}, fmt.Errorf("parse Secret %v: %w", i.secretKey(rootSecret), err)
	}
	return roots, nil
}

func (i *Identity) loadKeys(ctx context.Context, c client.Client) error {
	const linkKey, hopMasterKey = "link-key", "hop-master"
	key := i.secretKey(keysSecret)
	data, err := ensureSecret(ctx, c, key, corev1.SecretTypeOpaque, func() (map[string][]byte, error) {
		link, err := identity.NewLinkKey()
		if err != nil {
			return nil, err
		}
		master := make([]byte, len(i.hopMasterKey))
		rand.Read(master)
		return map[string][]byte{linkKey: link.Bytes(), hopMasterKey: master}, nil
	})
	if err != nil {
		return err
	}
	i.linkKey, err = identity.ParseLinkKey(data[linkKey])
	if err != nil {
		return fmt.Errorf("parse Secret %v: %w", key, err)
	}
	if have, want := len(data[hopMasterKey]), len(i.hopMasterKey); have != want {
		return fmt.Errorf("parse Secret %v: %s has %d bytes, want %d", key, hopMasterKey, have, want)
	}
	i.hopMasterKey = [32]byte(data[hopMasterKey])
	return nil
}

func (i *Identity) secretKey(name string) client.ObjectKey {
	return client.ObjectKey{Namespace: i.options.Namespace, Name: name}
}

// requireSecret fails if a Secret is gone whose public half peers may hold.
func requireSecret(ctx context.Context, c client.Client, namespace, name string) error {
	err := c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &corev1.Secret{})
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("Secret %s/%s is gone and peers trust what it held: restore it from a backup; "+
			"if it is lost for good, delete ConfigMap %s and Secret %s too, and link every peer again",
			namespace, name, clusterinfo.IdentityConfigMap, issuerSecret)
	}
	if err != nil {
		return fmt.Errorf("read Secret %s/%s: %w", namespace, name, err)
	}
	return nil
}

func keyPairData(certPEM, keyPEM []byte, err error) (map[string][]byte, error) {
	return map[string][]byte{corev1.TLSCertKey: certPEM, corev1.TLSPrivateKeyKey: keyPEM}, err
}

// ensureSecret returns the data of a Secret. If the Secret is missing, it creates it with
// the data that generate returns.
func ensureSecret(ctx context.Context, c client.Client, key client.ObjectKey, kind corev1.SecretType,
	generate func() (map[string][]byte, error)) (map[string][]byte, error) {
	var s corev1.Secret
	err := c.Get(ctx, key, &s)
	if err == nil {
		return s.Data, nil
	}
	if !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("read Secret %v: %w", key, err)
	}
	data, err := generate()
	if err != nil {
		return nil, fmt.Errorf("create Secret %v: %w", key, err)
	}
	s = corev1.Secret{ObjectMeta: managedMeta(key), Type: kind, Data: data}
	err = c.Create(ctx, &s)
	if apierrors.IsAlreadyExists(err) {
		err = c.Get(ctx, key, &s)
	}
	if err != nil {
		return nil, fmt.Errorf("create Secret %v: %w", key, err)
	}
	return s.Data, nil
}

func managedMeta(key client.ObjectKey) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace: key.Namespace,
		Name:      key.Name,
		Labels:    map[string]string{v1alpha1.ManagedByLabel: v1alpha1.ManagedBy},
	}
}

// Credential returns this replica's own certificate and key. It signs a new one when half
// of the lifetime is over and when the roots change. The key never leaves memory.
func (i *Identity) Credential() (*identity.Credential, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	generation := i.Issuers().RootGeneration()
	now := time.Now()
	if i.credential == nil || now.After(i.credential.RenewAt()) || i.credentialGeneration != generation {
		renewed, err := i.newCredential(now)
		if err != nil {
			return nil, err
		}
		i.credential, i.credentialGeneration = renewed, generation
	}
	return i.credential, nil
}

// CredentialWithRoot returns the credential together with the root, for a cluster that
// does not hold the root yet and verifies it by the hash in an invite token.
func (i *Identity) CredentialWithRoot() (*identity.Credential, error) {
	c, err := i.Credential()
	if err != nil {
		return nil, err
	}
	return c.WithRoot(i.Issuers().Anchor()), nil
}

// newCredential signs a controller certificate. Its chain contains the cross-signed
// certificates that peers need when they pin another generation of the root.
func (i *Identity) newCredential(now time.Time) (*identity.Credential, error) {
	namespace := i.options.Namespace
	name, err := identity.NewName(i.trustDomain, namespace, identity.ControllerServiceAccount)
	if err != nil {
		return nil, err
	}
	key, err := identity.NewPrivateKey()
	if err != nil {
		return nil, err
	}
	service := "causeway-controller." + namespace
	dnsNames := []string{service + ".svc", service + ".svc.cluster.local"}
	roots := i.Issuers().roots
	chain, err := roots.Current.SignController(key.Public(), name, dnsNames, now)
	if err != nil {
		return nil, errors.Join(errors.New("sign the controller's certificate"), err)
	}
	for _, cross := range roots.Presented() {
		chain = append(chain, cross.Raw)
	}
	return identity.NewCredential(chain, key)
}
