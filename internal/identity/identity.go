// Package identity answers who a peer is and whether to believe it: names,
// keys, authorities, certificates, their verification, and every tls.Config.
//
//	Root ──signs──▶ controllers' certificates ─────────▶ VerifyController ─┐
//	  │                                                                    ├─▶ VerifyConnection ─▶ PeerName
//	  ├──signs──▶ Issuer ──signs──▶ workloads' SVIDs ──▶ VerifyWorkload  ──┴─▶ Proof
//	  └──signs──▶ IssuerList ──▶ VerifyIssuerList ──▶ Anchors ──▲
//
//	LinkKey + peer's public key ─▶ LinkSecret ─▶ DayKey
//
// What always holds:
//   - A Name exists only if it is valid; a trust domain vouches for its own names alone.
//   - A workload's chain ends at an issuer listed for exactly its trust domain, a
//     controller's at the root, or at one that follows it; neither ever passes for the
//     other.
//   - No signature is verified before the bounds on the chain and on the
//     authorities' keys are checked.
//   - TLS is 1.3, under an ALPN protocol of its plane, and never resumed. Only
//     ClientTLS, ServerTLS and HelloTLS make a tls.Config; a test keeps it so.
//   - Verification has no side effects, since it runs before the peer has proven
//     that it holds its key. PeerName and Proof answer only afterwards, and only Proof
//     changes the cache that spares the next verification of the same leaf.
//   - A cached proof counts only while its issuer is listed and all its dates hold.
//   - Private keys do not print.
package identity

import (
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// maxChain is how many certificates a workload may present.
const maxChain = 3

// VerifyWorkload returns the name that a chain, leaf first, proves at a time,
// provided that an issuer in anchors vouches for it. The same chain may be asked
// about again whenever anchors or time have changed. Reason tells why an error
// refused it.
func VerifyWorkload(certs []*x509.Certificate, anchors *Anchors, now time.Time) (Name, error) {
	p, err := verifyWorkload(certs, anchors, now)
	if err != nil {
		return Name{}, err
	}
	return p.name, nil
}

// verifyWorkload is VerifyWorkload. A leaf that the cache knows needs no signature.
// Otherwise the leaf is verified by the listed issuer that it names as its signer: the
// certificates that the peer presents beside it cannot matter then, and would only cost
// the check of another signature. They count if the leaf names no listed issuer.
func verifyWorkload(certs []*x509.Certificate, anchors *Anchors, now time.Time) (*Proof, error) {
	name, err := inspect(certs, maxChain)
	if err != nil {
		return nil, err
	}
	if p := anchors.proofOf(certs[0]); p != nil && p.Check(anchors, now) == nil {
		return p, nil
	}
	chain := certs
	var authorities x509bundle.Source = anchors
	if signers := anchors.signersOf(certs[0], name.TrustDomain()); len(signers) > 0 {
		trustDomain, err := spiffeid.TrustDomainFromString(name.TrustDomain())
		if err != nil {
			return nil, refuse(ReasonIdentity, "%w", err)
		}
		chain, authorities = certs[:1], x509bundle.FromX509Authorities(trustDomain, signers)
	}
	verified, err := verifyChain(chain, name, authorities, now)
	if err != nil {
		return nil, refuseChain(certs, now, name, err)
	}
	return newProof(name, verified), nil
}

// VerifyController returns the name of a controller replica of the cluster of a trust
// domain whose root is given, a certificate from ParseRootCertificate. The chain is a
// leaf that the root has signed, or one that follows it by the cross certificates
// beside the leaf, and its ServiceAccount is causeway-controller. It may begin up to
// ClockTolerance from now. Reason tells why an error refused it.
func VerifyController(certs []*x509.Certificate, trustDomain string, root *x509.Certificate, now time.Time) (Name, error) {
	return verifyController(certs, trustDomain, root, clampToNotBefore(now, append(certs[:len(certs):len(certs)], root)))
}

// verifyController is VerifyController without tolerance.
func verifyController(certs []*x509.Certificate, trustDomain string, root *x509.Certificate, now time.Time) (Name, error) {
	name, err := inspect(certs, 1+MaxPresented)
	if err != nil {
		return Name{}, err
	}
	anchor, err := rootAnchor(root, trustDomain, certs[1:], now)
	if err != nil {
		return Name{}, refuse(ReasonUnknownAuthority, "%w", err)
	}
	if _, err := verifyChain(certs[:1], name, anchor, now); err != nil {
		return Name{}, refuseChain(certs[:1], now, name, err)
	}
	if name.ServiceAccount() != ControllerServiceAccount {
		return Name{}, refuse(ReasonUnexpected, "%s is not the controller's service account", name)
	}
	return name, nil
}

// ClockTolerance is how far ahead the clock of a controller's cluster may be.
// Controllers compare clocks with each other and with their nodes. They can report a
// wrong clock only if they accept the connection. The tolerance costs no security,
// because a key that is valid tomorrow is as good today.
const ClockTolerance = 24 * time.Hour

// clampToNotBefore is now or, if certificates begin a little later, the moment when all
// have.
func clampToNotBefore(now time.Time, certs []*x509.Certificate) time.Time {
	at := now
	for _, c := range certs {
		if c.NotBefore.After(at) && c.NotBefore.Sub(now) <= ClockTolerance {
			at = c.NotBefore
		}
	}
	return at
}

// rootAnchor is the set that VerifyController alone may use.
func rootAnchor(root *x509.Certificate, name string, crosses []*x509.Certificate, now time.Time) (*Anchors, error) {
	if err := checkAnchor(root, name); err != nil {
		return nil, err
	}
	trustDomain, err := spiffeid.TrustDomainFromString(name)
	if err != nil {
		return nil, fmt.Errorf("trust domain %q: %w: %w", name, err, ErrInvalidName)
	}
	bundle := x509bundle.FromX509Authorities(trustDomain, rootsOfDomain(crossSignedRoots(root, name, crosses, now), name))
	return &Anchors{bundles: map[spiffeid.TrustDomain]*x509bundle.Bundle{trustDomain: bundle}}, nil
}

// verifyChain returns the verified chain from a leaf, which inspect has passed, to an
// authority.
func verifyChain(
	certs []*x509.Certificate, name Name, authorities x509bundle.Source, now time.Time,
) ([]*x509.Certificate, error) {
	id, chains, err := x509svid.Verify(certs, authorities, x509svid.WithTime(now))
	if err != nil {
		return nil, err
	}
	if id.String() != name.String() {
		return nil, refuse(ReasonIdentity, "%q is read as %q", name, id)
	}
	return chains[0], nil
}

// inspect checks all that can be checked of a stranger's chain without verifying
// a signature.
func inspect(certs []*x509.Certificate, most int) (Name, error) {
	if len(certs) == 0 {
		return Name{}, refuse(ReasonNoCertificate, "the peer presents no certificate")
	}
	if len(certs) > most {
		return Name{}, refuse(ReasonChainTooLong, "a chain of %d certificates is longer than %d", len(certs), most)
	}
	leaf := certs[0]
	if !isP256(leaf.PublicKey) {
		return Name{}, refuse(ReasonLeafKey, "the leaf's key is not ECDSA P-256")
	}
	for _, authority := range certs[1:] {
		if err := checkAuthorityKey(authority.PublicKey); err != nil {
			return Name{}, refuse(ReasonAuthorityKey, "%w", err)
		}
	}
	name, err := leafName(leaf)
	if err != nil {
		return Name{}, refuse(ReasonIdentity, "%w", err)
	}
	if leaf.IsCA || leaf.KeyUsage != x509.KeyUsageDigitalSignature ||
		!slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) ||
		!slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) {
		return Name{}, refuse(ReasonLeafUsage, "the certificate of %s is not for signing as client and server alone", name)
	}
	return name, nil
}

func leafName(leaf *x509.Certificate) (Name, error) {
	if len(leaf.URIs) != 1 {
		return Name{}, fmt.Errorf("a leaf certificate names one URI, not %d: %w", len(leaf.URIs), ErrInvalidName)
	}
	return ParseName(leaf.URIs[0].String())
}
