package identity

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"slices"
	"time"
)

// A cross certificate is one root's key signed by another root of the trust domain. A
// verifier that trusts the second root also trusts the first:
//
//	root that a Link pins ──signs──▶ cross (next root's key) ──signs──▶ cross ... ──▶ current root
//
// MaxCrosses is how many of them a list of issuers may have. MaxPresented is how many a
// controller may present beside its own certificate.
const (
	MaxCrosses   = 6
	MaxPresented = 3
)

// CrossSign returns the cross certificate by which verifiers that trust r also trust
// other, until either expires.
func (r *Root) CrossSign(other *x509.Certificate, now time.Time) (*x509.Certificate, error) {
	if err := checkRootCapable(other, r.trustDomain); err != nil {
		return nil, err
	}
	if bytes.Equal(other.RawSubjectPublicKeyInfo, r.cert.RawSubjectPublicKeyInfo) {
		return nil, fmt.Errorf("a root does not endorse itself: %w", ErrAuthority)
	}
	template := authorityTemplate(r.trustDomain, "root", now, 0)
	template.RawSubject, template.NotAfter, template.MaxPathLen = other.RawSubject, other.NotAfter, 1
	cross, err := r.sign(template, other.PublicKey, now)
	if err != nil {
		return nil, fmt.Errorf("endorse a root of trust domain %q: %w", r.trustDomain, err)
	}
	return cross, nil
}

// checkRootCapable checks the fields of a certificate that is to be a root of a trust
// domain. A path length of 0 is an issuer's, so a stolen issuer cannot become a root.
func checkRootCapable(cert *x509.Certificate, trustDomain string) error {
	if cert == nil || !isP256(cert.PublicKey) {
		return fmt.Errorf("a root of trust domain %q has no P-256 key: %w", trustDomain, ErrKey)
	}
	if err := checkAuthority(cert, trustDomain); err != nil {
		return err
	}
	if cert.MaxPathLen == 0 {
		return fmt.Errorf("the certificate of trust domain %q may sign no authorities: %w", trustDomain, ErrAuthority)
	}
	return nil
}

// crossSignedRoots returns the roots that a verifier trusts that trusts root: root
// itself, and the ones that it or another of them has signed in crosses. There may be
// at most MaxCrosses. With a time, all must be valid then.
func crossSignedRoots(root *x509.Certificate, trustDomain string, crosses []*x509.Certificate, now time.Time) []*x509.Certificate {
	valid := func(c *x509.Certificate) bool {
		return now.IsZero() || !now.Before(c.NotBefore) && !now.After(c.NotAfter)
	}
	if len(crosses) > MaxCrosses || len(crosses) > 0 && !valid(root) {
		return []*x509.Certificate{root}
	}
	out, left := []*x509.Certificate{root}, slices.Clone(crosses)
	for i := 0; i < len(out); i++ {
		left = slices.DeleteFunc(left, func(c *x509.Certificate) bool {
			if checkRootCapable(c, trustDomain) != nil || !valid(c) || !bytes.Equal(c.RawIssuer, out[i].RawSubject) || c.CheckSignatureFrom(out[i]) != nil {
				return false
			}
			if !slices.ContainsFunc(out, func(o *x509.Certificate) bool {
				return bytes.Equal(o.RawSubjectPublicKeyInfo, c.RawSubjectPublicKeyInfo)
			}) {
				out = append(out, c)
			}
			return true
		})
	}
	return out
}

// rootsOfDomain returns the roots that name the trust domain.
func rootsOfDomain(roots []*x509.Certificate, trustDomain string) []*x509.Certificate {
	return slices.DeleteFunc(roots, func(c *x509.Certificate) bool {
		got, err := authorityTrustDomain(c)
		return err != nil || got != trustDomain
	})
}

// SignedBy reports whether one of roots has signed issuer.
func SignedBy(issuer *x509.Certificate, roots ...*x509.Certificate) bool {
	return slices.ContainsFunc(roots, func(r *x509.Certificate) bool { return checkSignedBy(issuer, r) == nil })
}

// checkListed checks that one of roots has signed issuer, and that issuer is not one of
// them.
func checkListed(issuer *x509.Certificate, roots []*x509.Certificate) error {
	var last error
	for _, root := range roots {
		if bytes.Equal(issuer.RawSubjectPublicKeyInfo, root.RawSubjectPublicKeyInfo) {
			return checkSignedBy(issuer, root)
		}
	}
	for _, root := range roots {
		if last = checkSignedBy(issuer, root); last == nil {
			return nil
		}
	}
	return last
}

// Anchor returns the certificate that peers pin.
func (r *Root) Anchor() *x509.Certificate {
	if r.anchor != nil {
		return r.anchor
	}
	return r.cert
}

// AnchorPEM returns Anchor as PEM.
func (r *Root) AnchorPEM() []byte { return encodeCertificate(r.Anchor().Raw) }

// Intermediates returns the certificates between the anchor and the issuers. There are
// none if the root is the anchor.
func (r *Root) Intermediates() []*x509.Certificate {
	if r.anchor == nil {
		return nil
	}
	return []*x509.Certificate{r.cert}
}
