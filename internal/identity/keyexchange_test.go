package identity

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
)

// smallestSegment is the payload of a TCP segment that crosses any path with IPv6: 1,280
// bytes without the headers and 20 bytes of options.
const smallestSegment = 1200

// TestHelloFitsOneSegment: a middlebox that looks only at a connection's first segment
// sees the whole hello of a classical client, with the longest name that a hello can
// carry.
func TestHelloFitsOneSegment(t *testing.T) {
	west := newCluster(t, "west")
	for name, tc := range map[string]struct {
		k    KeyExchange
		fits bool
	}{
		"classical":    {Classical, true},
		"post-quantum": {PostQuantum, false},
	} {
		t.Run(name, func(t *testing.T) {
			sni := strings.Repeat(strings.Repeat("a", 62)+".", 4)[:250]
			config := ClientTLS(PlaneTunnel, sni, clientCredential(west.workload("shop", "cart")),
				VerifyAnyWorkload(west.anchors, atNoon))
			n := len(firstFlight(t, tc.k.Limit(config)))
			t.Logf("%d bytes", n)
			if (n <= smallestSegment) != tc.fits {
				t.Errorf("the hello has %d bytes; want it to fit one segment of %d: %v", n,
					smallestSegment, tc.fits)
			}
		})
	}
}

// firstFlight returns what a client sends before it hears from its server.
func firstFlight(t *testing.T, config *tls.Config) []byte {
	near, far := net.Pipe()
	var client sync.WaitGroup
	defer client.Wait()
	defer far.Close()
	client.Go(func() {
		defer near.Close()
		tls.Client(near, config).HandshakeContext(context.WithoutCancel(t.Context()))
	})
	record := make([]byte, 5)
	if _, err := io.ReadFull(far, record); err != nil {
		t.Fatal(err)
	}
	record = append(record, make([]byte, int(record[3])<<8|int(record[4]))...)
	if _, err := io.ReadFull(far, record[5:]); err != nil {
		t.Fatal(err)
	}
	return record
}

// TestKeyExchangesInteroperate: a cluster that has turned the post-quantum key share off
// calls one that has not, and one that has both calls either.
func TestKeyExchangesInteroperate(t *testing.T) {
	west, east := newCluster(t, "west"), newCluster(t, "east")
	onlyBar := VerifyOneOf([]Name{east.workload("shop", "bar").Name()}, east.anchors, atNoon)
	for name, tc := range map[string]struct {
		client KeyExchange
		want   tls.CurveID
	}{
		"both offer both":         {PostQuantum, tls.X25519MLKEM768},
		"the client offers one":   {Classical, tls.X25519},
		"the value of the chart":  {KeyExchangeOf(false), tls.X25519},
		"the default of a client": {KeyExchangeOf(true), tls.X25519MLKEM768},
	} {
		t.Run(name, func(t *testing.T) {
			server := ServerTLS(PlaneTunnel, serverCredential(east.workload("shop", "bar")), true,
				VerifyAnyWorkload(west.anchors, atNoon))
			config := ClientTLS(PlaneTunnel, "label", clientCredential(west.workload("shop", "cart")), onlyBar)
			client, far := handshake(t, tc.client.Limit(config), server)
			if client.err != nil || far.err != nil {
				t.Fatalf("client: %v; server: %v", client.err, far.err)
			}
			if got := client.state.CurveID; got != tc.want {
				t.Errorf("they agree on %v, want %v", got, tc.want)
			}
			if client.state.HelloRetryRequest {
				t.Error("the server asked for another hello")
			}
		})
	}
}
