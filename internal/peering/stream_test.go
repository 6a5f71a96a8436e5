package peering

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/grpctls"
	"github.com/causeway-mesh/causeway/internal/kube/kubetest"
)

// TestCatalogBetweenTwoClusters runs both sides of a link over TLS on the loopback
// device: east serves its catalog, west dials two addresses of it.
func TestCatalogBetweenTwoClusters(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	var serving sync.WaitGroup
	defer serving.Wait()
	defer cancel()

	eastAPI, eastBoard := kubetest.New(nil), wire.NewBoard()
	atEast := New(Config{
		Identity:  east().Identity,
		Board:     eastBoard,
		Client:    eastAPI,
		Namespace: system,
		OnChange:  func(string) {},
		Log:       discardLog,
		Metrics:   wire.NewMetrics(nil),
	})
	atEast.Set(ctx, map[string]Want{"west": {Peer: east().PeerOf(west().Link("west"))}}, nil)
	if err := eastBoard.SetHello(hello(east(), 2)); err != nil {
		t.Fatal(err)
	}
	web := upserts("web")[0]
	version := wire.Version{Epoch: "one", Generation: 5}
	if err := eastBoard.Publish([]wire.Listing{
		{Service: &web, Key: web.Key(), Links: []string{"west"}},
	}, version); err != nil {
		t.Fatal(err)
	}
	eastBoard.SetReady("west")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := wire.NewServer(atEast.Identify, eastBoard, atEast.Inbound(), wire.ServerOptions{})
	creds := grpctls.New(grpctls.Config{
		ALPN:  wire.ALPN,
		TLS:   atEast.ServerTLS,
		Guard: transport.GuardAccepted,
	})
	serving.Go(func() { server.Serve(ctx, ln, creds) })

	changed := make(chan struct{}, 1)
	westAPI := kubetest.New(nil)
	atWest := newPeers(t, westAPI, func(c *Config) {
		c.OnChange = func(string) {
			select {
			case changed <- struct{}{}:
			default:
			}
		}
		c.Dial = func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", ln.Addr().String())
		}
	})
	atWest.Set(ctx, onlyEast("192.0.2.1:4143", "192.0.2.2:4143"), nil)
	for {
		s := atWest.Snapshots()["east"]
		if s.Complete && s.Streams["192.0.2.1:4143"].Connected && s.Streams["192.0.2.2:4143"].Connected {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("the streams are not up: %+v", s)
		}
	}
	change := atWest.TakeCatalog("east", wire.Version{}, time.Now())
	if len(change.Upserts) != 1 || !change.Upserts[0].Equal(web) || !change.Complete ||
		change.Version != version {
		t.Errorf("west has %+v", change)
	}
	if got := storedNumber(t, westAPI, eastPeer()); got != 2 {
		t.Errorf("west has stored list %d of east's issuers, want 2", got)
	}
	if s := atEast.Snapshots()["west"]; !s.Inbound || s.PeerVersion != "v9" {
		t.Errorf("east knows of west: %+v", s)
	}
	cancel()
	atWest.Wait()
	atEast.Wait()
}
