package identity

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"slices"
	"time"
)

// RootHash returns the SHA-256 of a root's certificate, which identifies it.
func RootHash(root *x509.Certificate) [32]byte { return sha256.Sum256(root.Raw) }

// WithRoot returns a controller's credential that also presents the root, for verifiers
// that do not have it.
func (c *Credential) WithRoot(root *x509.Certificate) *Credential {
	cert := c.cert
	cert.Certificate = append(slices.Clone(cert.Certificate[:1]), root.Raw)
	return &Credential{c.name, cert}
}

// PresentedRoot returns the root that a controller presents beside its own certificate,
// which the root must have signed. It does not decide whether to trust the root. Reason
// returns why an error refused it.
func PresentedRoot(certs []*x509.Certificate, now time.Time) (*x509.Certificate, error) {
	if len(certs) != 2 {
		return nil, refuse(ReasonChainTooLong, "a controller introduces itself by its certificate and its root, not by %d certificates", len(certs))
	}
	domain, err := authorityTrustDomain(certs[1])
	if err != nil {
		return nil, refuse(ReasonUnknownAuthority, "%w", err)
	}
	if _, err := verifyController(certs[:1], domain, certs[1], now); err != nil {
		return nil, err
	}
	return certs[1], nil
}

// VerifyAnyRoot accepts every controller under the root that it presents. Authorization
// must rest on something else.
func VerifyAnyRoot(now func() time.Time) Verify {
	return func(cs tls.ConnectionState) error {
		_, err := PresentedRoot(cs.PeerCertificates, now())
		return err
	}
}

// VerifyPinned accepts the controllers of the cluster whose root has that hash.
func VerifyPinned(hash [32]byte, now func() time.Time) Verify {
	return func(cs tls.ConnectionState) error {
		// The hash is checked first, because that is cheap.
		if len(cs.PeerCertificates) == 2 && RootHash(cs.PeerCertificates[1]) != hash {
			return refuse(ReasonUnknownAuthority, "the peer's root is not the one whose hash is known")
		}
		_, err := PresentedRoot(cs.PeerCertificates, now())
		return err
	}
}
