// Package clusteridtest makes cluster identities and Links to them for tests.
//
//	New ──clusterid.Load──▶ fake API server with the cluster's Secrets ──▶ Cluster
//
// What always holds: an identity is made by the real code, from real keys. Making one
// costs some milliseconds, so tests share them.
package clusteridtest

import (
	"context"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/clusterid"
	"github.com/causeway-mesh/causeway/internal/clusterinfo"
	"github.com/causeway-mesh/causeway/internal/kube/kubetest"
	"github.com/causeway-mesh/causeway/internal/link"
	"github.com/causeway-mesh/causeway/internal/rotation"
)

// Cluster is a cluster's identity with the API server that stores it.
type Cluster struct {
	*clusterid.Identity
	API *kubetest.API
}

// New makes a cluster whose trust domain is name-uid; uid has eight hexadecimal digits.
func New(name, uid string) *Cluster {
	return load(name, kubetest.New(nil, kubeSystem(uid)))
}

// NewWithLinkKey makes a cluster that has the link key of another one.
func NewWithLinkKey(name, uid string, of *Cluster) *Cluster {
	return load(name, kubetest.New(nil, kubeSystem(uid), of.secret("causeway-keys")))
}

func kubeSystem(uid string) *corev1.Namespace {
	return kubetest.KubeSystem(types.UID(uid + "-0000-4000-8000-000000000000"))
}

func load(name string, api *kubetest.API) *Cluster {
	o := clusterid.Options{ClusterName: name, Namespace: kubetest.Namespace}
	id, err := clusterid.Load(context.Background(), api, o)
	if err != nil {
		panic(err)
	}
	if err := id.Publish(context.Background(), api, nil); err != nil {
		panic(err)
	}
	return &Cluster{Identity: id, API: api}
}

// secret returns a copy of one of the cluster's Secrets that can be created elsewhere.
func (c *Cluster) secret(name string) *corev1.Secret {
	var s corev1.Secret
	key := client.ObjectKey{Namespace: kubetest.Namespace, Name: name}
	if err := c.API.Get(context.Background(), key, &s); err != nil {
		panic(err)
	}
	s.ResourceVersion, s.UID = "", ""
	return &s
}

// Rotated returns the cluster as it is after its root was rotated or, with revoke,
// revoked. c itself does not change.
func (c *Cluster) Rotated(revoke bool) *Cluster {
	ctx := context.Background()
	api := kubetest.New(nil,
		c.secret("causeway-root"), c.secret("causeway-issuer"), c.secret("causeway-keys"))
	next := load("", api)
	rotator := clusterid.NewRotator(clusterid.RotatorConfig{
		Identity:     next.Identity,
		Client:       api,
		IsLeader:     func() bool { return true },
		Acknowledged: func() map[string]uint64 { return nil },
		OnChange:     func() {},
		Events:       events.NewFakeRecorder(64),
		Log:          slog.New(slog.DiscardHandler),
	})
	var cm corev1.ConfigMap
	key := client.ObjectKey{Namespace: kubetest.Namespace, Name: clusterinfo.IdentityConfigMap}
	if err := api.Get(ctx, key, &cm); err != nil {
		panic(err)
	}
	request := fmt.Sprintf(`{"id":"a","root":true,"revoke":%v}`, revoke)
	cm.Annotations = map[string]string{rotation.RequestAnnotation: request}
	if err := api.Update(ctx, &cm); err != nil {
		panic(err)
	}
	now := time.Now()
	for range 4 {
		if _, err := rotator.Step(ctx, now); err != nil {
			panic(err)
		}
	}
	return next
}

// SignedList signs a list of the cluster's issuers with a number of the caller's choice.
func (c *Cluster) SignedList(number uint64) []byte {
	roots, err := rotation.ParseRoots(c.secret("causeway-root").Data)
	if err != nil {
		panic(err)
	}
	state, err := rotation.Parse(c.secret("causeway-issuer").Data, roots.Known()...)
	if err != nil {
		panic(err)
	}
	der, err := roots.Current.SignIssuerList(number, state.Listed())
	if err != nil {
		panic(err)
	}
	return der
}

// Own is the cluster's public half as Links are judged against it.
func (c *Cluster) Own() link.Own {
	key, err := link.ParseKey(c.LinkKey().Public())
	if err != nil {
		panic(err)
	}
	return link.Own{TrustDomain: c.TrustDomain(), LinkKey: key}
}

// Link returns a valid Link to c with a name that exports and imports everything.
func (c *Cluster) Link(name string, gateways ...string) *v1alpha1.Link {
	root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Issuers().Anchor().Raw})
	return &v1alpha1.Link{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("link-" + name), Generation: 1},
		Spec: v1alpha1.LinkSpec{
			TrustDomain:   c.TrustDomain(),
			Root:          string(root[:len(root)-1]),
			Gateways:      gateways,
			LinkPublicKey: base64.StdEncoding.EncodeToString(c.LinkKey().Public()),
			Export:        &v1alpha1.ExportRules{Services: v1alpha1.AllServices},
			Import:        &v1alpha1.ImportRules{Services: v1alpha1.AllServices},
		},
	}
}

// PeerOf returns the peer that a valid Link names, as c sees it.
func (c *Cluster) PeerOf(l *v1alpha1.Link) link.Peer {
	judgment := link.Judge(c.Own(), []v1alpha1.Link{*l})
	p, ok := judgment.Peers[l.Name]
	if !ok {
		panic(judgment.Faults[l.Name])
	}
	return p
}
