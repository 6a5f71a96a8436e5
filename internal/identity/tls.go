package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

// A Plane is the purpose of a connection. It lists the ALPN protocols that its
// connections may negotiate, one for each version, best first. A client offers all of
// them, and the server takes the first of its own that the client offers. So two versions
// of Causeway agree on the best protocol that both know, and a peer of one plane cannot
// connect to another. The version of a connection is the NegotiatedProtocol of its
// tls.ConnectionState.
type Plane []string

// The planes. They must not be changed.
var (
	PlaneTunnel  = Plane{"causeway-tunnel/2"}
	PlaneCatalog = Plane{"causeway-catalog/1"}
	PlaneNode    = Plane{"causeway-node/1"}
	// PlaneJoin is for clusters that have no Link yet.
	PlaneJoin = Plane{"causeway-join/1"}
)

// Verify decides on a peer from its certificates alone, usually VerifyAnyWorkload,
// VerifyOneOf or VerifyPeerController. It runs before the peer has proven that it
// holds its key, so it must have no side effects: nothing is logged, counted or
// kept until the handshake has returned.
type Verify func(tls.ConnectionState) error

// ErrHelloOnly is how every handshake under HelloTLS ends.
var ErrHelloOnly = errors.New("only the ClientHello was read")

// ClientTLS returns the config of a client of a plane. The SNI is sent as given:
// a sealed label, so that no certificate can be held against it, and verify alone
// says who the server is. cred is asked once a handshake, when the server wants a
// certificate; nil for a client that has none. A nil verify panics.
func ClientTLS(plane Plane, serverName string, cred func() (*Credential, error), verify Verify) *tls.Config {
	if verify == nil {
		panic("identity: ClientTLS without verification")
	}
	config := baseConfig(plane, func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return refuse(ReasonNoCertificate, "the server presents no certificate")
		}
		return verify(cs)
	})
	config.ServerName = serverName
	// crypto/tls would look for a host's name; verify, run by base's
	// VerifyConnection, looks for a SPIFFE ID.
	config.InsecureSkipVerify = true
	if cred != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			c, err := cred()
			return presentCredential(c, err, "client")
		}
	}
	return config
}

// ServerTLS returns the config of a server of a plane. cred is asked at each
// handshake for what to speak as. With requireClient the client must present a
// certificate and verify, which panics if nil, decides on it. Without, none is
// asked for and verify is not called: the client proves itself by other means.
func ServerTLS(plane Plane, cred func(*tls.ClientHelloInfo) (*Credential, error), requireClient bool, verify Verify) *tls.Config {
	if requireClient && verify == nil {
		panic("identity: ServerTLS requires a client's certificate without verification")
	}
	config := baseConfig(plane, func(cs tls.ConnectionState) error {
		if !requireClient {
			return nil
		}
		if len(cs.PeerCertificates) == 0 {
			return refuse(ReasonNoCertificate, "the client presents no certificate")
		}
		return verify(cs)
	})
	if requireClient {
		config.ClientAuth = tls.RequireAnyClientCert // believed by verify alone
	}
	config.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		c, err := cred(hello)
		return presentCredential(c, err, "server")
	}
	return config
}

// HelloTLS returns the config of a server that reads a ClientHello, passes it to
// onHello, and fails with ErrHelloOnly, so that gateway and agent parse hellos as
// crypto/tls does. The handshake then writes an alert. The caller must give tls.Server
// a net.Conn that drops writes.
func HelloTLS(onHello func(*tls.ClientHelloInfo)) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			onHello(hello)
			return nil, ErrHelloOnly
		},
	}
}

func presentCredential(c *Credential, err error, side string) (*tls.Certificate, error) {
	if err != nil {
		return nil, fmt.Errorf("%s certificate: %w", side, err)
	}
	if c == nil {
		return nil, fmt.Errorf("%s certificate: there is none yet", side)
	}
	return c.TLS(), nil
}

// baseConfig holds what client and server agree on. A client offers a key share for each
// group that it supports, so no HelloRetryRequest is ever needed and there is one hello.
func baseConfig(plane Plane, verify Verify) *tls.Config {
	return &tls.Config{
		MinVersion:                  tls.VersionTLS13,
		NextProtos:                  slices.Clone(plane),
		CurvePreferences:            PostQuantum.groups(),
		SessionTicketsDisabled:      true,
		DynamicRecordSizingDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if cs.DidResume {
				return refuse(ReasonResumed, "a resumed session carries another connection's identity")
			}
			// crypto/tls accepts a peer that offers no ALPN protocol.
			if !slices.Contains(plane, cs.NegotiatedProtocol) {
				return refuse(ReasonALPN, "the peer speaks %q, not one of %q", clip(cs.NegotiatedProtocol), plane)
			}
			return verify(cs)
		},
	}
}

// VerifyAnyWorkload accepts every workload that anchors vouch for. Both functions are
// called once per handshake.
func VerifyAnyWorkload(anchors func() *Anchors, now func() time.Time) Verify {
	return func(cs tls.ConnectionState) error {
		_, err := VerifyWorkload(cs.PeerCertificates, anchors(), now())
		return err
	}
}

// VerifyOneOf accepts a workload that anchors vouch for if its name is among names.
// Without names it accepts none.
func VerifyOneOf(names []Name, anchors func() *Anchors, now func() time.Time) Verify {
	return func(cs tls.ConnectionState) error {
		name, err := VerifyWorkload(cs.PeerCertificates, anchors(), now())
		if err != nil {
			return err
		}
		if !slices.Contains(names, name) {
			return refuse(ReasonUnexpected, "the peer proves to be %s, which is not expected there", name)
		}
		return nil
	}
}

// VerifyPeerController accepts the controllers of the cluster of a trust domain and its
// root.
func VerifyPeerController(trustDomain string, root *x509.Certificate, now func() time.Time) Verify {
	return func(cs tls.ConnectionState) error {
		_, err := VerifyController(cs.PeerCertificates, trustDomain, root, now())
		return err
	}
}

// PeerName returns the name that a completed handshake has verified. Before that it
// fails. It does not verify again.
func PeerName(cs tls.ConnectionState) (Name, error) {
	if !cs.HandshakeComplete {
		return Name{}, refuse(ReasonIdentity, "the handshake is not over, and nobody's name proven")
	}
	if len(cs.PeerCertificates) == 0 {
		return Name{}, refuse(ReasonNoCertificate, "the peer presented no certificate")
	}
	name, err := leafName(cs.PeerCertificates[0])
	if err != nil {
		return Name{}, refuse(ReasonIdentity, "%w", err)
	}
	return name, nil
}
