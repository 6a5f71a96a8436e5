package identity

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"slices"
	"time"
)

// A cross certificate is one root's key signed by another root of the trust domain. By it
// whoever holds the one believes the other:
//
//	root that a Link pins ──signs──▶ cross (next root's key) ──signs──▶ cross ... ──▶ root of now
//
// MaxCrosses is how many of them a list of issuers may carry, and MaxPresented how many a
// controller may present beside its own certificate.
const (
	MaxCrosses   = 6
	MaxPresented = 3
)

// CrossSign returns the cross certificate by which those who hold r believe other, for as
// long as both live.
func (r *Root) CrossSign(other *x509.Certificate, now time.Time) (*x509.Certificate, error) {
	if err := checkHeir(other, r.trustDomain); err != nil {
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

// checkHeir checks what a certificate says of itself that is to act as a root of a trust
// domain. A path length of 0 is an issuer's: one that is stolen is no root.
func checkHeir(cert *x509.Certificate, trustDomain string) error {
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

// heirs returns whoever is a root to those who hold root: itself, and those whom
// it or an heir has endorsed by one of crosses, of which there may be MaxCrosses. With a
// time, all must be valid then.
func heirs(root *x509.Certificate, trustDomain string, crosses []*x509.Certificate, now time.Time) []*x509.Certificate {
	valid := func(c *x509.Certificate) bool {
		return now.IsZero() || !now.Before(c.NotBefore) && !now.After(c.NotAfter)
	}
	if len(crosses) > MaxCrosses || len(crosses) > 0 && !valid(root) {
		return []*x509.Certificate{root}
	}
	out, left := []*x509.Certificate{root}, slices.Clone(crosses)
	for i := 0; i < len(out); i++ {
		left = slices.DeleteFunc(left, func(c *x509.Certificate) bool {
			if checkHeir(c, trustDomain) != nil || !valid(c) || !bytes.Equal(c.RawIssuer, out[i].RawSubject) || c.CheckSignatureFrom(out[i]) != nil {
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

// acting are those of roots that act for the trust domain themselves.
func acting(roots []*x509.Certificate, trustDomain string) []*x509.Certificate {
	return slices.DeleteFunc(roots, func(c *x509.Certificate) bool {
		got, err := authorityTrustDomain(c)
		return err != nil || got != trustDomain
	})
}

// SignedBy reports whether one of roots has signed issuer.
func SignedBy(issuer *x509.Certificate, roots ...*x509.Certificate) bool {
	return slices.ContainsFunc(roots, func(r *x509.Certificate) bool { return checkSignedBy(issuer, r) == nil })
}

// checkListed checks that one of roots vouches for issuer, and that it is none of them.
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

// Anchor is the certificate that peers pin.
func (r *Root) Anchor() *x509.Certificate {
	if r.anchor != nil {
		return r.anchor
	}
	return r.cert
}

// AnchorPEM is Anchor as PEM.
func (r *Root) AnchorPEM() []byte { return encodeCertificate(r.Anchor().Raw) }

// Intermediates are the certificates that lead from the anchor to the root; none, if it is the anchor.
func (r *Root) Intermediates() []*x509.Certificate {
	if r.anchor == nil {
		return nil
	}
	return []*x509.Certificate{r.cert}
}
