package identity

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"
)

// An imported root is an authority that another tool has made for a cluster, such as
// cert-manager: a certificate and key, signed by another root that peers pin. Peers
// treat it like a cross certificate.

// ImportRoot reads a root that was made elsewhere. It checks that verifiers that pin
// the anchor accept what is signed under the root. certPEM may hold further
// certificates, which are ignored. An empty anchorPEM is for a self-signed root. Its
// errors say what to change.
func ImportRoot(certPEM, keyPEM, anchorPEM []byte, now time.Time) (*Root, error) {
	first, err := firstPEM(certPEM)
	if err != nil {
		return nil, err
	}
	r, err := ParseImportedRoot(first, keyPEM, anchorPEM)
	if err != nil {
		return nil, err
	}
	if err := r.valid(now); err != nil {
		return nil, fmt.Errorf("%w: %w", err, ErrAuthority)
	}
	return r, r.checkCanSign(now)
}

// ParseImportedRoot reads a root that ImportRoot has accepted before.
func ParseImportedRoot(certPEM, keyPEM, anchorPEM []byte) (*Root, error) {
	cert, err := parseCertificatePEM(certPEM)
	if err != nil {
		return nil, err
	}
	trustDomain, err := authorityTrustDomain(cert)
	if err != nil {
		return nil, err
	}
	if err := checkRootCapable(cert, trustDomain); err != nil {
		return nil, err
	}
	key, err := parseImportedKey(keyPEM)
	if err != nil {
		return nil, err
	}
	if !key.Public().Equal(cert.PublicKey) {
		return nil, fmt.Errorf("key and certificate do not belong together: %w", ErrAuthority)
	}
	r := &Root{authority: authority{trustDomain, cert, key}}
	if len(bytes.TrimSpace(anchorPEM)) == 0 {
		return r, checkRoot(cert, trustDomain)
	}
	anchor, err := ParseRootCertificate(anchorPEM, trustDomain)
	if err != nil {
		return nil, err
	}
	if anchor.Equal(cert) {
		return r, nil
	}
	if err := cert.CheckSignatureFrom(anchor); err != nil {
		return nil, fmt.Errorf("the certificate is not signed by the root beside it (%w): %w", err, ErrAuthority)
	}
	r.anchor = anchor
	return r, nil
}

// checkCanSign signs an issuer and a workload as a test, and verifies them up to the
// anchor, with path lengths, name constraints and usages.
func (r *Root) checkCanSign(now time.Time) error {
	issuer, err := r.NewIssuer(now)
	if err != nil {
		return err
	}
	key, err := NewPrivateKey()
	if err != nil {
		return err
	}
	name, err := NewName(r.trustDomain, "try", "try")
	if err != nil {
		return err
	}
	chain, err := issuer.SignWorkload(key.Public(), name, now)
	if err != nil {
		return err
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return fmt.Errorf("parse what was just signed: %w", err)
	}
	anchors, between := x509.NewCertPool(), x509.NewCertPool()
	anchors.AddCert(r.Anchor())
	between.AddCert(issuer.cert)
	between.AddCert(r.cert)
	_, err = leaf.Verify(x509.VerifyOptions{
		Roots: anchors, Intermediates: between, CurrentTime: clampToNotBefore(now, []*x509.Certificate{r.cert, r.Anchor()}),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return fmt.Errorf("workloads' certificates signed under it would not be believed (%w): %w", err, ErrAuthority)
	}
	return nil
}

// firstPEM returns the first certificate of a file that may hold a chain.
func firstPEM(data []byte) ([]byte, error) {
	if len(data) > maxPEM {
		return nil, fmt.Errorf("the certificate is longer than %d bytes", maxPEM)
	}
	block, _ := pem.Decode([]byte(strings.TrimSpace(string(data))))
	if block == nil || block.Type != pemCert {
		return nil, errors.New("there is no certificate in PEM")
	}
	return encodeCertificate(block.Bytes), nil
}

// Equal reports whether two roots have the same certificate and anchor.
func (r *Root) Equal(other *Root) bool {
	return other != nil && r.cert.Equal(other.cert) && r.Anchor().Equal(other.Anchor())
}

// SameKey reports whether two roots have the same key.
func (r *Root) SameKey(other *Root) bool {
	return bytes.Equal(r.cert.RawSubjectPublicKeyInfo, other.cert.RawSubjectPublicKeyInfo)
}
