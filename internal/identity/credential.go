package identity

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

// MaxCSR is the longest certificate request that ParseCSR reads, in bytes.
const MaxCSR = 2048

// ErrCSR reports a certificate request that is not accepted.
var ErrCSR = errors.New("certificate request not accepted")

// Credential is a certificate chain and its key, for TLS. It is immutable and safe for
// concurrent use. Only Marshal returns the key.
type Credential struct {
	name Name
	cert tls.Certificate
}

// NewCredential returns the credential of a chain, DER and leaf first, and its key. It
// checks that they match, and not that the chain is trusted.
func NewCredential(chain [][]byte, key PrivateKey) (*Credential, error) {
	if len(chain) == 0 || len(chain) > 1+MaxPresented {
		return nil, fmt.Errorf("a chain of %d certificates is not of 1 to %d", len(chain), 1+MaxPresented)
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, fmt.Errorf("parse a leaf certificate: %w", err)
	}
	name, err := leafName(leaf)
	if err != nil {
		return nil, err
	}
	if key.IsZero() || !key.Public().Equal(leaf.PublicKey) {
		return nil, fmt.Errorf("the certificate of %s is for another key: %w", name, ErrKey)
	}
	raw := make([][]byte, len(chain))
	for i, der := range chain {
		raw[i] = slices.Clone(der)
	}
	return &Credential{name, tls.Certificate{Certificate: raw, PrivateKey: key.key, Leaf: leaf}}, nil
}

// Name returns the name in the leaf.
func (c *Credential) Name() Name { return c.name }

// NotAfter returns when the certificate expires.
func (c *Credential) NotAfter() time.Time { return c.cert.Leaf.NotAfter }

// NotBefore is the moment from which others believe it.
func (c *Credential) NotBefore() time.Time { return c.cert.Leaf.NotBefore }

// Live reports whether the certificate is valid at now.
func (c *Credential) Live(now time.Time) bool {
	return !now.Before(c.cert.Leaf.NotBefore) && now.Before(c.cert.Leaf.NotAfter)
}

// RenewAt returns the middle of the lifetime, when a new certificate should be
// requested.
func (c *Credential) RenewAt() time.Time {
	from, to := c.cert.Leaf.NotBefore, c.cert.Leaf.NotAfter
	return from.Add(to.Sub(from) / 2)
}

// TLS returns the credential for crypto/tls. The caller must not modify it.
func (c *Credential) TLS() *tls.Certificate { return &c.cert }

// Marshal returns the chain and, in the clear, the key as MarshalPEM does: what
// NewCredential takes.
func (c *Credential) Marshal() (chain [][]byte, keyPEM []byte, err error) {
	key, ok := c.cert.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, nil, fmt.Errorf("the credential of %s holds no key: %w", c.name, ErrKey)
	}
	keyPEM, err = PrivateKey{key: key}.MarshalPEM()
	return c.cert.Certificate, keyPEM, err
}

// String returns the name.
func (c *Credential) String() string { return c.name.String() }

// Format writes the name for every verb.
func (c *Credential) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(c.String())) }

// NewCSR returns a certificate request, PKCS #10 in DER, for the key. It contains no
// name, because the signer authenticates the requester by other means.
func NewCSR(key PrivateKey) ([]byte, error) {
	if key.IsZero() {
		return nil, fmt.Errorf("there is no key to ask a certificate for: %w", ErrKey)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key.key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate request: %w", err)
	}
	return der, nil
}

// ParseCSR returns the public key, ECDSA P-256, of a request that is signed with the
// private one. It ignores the rest of the request. Its errors wrap ErrCSR.
func ParseCSR(der []byte) (*ecdsa.PublicKey, error) {
	if len(der) > MaxCSR {
		return nil, fmt.Errorf("a request of %d bytes is longer than %d: %w", len(der), MaxCSR, ErrCSR)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("parse the request (%w): %w", err, ErrCSR)
	}
	if !isP256(csr.PublicKey) {
		return nil, fmt.Errorf("the key is not ECDSA P-256: %w", ErrCSR)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("check the request's signature (%w): %w", err, ErrCSR)
	}
	return csr.PublicKey.(*ecdsa.PublicKey), nil
}
