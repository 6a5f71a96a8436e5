package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"sync"
	"testing"

	"google.golang.org/grpc/test/bufconn"
)

// Two versions of Causeway agree on the best protocol of a plane that both know.
func TestVersionsAreNegotiated(t *testing.T) {
	west, east := newCluster(t, "west"), newCluster(t, "east")
	cart, bar := west.workload("shop", "cart"), east.workload("shop", "bar")
	newer, older := Plane{"causeway-tunnel/3", "causeway-tunnel/2"}, Plane{"causeway-tunnel/2"}
	for name, tc := range map[string]struct {
		client, server             Plane
		want                       string
		clientReason, serverReason string
	}{
		"both newer":     {client: newer, server: newer, want: "causeway-tunnel/3"},
		"newer client":   {client: newer, server: older, want: "causeway-tunnel/2"},
		"newer server":   {client: older, server: newer, want: "causeway-tunnel/2"},
		"both older":     {client: older, server: older, want: "causeway-tunnel/2"},
		"none in common": {client: newer, server: Plane{"causeway-tunnel/1"}, clientReason: ReasonOther, serverReason: ReasonOther},
		"another plane":  {client: newer, server: PlaneCatalog, clientReason: ReasonOther, serverReason: ReasonOther},
	} {
		t.Run(name, func(t *testing.T) {
			client, server := handshake(t,
				ClientTLS(tc.client, "label", clientCredential(cart), VerifyAnyWorkload(east.anchors, atNoon)),
				ServerTLS(tc.server, serverCredential(bar), true, VerifyAnyWorkload(west.anchors, atNoon)))
			if Reason(client.err) != tc.clientReason || Reason(server.err) != tc.serverReason {
				t.Fatalf("the client: %v; the server: %v", client.err, server.err)
			}
			if c, s := client.state.NegotiatedProtocol, server.state.NegotiatedProtocol; c != tc.want || s != tc.want {
				t.Errorf("the client agreed on %q and the server on %q, want %q", c, s, tc.want)
			}
		})
	}
}

// A protocol belongs to one plane.
func TestPlanesAreApart(t *testing.T) {
	seen := map[string]bool{}
	for _, plane := range []Plane{PlaneTunnel, PlaneCatalog, PlaneNode, PlaneJoin} {
		if len(plane) == 0 {
			t.Error("a plane without a version")
		}
		for _, version := range plane {
			if seen[version] {
				t.Errorf("%s is of two planes, or of one twice", version)
			}
			seen[version] = true
		}
	}
}

// serverCredential makes a credential the answer to every ClientHello.
func serverCredential(c *Credential) func(*tls.ClientHelloInfo) (*Credential, error) {
	return func(*tls.ClientHelloInfo) (*Credential, error) { return c, nil }
}

func clientCredential(c *Credential) func() (*Credential, error) {
	return func() (*Credential, error) { return c, nil }
}

// side is how one end of a handshake saw it.
type side struct {
	state tls.ConnectionState
	err   error
}

// pipe is a connection in memory that, unlike net.Pipe, lets both ends write at
// once, as a refusal and the rest of a flight do.
func pipe(t *testing.T) (near, far net.Conn) {
	t.Helper()
	ln := bufconn.Listen(64 << 10)
	defer ln.Close()
	var dial sync.WaitGroup
	defer dial.Wait()
	dial.Go(func() { far, _ = ln.Accept() })
	near, err := ln.DialContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dial.Wait()
	return near, far
}

// handshake runs one in memory. The client reads a byte, since only then does
// TLS 1.3 tell it that the server refused its certificate.
func handshake(t *testing.T, clientConfig, serverConfig *tls.Config) (client, server side) {
	t.Helper()
	near, far := pipe(t)
	c, s := tls.Client(near, clientConfig), tls.Server(far, serverConfig)
	var both sync.WaitGroup
	both.Go(func() {
		defer far.Close()
		if server.err = s.HandshakeContext(t.Context()); server.err == nil {
			_, server.err = s.Write([]byte{1})
		}
		server.state = s.ConnectionState()
	})
	both.Go(func() {
		defer near.Close()
		if client.err = c.HandshakeContext(t.Context()); client.err == nil {
			_, client.err = io.ReadFull(c, make([]byte, 1))
		}
		client.state = c.ConnectionState()
	})
	both.Wait()
	return client, server
}

func TestTunnelHandshake(t *testing.T) {
	west, east := newCluster(t, "west"), newCluster(t, "east")
	cart, bar := west.workload("shop", "cart"), east.workload("shop", "bar")
	trustWest := func() *Anchors { return west.anchors() }
	trustEast := func() *Anchors { return east.anchors() }
	anyWest := VerifyAnyWorkload(trustWest, atNoon)
	onlyBar := VerifyOneOf([]Name{bar.Name()}, trustEast, atNoon)

	// stolen is cart's certificate in the hands of somebody without its key.
	stolen := &Credential{cart.name, tls.Certificate{Certificate: cart.cert.Certificate, PrivateKey: newP256(t)}}
	stranger := newCluster(t, "west").workload("shop", "cart")
	noALPN := ClientTLS(PlaneTunnel, "label", clientCredential(cart), onlyBar)
	noALPN.NextProtos = nil
	tls12 := ClientTLS(PlaneTunnel, "label", clientCredential(cart), onlyBar)
	tls12.MinVersion, tls12.MaxVersion = tls.VersionTLS12, tls.VersionTLS12

	cases := map[string]struct {
		why            string
		client, server *tls.Config
		clientReason   string
		serverReason   string
	}{
		"good": {why: "both prove who they are",
			client: ClientTLS(PlaneTunnel, "label", clientCredential(cart), onlyBar),
			server: ServerTLS(PlaneTunnel, serverCredential(bar), true, anyWest)},
		"no ALPN": {why: "Go lets such a client through, so we must not",
			client: noALPN, server: ServerTLS(PlaneTunnel, serverCredential(bar), true, anyWest),
			clientReason: ReasonALPN, serverReason: ReasonOther},
		"other plane": {why: "a tunnel is not spoken to the catalog",
			client: ClientTLS(PlaneTunnel, "label", clientCredential(cart), onlyBar),
			server: ServerTLS(PlaneCatalog, serverCredential(bar), true, anyWest), clientReason: ReasonOther, serverReason: ReasonOther},
		"TLS 1.2": {why: "1.3 only", client: tls12,
			server: ServerTLS(PlaneTunnel, serverCredential(bar), true, anyWest), clientReason: ReasonOther, serverReason: ReasonOther},
		"other service": {why: "a gateway that splices to the wrong pod is found out",
			client:       ClientTLS(PlaneTunnel, "label", clientCredential(cart), onlyBar),
			server:       ServerTLS(PlaneTunnel, serverCredential(east.workload("shop", "baz")), true, anyWest),
			clientReason: ReasonUnexpected, serverReason: ReasonOther},
		"nobody expected": {why: "a catalog without identities opens no door",
			client:       ClientTLS(PlaneTunnel, "label", clientCredential(cart), VerifyOneOf(nil, trustEast, atNoon)),
			server:       ServerTLS(PlaneTunnel, serverCredential(bar), true, anyWest),
			clientReason: ReasonUnexpected, serverReason: ReasonOther},
		"unlinked caller": {why: "its issuer is nobody's anchor",
			client:       ClientTLS(PlaneTunnel, "label", clientCredential(stranger), onlyBar),
			server:       ServerTLS(PlaneTunnel, serverCredential(bar), true, anyWest),
			clientReason: ReasonOther, serverReason: ReasonUnknownAuthority},
		"no certificate": {why: "a caller has an identity",
			client:       ClientTLS(PlaneTunnel, "label", nil, onlyBar),
			server:       ServerTLS(PlaneTunnel, serverCredential(bar), true, anyWest),
			clientReason: ReasonOther, serverReason: ReasonOther},
		"stolen certificate": {why: "a certificate without its key proves nothing",
			client:       ClientTLS(PlaneTunnel, "label", clientCredential(stolen), onlyBar),
			server:       ServerTLS(PlaneTunnel, serverCredential(bar), true, anyWest),
			clientReason: ReasonOther, serverReason: ReasonOther},
		"client not ready": {why: "no SVID yet is an error, not an anonymous call",
			client:       ClientTLS(PlaneTunnel, "label", clientCredential(nil), onlyBar),
			server:       ServerTLS(PlaneTunnel, serverCredential(bar), true, anyWest),
			clientReason: ReasonOther, serverReason: ReasonOther},
		"server not ready": {why: "no SVID yet is an error, not a crash",
			client:       ClientTLS(PlaneTunnel, "label", clientCredential(cart), onlyBar),
			server:       ServerTLS(PlaneTunnel, serverCredential(nil), true, anyWest),
			clientReason: ReasonOther, serverReason: ReasonOther},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			client, server := handshake(t, c.client, c.server)
			if Reason(client.err) != c.clientReason || Reason(server.err) != c.serverReason {
				t.Fatalf("reasons %q (%v) and %q (%v), want %q and %q: %s", Reason(client.err), client.err,
					Reason(server.err), server.err, c.clientReason, c.serverReason, c.why)
			}
			if c.serverReason == "" {
				return
			}
			if name, err := PeerName(server.state); err == nil {
				t.Errorf("PeerName = %v after a refusal: %s", name, c.why)
			}
		})
	}

	t.Run("what a good one agrees on", func(t *testing.T) {
		client, server := handshake(t, cases["good"].client, cases["good"].server)
		if got := must(PeerName(server.state))(t); got != cart.Name() {
			t.Errorf("the server sees %v", got)
		}
		if got := must(PeerName(client.state))(t); got != bar.Name() {
			t.Errorf("the client sees %v", got)
		}
		if server.state.ServerName != "label" || server.state.Version != tls.VersionTLS13 {
			t.Errorf("SNI %q, version %x", server.state.ServerName, server.state.Version)
		}
		if server.state.HelloRetryRequest || server.state.CurveID != tls.X25519MLKEM768 {
			t.Errorf("a second hello (%v) or key exchange %v", server.state.HelloRetryRequest, server.state.CurveID)
		}
	})
}

// A shared session cache gives one caller another's identity, so even somebody
// who adds a cache gets no resumption.
func TestNoResumption(t *testing.T) {
	west, east := newCluster(t, "west"), newCluster(t, "east")
	bar := east.workload("shop", "bar")
	server := ServerTLS(PlaneTunnel, serverCredential(bar), true, VerifyAnyWorkload(west.anchors, atNoon))
	cache := tls.NewLRUClientSessionCache(8)
	for _, account := range []string{"guest", "admin", "guest"} {
		caller := west.workload("shop", account)
		config := ClientTLS(PlaneTunnel, "label", clientCredential(caller), VerifyAnyWorkload(east.anchors, atNoon))
		config.ClientSessionCache = cache
		config.SessionTicketsDisabled = false
		_, seen := handshake(t, config, server)
		if seen.err != nil || seen.state.DidResume {
			t.Fatalf("%v, resumed %v", seen.err, seen.state.DidResume)
		}
		if got := must(PeerName(seen.state))(t); got != caller.Name() {
			t.Errorf("%v is taken for %v", caller, got)
		}
	}
	// Even with tickets on both sides (as another make of server, or a slip of
	// ours, may bring about) a resumed session is refused.
	server.SessionTicketsDisabled, server.Time = false, atNoon
	var seen side
	for range 2 {
		config := ClientTLS(PlaneTunnel, "label", clientCredential(west.workload("shop", "cart")), VerifyAnyWorkload(east.anchors, atNoon))
		config.ClientSessionCache, config.SessionTicketsDisabled, config.Time = cache, false, atNoon
		_, seen = handshake(t, config, server)
	}
	if got := Reason(seen.err); got != ReasonResumed {
		t.Errorf("a resumed session: %v, want it refused", seen.err)
	}
}

func TestCatalogHandshake(t *testing.T) {
	west, east := newCluster(t, "west"), newCluster(t, "east")
	server := ServerTLS(PlaneCatalog, serverCredential(east.controller()), true, VerifyPeerController("west", west.root.cert, atNoon))
	toEast := VerifyPeerController("east", east.root.cert, atNoon)

	_, seen := handshake(t, ClientTLS(PlaneCatalog, "label", clientCredential(west.controller()), toEast), server)
	if seen.err != nil {
		t.Fatal(seen.err)
	}
	if got := must(PeerName(seen.state))(t); got != west.controller().Name() {
		t.Errorf("the server sees %v", got)
	}
	_, seen = handshake(t, ClientTLS(PlaneCatalog, "label", clientCredential(west.workload("shop", "cart")), toEast), server)
	if Reason(seen.err) != ReasonUnknownAuthority {
		t.Errorf("a workload in place of a controller: %v", seen.err)
	}
	_, seen = handshake(t, ClientTLS(PlaneCatalog, "label", clientCredential(east.controller()), toEast), server)
	if Reason(seen.err) != ReasonTrustDomain {
		t.Errorf("another cluster's controller: %v", seen.err)
	}
}

func TestNodeHandshake(t *testing.T) {
	west := newCluster(t, "west")
	server := ServerTLS(PlaneNode, serverCredential(west.controller()), false, nil)
	client, seen := handshake(t, ClientTLS(PlaneNode, "", nil, VerifyPeerController("west", west.root.cert, atNoon)), server)
	if client.err != nil || seen.err != nil {
		t.Fatalf("client %v, server %v", client.err, seen.err)
	}
	if _, err := PeerName(seen.state); err == nil {
		t.Error("a client without a certificate has a name")
	}
	client, _ = handshake(t, ClientTLS(PlaneNode, "", nil, VerifyPeerController("west", newCluster(t, "west").root.cert, atNoon)), server)
	if Reason(client.err) != ReasonUnknownAuthority {
		t.Errorf("a controller of another root: %v", client.err)
	}
}

// PeerName must not be asked from within VerifyConnection.
func TestPeerNameOnlyAfterTheHandshake(t *testing.T) {
	west := newCluster(t, "west")
	cart := west.workload("shop", "cart")
	cs := tls.ConnectionState{PeerCertificates: []*x509.Certificate{cart.cert.Leaf}}
	if name, err := PeerName(cs); !errors.Is(err, ErrRefused) {
		t.Errorf("PeerName = %v, %v before any proof", name, err)
	}
}

func TestUnverifiedConfigsPanic(t *testing.T) {
	for name, make := range map[string]func(){
		"client": func() { ClientTLS(PlaneTunnel, "", nil, nil) },
		"server": func() { ServerTLS(PlaneTunnel, serverCredential(nil), true, nil) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("a %s without verification was made", name)
				}
			}()
			make()
		}()
	}
}

// discardWrites keeps what HelloTLS would answer from the peer.
type discardWrites struct{ net.Conn }

func (discardWrites) Write(b []byte) (int, error) { return len(b), nil }

func TestHelloTLS(t *testing.T) {
	near, far := pipe(t)
	west := newCluster(t, "west")
	var client sync.WaitGroup
	defer client.Wait()
	defer far.Close()
	client.Go(func() {
		defer near.Close()
		config := ClientTLS(PlaneTunnel, "label.causeway.internal", nil, VerifyAnyWorkload(west.anchors, atNoon))
		if err := tls.Client(near, config).HandshakeContext(t.Context()); err == nil {
			t.Error("a handshake with nobody succeeded")
		}
	})
	var sni string
	var protocols []string
	config := HelloTLS(func(hello *tls.ClientHelloInfo) { sni, protocols = hello.ServerName, hello.SupportedProtos })
	err := tls.Server(discardWrites{far}, config).HandshakeContext(t.Context())
	if !errors.Is(err, ErrHelloOnly) || sni != "label.causeway.internal" || len(protocols) != 1 {
		t.Errorf("%v; SNI %q, ALPN %q", err, sni, protocols)
	}
}
