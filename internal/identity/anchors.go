package identity

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"maps"
	"slices"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Anchors is an immutable set of trust domains with the issuers that may vouch for their
// workloads, and the cache that the verification by them uses. It is safe for concurrent
// use. A nil *Anchors trusts no one.
type Anchors struct {
	issuers map[string][]listedIssuer
	bundles map[spiffeid.TrustDomain]*x509bundle.Bundle
	cache   *ProofCache
}

type listedIssuer struct {
	cert        *x509.Certificate
	fingerprint fingerprint
}

// NewAnchors makes a set of trust domain → issuers, whose signatures the caller vouches
// for: they come from VerifyIssuerList or from the cluster's own controller. Each must be
// an issuer of its trust domain and no root.
func NewAnchors(issuers map[string][]*x509.Certificate) (*Anchors, error) {
	a := &Anchors{
		issuers: make(map[string][]listedIssuer, len(issuers)),
		bundles: make(map[spiffeid.TrustDomain]*x509bundle.Bundle, len(issuers)),
	}
	for _, name := range slices.Sorted(maps.Keys(issuers)) {
		if err := checkIssuers(name, issuers[name]); err != nil {
			return nil, err
		}
		trustDomain, err := spiffeid.TrustDomainFromString(name)
		if err != nil {
			return nil, fmt.Errorf("trust domain %q: %w: %w", name, err, ErrInvalidName)
		}
		for _, cert := range issuers[name] {
			a.issuers[name] = append(a.issuers[name], listedIssuer{cert, fingerprintOf(cert)})
		}
		a.bundles[trustDomain] = x509bundle.FromX509Authorities(trustDomain, issuers[name])
	}
	return a, nil
}

// WithCache returns the same set with another cache, which may be nil.
func (a *Anchors) WithCache(c *ProofCache) *Anchors {
	if a == nil {
		return nil
	}
	out := *a
	out.cache = c
	return &out
}

// TrustDomains returns the trust domains of the set, sorted.
func (a *Anchors) TrustDomains() []string {
	if a == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(a.issuers))
}

// Issuers returns the issuers of a trust domain, none if it is not in the set.
func (a *Anchors) Issuers(trustDomain string) []*x509.Certificate {
	var out []*x509.Certificate
	for _, i := range a.listed(trustDomain) {
		out = append(out, i.cert)
	}
	return out
}

func (a *Anchors) listed(trustDomain string) []listedIssuer {
	if a == nil {
		return nil
	}
	return a.issuers[trustDomain]
}

// hasIssuer reports whether an issuer of a trust domain is in the set.
func (a *Anchors) hasIssuer(trustDomain string, issuer fingerprint) bool {
	return slices.ContainsFunc(a.listed(trustDomain), func(i listedIssuer) bool {
		return i.fingerprint == issuer
	})
}

// signersOf returns the listed issuers that have the key with which a leaf says it was
// signed (RFC 5280, 4.2.1.1). Usually there is one, or none.
func (a *Anchors) signersOf(leaf *x509.Certificate, trustDomain string) []*x509.Certificate {
	var out []*x509.Certificate
	for _, i := range a.listed(trustDomain) {
		if len(leaf.AuthorityKeyId) > 0 && bytes.Equal(leaf.AuthorityKeyId, i.cert.SubjectKeyId) &&
			bytes.Equal(leaf.RawIssuer, i.cert.RawSubject) {
			out = append(out, i.cert)
		}
	}
	return out
}

// proofOf returns what the cache knows of a leaf, or nil.
func (a *Anchors) proofOf(leaf *x509.Certificate) *Proof {
	if a == nil || a.cache == nil {
		return nil
	}
	return a.cache.get(fingerprintOf(leaf))
}

// GetX509BundleForTrustDomain makes Anchors an x509bundle.Source.
func (a *Anchors) GetX509BundleForTrustDomain(trustDomain spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	if a != nil {
		if bundle, ok := a.bundles[trustDomain]; ok {
			return bundle, nil
		}
	}
	return nil, refuse(ReasonTrustDomain, "no issuer is known for trust domain %q", trustDomain)
}
