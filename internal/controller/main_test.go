package controller

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/clusterid/clusteridtest"
	"github.com/causeway-mesh/causeway/internal/joinflow"
	"github.com/causeway-mesh/causeway/internal/kube/kubetest"
	"github.com/causeway-mesh/causeway/internal/link"
	"github.com/causeway-mesh/causeway/internal/mirror"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/peering"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const system = kubetest.Namespace

// api is a fake API server with the index that mirrors need.
type api struct{ *kubetest.API }

func newAPI(t testing.TB, objects ...client.Object) *api {
	t.Helper()
	return &api{kubetest.New(func(b *fake.ClientBuilder) {
		b.WithIndex(&corev1.Service{}, mirror.IndexField, mirror.IndexOwner)
	}, objects...)}
}

// count returns how many of list hold text.
func count(list []string, text string) int {
	n := 0
	for _, s := range list {
		if strings.Contains(s, text) {
			n++
		}
	}
	return n
}

var quietly = slog.New(slog.DiscardHandler)

// Identities are made once, because making keys takes time.
var (
	west = sync.OnceValue(func() *clusteridtest.Cluster { return clusteridtest.New("west", "d1e4195c") })
	east = sync.OnceValue(func() *clusteridtest.Cluster { return clusteridtest.New("east", "27a432a2") })
)

// linkTo returns a valid Link to a cluster.
func linkTo(name string, to *clusteridtest.Cluster, gateways ...string) *v1alpha1.Link {
	return to.Link(name, gateways...)
}

// peerOf is the peer that a Link names, as west sees it.
func peerOf(t testing.TB, l *v1alpha1.Link) link.Peer {
	t.Helper()
	return west().PeerOf(l)
}

// replica is a controller replica of west with a fake API server, whose cache is
// never behind.
type replica struct {
	*api
	*brain
	recorder *events.FakeRecorder
}

func newReplica(t testing.TB, a *api) *replica {
	t.Helper()
	o := Options{ClusterName: "west", Namespace: system, PodName: "controller-0", Version: "v1", VIPCIDRs: []string{"240.0.0.0/24"}}
	ranges := []netip.Prefix{netip.MustParsePrefix("240.0.0.0/24")}
	r := &replica{api: a, recorder: events.NewFakeRecorder(1024)}
	b := &brain{o: o, identity: west().Identity, cache: a, hub: &nodestream.Hub{}, board: &wire.Board{}, ranges: ranges, log: quietly,
		whole: make(chan struct{}), wake: make(chan struct{}, 1)}
	b.peers = newPeers(a, b.board, b.changed)
	b.inviteKeys = joinflow.NewKeys(a, b.changed, quietly)
	b.leader = &leader{
		client: a, identity: west().Identity, o: o, log: quietly, events: r.recorder,
		joiner:     joinflow.NewJoiner(joinflow.Config{Client: a, Namespace: system, Identity: west().Identity, Log: quietly}),
		books:      &books{client: a, namespace: system, ranges: ranges, log: quietly},
		reconciler: &mirror.Reconciler{Client: a, Live: a, Namespace: system, Version: "v1", Log: quietly},
	}
	r.brain = b
	return r
}

// newPeers returns peers that dial nobody.
func newPeers(a *api, board *wire.Board, changed func()) *peering.Peers {
	return peering.New(peering.Config{
		Identity:  west().Identity,
		Board:     board,
		Client:    a,
		Namespace: system,
		OnChange:  func(string) { changed() },
		Log:       quietly,
		Metrics:   wire.NewMetrics(nil),
		Dial: func(ctx context.Context, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		},
		Lookup: func(context.Context, string) ([]netip.Addr, error) { return nil, errors.New("no DNS here") },
	})
}

// hello is what a cluster sends, with a list of its issuers of that number.
func hello(o *clusteridtest.Cluster, number uint64) *wire.Hello {
	return &wire.Hello{Version: "v9", IssuerList: o.SignedList(number), LinkPublicKey: o.LinkKey().Public()}
}

// told returns the Events since it was last asked.
func (r *replica) told() []string {
	var out []string
	for {
		select {
		case e := <-r.recorder.Events:
			out = append(out, e)
		default:
			slices.Sort(out)
			return out
		}
	}
}
