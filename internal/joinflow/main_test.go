package joinflow

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/clusterid/clusteridtest"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/invite"
	"github.com/causeway-mesh/causeway/internal/kube/kubetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const system = kubetest.Namespace

var discardLog = slog.New(slog.DiscardHandler)

// Clusters are made once, because making keys takes time.
var (
	west  = sync.OnceValue(func() *clusteridtest.Cluster { return clusteridtest.New("west", "d1e4195c") })
	east  = sync.OnceValue(func() *clusteridtest.Cluster { return clusteridtest.New("east", "27a432a2") })
	south = sync.OnceValue(func() *clusteridtest.Cluster { return clusteridtest.New("south", "33333333") })
)

// host is a cluster that invites: its API server, and a controller replica that joining
// clusters dial directly.
type host struct {
	*kubetest.API
	server   *Server
	address  string
	recorder *events.FakeRecorder
	registry *prometheus.Registry
}

// newHost serves the invites of a cluster until the test ends.
func newHost(t *testing.T, of *clusteridtest.Cluster, objects ...client.Object) *host {
	t.Helper()
	h := &host{
		API:      kubetest.New(nil, objects...),
		recorder: events.NewFakeRecorder(64),
		registry: prometheus.NewRegistry(),
	}
	h.server = NewServer(Config{
		Client:    h.API,
		Namespace: system,
		Version:   "v1",
		Identity:  of.Identity,
		Events:    h.recorder,
		Log:       discardLog,
	}, h.registry)
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

// invite creates an Invite with its Secret, as the command does, and returns its token.
func (h *host) invite(t *testing.T, of *clusteridtest.Cluster, name string, age time.Duration) invite.Token {
	t.Helper()
	secret := invite.NewSecret()
	inv := newInvite(name, age)
	inv.Spec.Export = &v1alpha1.ExportRules{Services: v1alpha1.AllServices}
	if err := h.Create(t.Context(), inv); err != nil {
		t.Fatal(err)
	}
	if err := h.Create(t.Context(), secretOf(inv, "Invite", invite.SecretName(name), invite.SecretKey,
		secret.Bytes())); err != nil {
		t.Fatal(err)
	}
	return invite.Token{
		Root:     identity.RootHash(of.Issuers().Root()),
		Secret:   secret,
		Expires:  invite.Expires(inv),
		Peer:     name,
		Inviter:  "east",
		Gateways: []string{"198.51.100.2:4143"},
	}
}

func newInvite(name string, age time.Duration) *v1alpha1.Invite {
	return &v1alpha1.Invite{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:         system,
			Name:              name,
			CreationTimestamp: metav1.NewTime(time.Now().Add(-age)),
		},
		Spec: v1alpha1.InviteSpec{ValidSeconds: 900},
	}
}

func newJoin(name, as string, age time.Duration) *v1alpha1.Join {
	return &v1alpha1.Join{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:         system,
			Name:              name,
			CreationTimestamp: metav1.NewTime(time.Now().Add(-age)),
		},
		Spec: v1alpha1.JoinSpec{As: as},
	}
}

func secretOf(owner client.Object, kind, name, key string, value []byte) *corev1.Secret {
	ref := metav1.OwnerReference{
		APIVersion: v1alpha1.GroupVersion.String(),
		Kind:       kind,
		Name:       owner.GetName(),
		UID:        owner.GetUID(),
	}
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:       system,
			Name:            name,
			OwnerReferences: []metav1.OwnerReference{ref},
		},
		Data: map[string][]byte{key: value},
	}
}

// links returns "name trust-domain" of each Link of the inviting cluster.
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

// guest is a cluster that joins.
type guest struct {
	*kubetest.API
	joiner *Joiner
}

func newGuest(t *testing.T, of *clusteridtest.Cluster, h *host) *guest {
	t.Helper()
	g := &guest{API: kubetest.New(nil)}
	g.joiner = NewJoiner(Config{
		Client:    g.API,
		Namespace: system,
		Version:   "v1",
		Identity:  of.Identity,
		Dial: func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", h.address)
		},
		Log: discardLog,
	})
	return g
}

// join creates a Join with its Secret, as the command does, for an inviter that is to be
// called name.
func (g *guest) join(t *testing.T, name string, token invite.Token, as string) *v1alpha1.Join {
	t.Helper()
	text, err := token.Text()
	if err != nil {
		t.Fatal(err)
	}
	j := newJoin(name, as, 0)
	if err := g.Create(t.Context(), j); err != nil {
		t.Fatal(err)
	}
	if err := g.Create(t.Context(), secretOf(j, "Join", invite.JoinSecretName(name), invite.TokenKey,
		[]byte(text))); err != nil {
		t.Fatal(err)
	}
	return j
}

// step lets the Joiner work once, and returns the Join's status.
func (g *guest) step(t *testing.T, j *v1alpha1.Join) v1alpha1.JoinStatus {
	t.Helper()
	if _, err := g.joiner.step(t.Context(), client.ObjectKeyFromObject(j), j.UID); err != nil {
		t.Error(err)
	}
	var now v1alpha1.Join
	if err := g.Get(t.Context(), client.ObjectKeyFromObject(j), &now); err != nil {
		t.Error(err)
	}
	return now.Status
}

func isInvite(o client.Object) bool { _, ok := o.(*v1alpha1.Invite); return ok }
func isLink(o client.Object) bool   { _, ok := o.(*v1alpha1.Link); return ok }

func TestResultsAreCountedFromZero(t *testing.T) {
	h := newHost(t, east())
	if n, err := testutil.GatherAndCount(h.registry, "causeway_controller_joins_total"); err != nil || n < 2 {
		t.Errorf("%d results before the first call, %v", n, err)
	}
	if problems, err := testutil.GatherAndLint(h.registry); err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}
