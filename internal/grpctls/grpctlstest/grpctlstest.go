// Package grpctlstest provides tests with TLS configurations of a server and a client
// that trust each other.
//
//	Pair ─▶ one temporary CA ─▶ tls.Config of the server, tls.Config of the client
//
// Invariants: nothing outlives the test, and the certificates are valid at the test's
// time, which may be fake.
package grpctlstest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"time"
)

// ServerName is the DNS name in the server's certificate.
const ServerName = "server.test"

// Pair returns the configurations of a server and a client for mutual TLS 1.3. The
// client's certificate has the common name client.
func Pair(t testing.TB, client string) (server, clientConfig *tls.Config) {
	t.Helper()
	caKey, ca := certificate(t, "authority", nil, nil)
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	issue := func(name string) []tls.Certificate {
		key, leaf := certificate(t, name, ca, caKey)
		return []tls.Certificate{{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}}
	}
	server = &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		Certificates:           issue(ServerName),
		ClientCAs:              pool,
		ClientAuth:             tls.RequireAndVerifyClientCert,
	}
	clientConfig = &tls.Config{
		MinVersion:   tls.VersionTLS13,
		ServerName:   ServerName,
		Certificates: issue(client),
		RootCAs:      pool,
	}
	return server, clientConfig
}

// Config returns a function that always returns c.
func Config(c *tls.Config) func() (*tls.Config, error) {
	return func() (*tls.Config, error) { return c, nil }
}

// certificate generates a key and its certificate. The certificate is signed by parent
// or, if parent is nil, by its own key.
func certificate(t testing.TB, name string, parent *x509.Certificate,
	by *ecdsa.PrivateKey) (*ecdsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(time.Now().UnixNano()),
		Subject:               pkix.Name{CommonName: name},
		DNSNames:              []string{name},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(365 * 24 * time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IsCA:                  parent == nil,
		BasicConstraintsValid: true,
	}
	if parent == nil {
		parent, by = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, by)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return key, leaf
}
