package peering

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/clusterid/clusteridtest"
	"github.com/causeway-mesh/causeway/internal/kube/kubetest"
	"github.com/causeway-mesh/causeway/internal/link"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const system = kubetest.Namespace

var discardLog = slog.New(slog.DiscardHandler)

// Clusters are made once, because making keys takes time. Tests in fake time call them
// before their bubble.
var (
	west = sync.OnceValue(func() *clusteridtest.Cluster { return clusteridtest.New("west", "d1e4195c") })
	east = sync.OnceValue(func() *clusteridtest.Cluster { return clusteridtest.New("east", "27a432a2") })
)

// eastPeer is the peer that west's Link to east names.
func eastPeer(gateways ...string) link.Peer { return west().PeerOf(east().Link("east", gateways...)) }

// onlyEast wants one peer.
func onlyEast(gateways ...string) map[string]Want {
	return map[string]Want{"east": {Peer: eastPeer(gateways...)}}
}

func hello(o *clusteridtest.Cluster, number uint64) *wire.Hello {
	return &wire.Hello{Version: "v9", IssuerList: o.SignedList(number), LinkPublicKey: o.LinkKey().Public()}
}

// newPeers returns west's peers, which reach no address unless change says otherwise.
func newPeers(t *testing.T, a *kubetest.API, change func(*Config)) *Peers {
	t.Helper()
	c := Config{
		Identity:  west().Identity,
		Board:     wire.NewBoard(),
		Client:    a,
		Namespace: system,
		OnChange:  func(string) {},
		Log:       discardLog,
		Metrics:   wire.NewMetrics(nil),
		Dial: func(ctx context.Context, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		},
		Lookup: func(context.Context, string) ([]netip.Addr, error) {
			return nil, errors.New("no DNS in tests")
		},
	}
	if change != nil {
		change(&c)
	}
	if err := c.Board.SetHello(hello(west(), 1)); err != nil { // streams fail without it
		t.Fatal(err)
	}
	return New(c)
}

// setEast returns peers that know east. The caller calls end.
func setEast(t *testing.T, a *kubetest.API, gateways ...string) (p *Peers, end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	p = newPeers(t, a, nil)
	p.Set(ctx, onlyEast(gateways...), nil)
	return p, func() { cancel(); p.Wait() }
}
