package controller

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/clusterid/clusteridtest"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/invite"
	joinwire "github.com/causeway-mesh/causeway/internal/invite/wire"
	"github.com/causeway-mesh/causeway/internal/link"
)

var south = sync.OnceValue(func() *clusteridtest.Cluster { return clusteridtest.New("south", "33333333") })

func halfOf(t testing.TB, o *clusteridtest.Cluster) link.Own {
	t.Helper()
	key, err := link.ParseKey(o.LinkKey().Public())
	if err != nil {
		t.Fatal(err)
	}
	return link.Own{TrustDomain: o.TrustDomain(), LinkKey: key}
}

func introducedBy(o *clusteridtest.Cluster) func() (*identity.Credential, error) {
	return o.CredentialWithRoot
}

// host is a cluster that invites: its API server, and a controller replica that is dialled straight.
type host struct {
	*api
	inviter  *inviter
	server   *joinwire.Server
	address  string
	recorder *events.FakeRecorder
	mu       sync.Mutex // guards results
	results  []string
}

// newHost runs replicas of o's controller on one API server until the test ends.
func newHost(t *testing.T, o *clusteridtest.Cluster, objects ...client.Object) *host {
	t.Helper()
	h := &host{api: newAPI(t, objects...), recorder: events.NewFakeRecorder(64)}
	h.inviter = &inviter{
		client: h.api, namespace: system, version: "v1", own: halfOf(t, o), linkKey: o.LinkKey().Public(),
		events: h.recorder,
	}
	cred := introducedBy(o)
	h.server = &joinwire.Server{
		TLS: func() (*tls.Config, error) {
			return identity.ServerTLS(identity.PlaneJoin, func(*tls.ClientHelloInfo) (*identity.Credential, error) { return cred() },
				true, identity.VerifyIntroduced(time.Now)), nil
		},
		Root: o.RootHash, Guard: guardAccepted, Handle: h.inviter.handle, Log: quietly,
		Count: func(r string) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.results = append(h.results, r)
		},
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.address = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() { h.server.Serve(ctx, ln) })
	t.Cleanup(func() { ln.Close(); cancel(); serving.Wait() })
	return h
}

// invites makes an Invite with its Secret, as the command does, and returns its token.
func (h *host) invites(t *testing.T, o *clusteridtest.Cluster, name string, age time.Duration) invite.Token {
	t.Helper()
	secret := invite.NewSecret()
	inv := &v1alpha1.Invite{
		ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: name, CreationTimestamp: metav1.NewTime(time.Now().Add(-age))},
		Spec:       v1alpha1.InviteSpec{ValidSeconds: 900, Export: &v1alpha1.ExportRules{Services: v1alpha1.AllServices}},
	}
	if err := h.Create(t.Context(), inv); err != nil {
		t.Fatal(err)
	}
	if err := h.Create(t.Context(), besides(inv, "Invite", invite.SecretName(name), invite.SecretKey, secret.Bytes())); err != nil {
		t.Fatal(err)
	}
	return invite.Token{
		Root: identity.RootHash(o.Issuers().Root()), Secret: secret, Expires: invite.Expires(inv),
		Peer: name, Inviter: "east", Gateways: []string{"198.51.100.2:4143"},
	}
}

func besides(o client.Object, kind, name, key string, value []byte) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: name,
			OwnerReferences: []metav1.OwnerReference{{APIVersion: v1alpha1.GroupVersion.String(), Kind: kind, Name: o.GetName(), UID: o.GetUID()}}},
		Data: map[string][]byte{key: value},
	}
}

// guest is a cluster that joins.
type guest struct {
	*api
	joiner *joiner
}

func newGuest(t *testing.T, o *clusteridtest.Cluster, h *host) *guest {
	t.Helper()
	g := &guest{api: newAPI(t)}
	g.joiner = &joiner{
		client: g.api, namespace: system, version: "v1", own: halfOf(t, o), root: o.RootHash,
		linkKey: o.LinkKey().Public(), credential: introducedBy(o),
		reach: func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", h.address)
		},
	}
	return g
}

// brings makes a Join with its Secret, as the command does.
func (g *guest) brings(t *testing.T, token invite.Token, as string) *v1alpha1.Join {
	t.Helper()
	return g.bringsTo(t, "east", token, as)
}

// bringsTo is brings for an inviter that shall be called name.
func (g *guest) bringsTo(t *testing.T, name string, token invite.Token, as string) *v1alpha1.Join {
	t.Helper()
	text, err := token.Text()
	if err != nil {
		t.Fatal(err)
	}
	j := &v1alpha1.Join{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: name}, Spec: v1alpha1.JoinSpec{As: as}}
	if err := g.Create(t.Context(), j); err != nil {
		t.Fatal(err)
	}
	if err := g.Create(t.Context(), besides(j, "Join", invite.JoinSecretName(name), invite.TokenKey, []byte(text))); err != nil {
		t.Fatal(err)
	}
	return j
}

// works lets the controller work once, and returns the Join's status.
func (g *guest) works(t *testing.T, j *v1alpha1.Join) v1alpha1.JoinStatus {
	t.Helper()
	if _, err := g.joiner.work(t.Context(), client.ObjectKeyFromObject(j), j.UID); err != nil {
		t.Error(err)
	}
	var now v1alpha1.Join
	if err := g.Get(t.Context(), client.ObjectKeyFromObject(j), &now); err != nil {
		t.Error(err)
	}
	return now.Status
}

func (h *host) links(t *testing.T) []string {
	t.Helper()
	var list v1alpha1.LinkList
	if err := h.List(t.Context(), &list); err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, l := range list.Items {
		out = append(out, l.Name+" "+l.Spec.TrustDomain)
	}
	return out
}

func (h *host) status(t *testing.T, name string) v1alpha1.InviteStatus {
	t.Helper()
	var inv v1alpha1.Invite
	h.MustGet(t, system, name, &inv)
	return inv.Status
}
