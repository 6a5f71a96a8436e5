package identity

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"slices"
	"time"
)

// RootHash names a root by its certificate's SHA-256.
func RootHash(root *x509.Certificate) [32]byte { return sha256.Sum256(root.Raw) }

// WithRoot returns a controller's credential that presents the root as well, for
// those who do not have it.
func (c *Credential) WithRoot(root *x509.Certificate) *Credential {
	cert := c.cert
	cert.Certificate = append(slices.Clone(cert.Certificate[:1]), root.Raw)
	return &Credential{c.name, cert}
}

// Introduced returns the root that a controller presents beside its own
// certificate, which the root must have signed. Whether the root is anybody's to
// believe is not said by it. Reason tells why an error refused it.
func Introduced(certs []*x509.Certificate, now time.Time) (*x509.Certificate, error) {
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

// VerifyIntroduced believes every controller to be what it introduces itself as:
// what it is let do must rest on something else.
func VerifyIntroduced(now func() time.Time) Verify {
	return func(cs tls.ConnectionState) error {
		_, err := Introduced(cs.PeerCertificates, now())
		return err
	}
}

// VerifyPinned believes the controllers of the cluster whose root has that hash.
func VerifyPinned(hash [32]byte, now func() time.Time) Verify {
	return func(cs tls.ConnectionState) error {
		// The hash comes first: it costs nothing.
		if len(cs.PeerCertificates) == 2 && RootHash(cs.PeerCertificates[1]) != hash {
			return refuse(ReasonUnknownAuthority, "the peer's root is not the one whose hash is known")
		}
		_, err := Introduced(cs.PeerCertificates, now())
		return err
	}
}
