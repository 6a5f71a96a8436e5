package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net/url"
	"time"
)

// Lifetimes of what is signed, counted from the moment of signing. Every
// certificate is backdated besides, and none outlives its signer.
const (
	RootLifetime       = 10 * 365 * 24 * time.Hour
	IssuerLifetime     = 365 * 24 * time.Hour
	ControllerLifetime = 24 * time.Hour
	WorkloadLifetime   = 24 * time.Hour
	// Backdate is how far NotBefore lies before the moment of signing, for
	// peers whose clocks are behind.
	Backdate = 5 * time.Minute
)

// ErrAuthority reports a certificate that is not the root or issuer that it
// should be.
var ErrAuthority = errors.New("not such an authority")

// authority is a CA certificate of one trust domain with its key.
type authority struct {
	trustDomain string
	cert        *x509.Certificate
	key         PrivateKey
}

// TrustDomain is the trust domain that the authority vouches for.
func (a *authority) TrustDomain() string { return a.trustDomain }

// Certificate returns the certificate, which must not be modified.
func (a *authority) Certificate() *x509.Certificate { return a.cert }

// MarshalPEM returns certificate and PKCS #8 key, the latter in the clear.
func (a *authority) MarshalPEM() (certPEM, keyPEM []byte, err error) {
	keyPEM, err = a.key.MarshalPEM()
	if err != nil {
		return nil, nil, err
	}
	return encodeCertificate(a.cert.Raw), keyPEM, nil
}

// Root is a cluster's long-lived authority: self-signed, or imported and signed by
// another root that peers pin. It signs controllers' certificates, issuers, and the
// list of issuers, but no workload certificates.
type Root struct {
	authority
	anchor *x509.Certificate // nil: itself
}

// NewRoot makes a root for a trust domain.
func NewRoot(trustDomain string, now time.Time) (*Root, error) {
	if err := ValidTrustDomain(trustDomain); err != nil {
		return nil, err
	}
	key, err := NewPrivateKey()
	if err != nil {
		return nil, err
	}
	template := authorityTemplate(trustDomain, "root", now, RootLifetime)
	template.MaxPathLen = 1
	cert, err := sign(template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make the root of trust domain %q: %w", trustDomain, err)
	}
	return &Root{authority: authority{trustDomain, cert, key}}, nil
}

// ParseRoot reads what MarshalPEM writes. Its errors wrap ErrAuthority or ErrKey.
func ParseRoot(certPEM, keyPEM []byte) (*Root, error) {
	a, err := parseAuthority(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	if err := checkRoot(a.cert, a.trustDomain); err != nil {
		return nil, err
	}
	return &Root{authority: a}, nil
}

// ParseRootCertificate reads what a Link pins, PEM: the root of a given trust domain,
// or one that is of no trust domain and has signed it. It does not ask the clock. Its errors wrap ErrAuthority
// or ErrKey unless the PEM itself is broken.
func ParseRootCertificate(certPEM []byte, trustDomain string) (*x509.Certificate, error) {
	cert, err := parseCertificatePEM(certPEM)
	if err != nil {
		return nil, fmt.Errorf("root of trust domain %q: %w", trustDomain, err)
	}
	if err := checkAnchor(cert, trustDomain); err != nil {
		return nil, err
	}
	return cert, nil
}

// NewIssuer makes an issuer of workloads' certificates, signed by the root.
func (r *Root) NewIssuer(now time.Time) (*Issuer, error) {
	key, err := NewPrivateKey()
	if err != nil {
		return nil, err
	}
	template := authorityTemplate(r.trustDomain, "issuer", now, IssuerLifetime)
	template.MaxPathLenZero = true
	cert, err := r.sign(template, key.Public(), now)
	if err != nil {
		return nil, fmt.Errorf("make an issuer of trust domain %q: %w", r.trustDomain, err)
	}
	return &Issuer{authority{r.trustDomain, cert, key}}, nil
}

// SignController signs the certificate of a controller replica of this cluster, for a
// server under its DNS names and for a client. The chain, DER, is only the leaf,
// because the verifier has the root or gets the cross certificates that lead to it.
func (r *Root) SignController(pub *ecdsa.PublicKey, name Name, dnsNames []string, now time.Time) ([][]byte, error) {
	if name.ServiceAccount() != ControllerServiceAccount {
		return nil, fmt.Errorf("the root signs no %q, only the service account %s: %w", name, ControllerServiceAccount, ErrInvalidName)
	}
	for _, host := range dnsNames {
		if !isSubdomain(host) {
			return nil, fmt.Errorf("DNS name %q of %s: %w", clip(host), name, ErrInvalidName)
		}
	}
	leaf, err := r.signLeaf(pub, name, dnsNames, now, ControllerLifetime)
	if err != nil {
		return nil, err
	}
	return [][]byte{leaf.Raw}, nil
}

// Issuer signs workloads' certificates. Peers learn of it by the issuer list.
type Issuer struct{ authority }

// ParseIssuer reads what MarshalPEM writes, and checks that one of roots signed it. Its
// errors wrap ErrAuthority or ErrKey unless the PEM itself is broken.
func ParseIssuer(certPEM, keyPEM []byte, roots ...*x509.Certificate) (*Issuer, error) {
	a, err := parseAuthority(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("issuer: %w", err)
	}
	if err := checkIssuer(a.cert, a.trustDomain); err != nil {
		return nil, err
	}
	if err := checkListed(a.cert, roots); err != nil {
		return nil, err
	}
	return &Issuer{a}, nil
}

// SignWorkload signs a workload's certificate, an X.509-SVID, for 24 hours or
// for as long as the issuer lives. The chain, DER, is the leaf and the issuer.
// Who may have which name is the signer's to decide.
func (i *Issuer) SignWorkload(pub *ecdsa.PublicKey, name Name, now time.Time) ([][]byte, error) {
	leaf, err := i.signLeaf(pub, name, nil, now, WorkloadLifetime)
	if err != nil {
		return nil, err
	}
	return [][]byte{leaf.Raw, i.cert.Raw}, nil
}

func (a *authority) signLeaf(pub *ecdsa.PublicKey, name Name, dnsNames []string, now time.Time, lifetime time.Duration) (*x509.Certificate, error) {
	if !isP256(pub) {
		return nil, fmt.Errorf("the key for %s is not ECDSA P-256: %w", name, ErrKey)
	}
	if name.TrustDomain() != a.trustDomain {
		return nil, fmt.Errorf("trust domain %q does not vouch for %q: %w", a.trustDomain, name, ErrInvalidName)
	}
	leaf, err := a.sign(&x509.Certificate{
		NotBefore:             now.Add(-Backdate),
		NotAfter:              now.Add(lifetime),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{name.URL()},
		DNSNames:              dnsNames,
	}, pub, now)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", name, err)
	}
	return leaf, nil
}

// valid returns an error if the authority may not sign at a time. Its validity may begin up
// to Backdate later, because another clock, which may be ahead, has set the beginning.
func (a *authority) valid(now time.Time) error {
	if now.Add(Backdate).Before(a.cert.NotBefore) || !now.Before(a.cert.NotAfter) {
		return fmt.Errorf("the certificate of %s is valid from %s to %s only", a.cert.Subject.CommonName,
			utc(a.cert.NotBefore), utc(a.cert.NotAfter))
	}
	return nil
}

// sign signs template within the authority's own time.
func (a *authority) sign(template *x509.Certificate, pub any, now time.Time) (*x509.Certificate, error) {
	if err := a.valid(now); err != nil {
		return nil, err
	}
	if template.NotAfter.After(a.cert.NotAfter) {
		template.NotAfter = a.cert.NotAfter
	}
	return sign(template, a.cert, pub, a.key)
}

func sign(template, parent *x509.Certificate, pub any, key PrivateKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, key.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func authorityTemplate(trustDomain, kind string, now time.Time, lifetime time.Duration) *x509.Certificate {
	return &x509.Certificate{
		Subject:               pkix.Name{Organization: []string{"Causeway"}, CommonName: commonName(trustDomain, kind)},
		NotBefore:             now.Add(-Backdate),
		NotAfter:              now.Add(lifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		URIs:                  []*url.URL{{Scheme: "spiffe", Host: trustDomain}},
	}
}

// commonName is for human eyes, and X.520 gives it 64 characters.
func commonName(trustDomain, kind string) string {
	if s := trustDomain + " " + kind; len(s) <= 64 {
		return s
	}
	return kind
}

func parseAuthority(certPEM, keyPEM []byte) (authority, error) {
	cert, err := parseCertificatePEM(certPEM)
	if err != nil {
		return authority{}, err
	}
	key, err := ParsePrivateKey(keyPEM)
	if err != nil {
		return authority{}, err
	}
	if !key.Public().Equal(cert.PublicKey) {
		return authority{}, fmt.Errorf("key and certificate do not belong together: %w", ErrAuthority)
	}
	trustDomain, err := authorityTrustDomain(cert)
	if err != nil {
		return authority{}, err
	}
	return authority{trustDomain, cert, key}, nil
}

// checkRoot checks everything of a root but its dates. A root signs lists of
// issuers by ECDSA P-256, so no other key will do.
func checkRoot(cert *x509.Certificate, trustDomain string) error {
	if cert == nil || !isP256(cert.PublicKey) {
		return fmt.Errorf("the root of trust domain %q has no P-256 key: %w", trustDomain, ErrKey)
	}
	if len(cert.URIs) == 0 {
		return fmt.Errorf("root: an authority has one URI, spiffe://TRUST-DOMAIN, and not 0: %w", ErrAuthority)
	}
	return checkAnchor(cert, trustDomain)
}

// checkAnchor checks everything of what a Link pins but its dates. What names no trust domain
// acts for none, but may sign the roots of some.
func checkAnchor(cert *x509.Certificate, trustDomain string) error {
	if cert == nil {
		return fmt.Errorf("the root of trust domain %q is missing: %w", trustDomain, ErrAuthority)
	}
	if err := checkAuthorityKey(cert.PublicKey); err != nil {
		return fmt.Errorf("the root of trust domain %q: %w", trustDomain, err)
	}
	if len(cert.URIs) > 0 {
		if err := checkAuthority(cert, trustDomain); err != nil {
			return fmt.Errorf("root: %w", err)
		}
	}
	if err := checkSigns(cert, trustDomain); err != nil {
		return fmt.Errorf("root: %w", err)
	}
	if !bytes.Equal(cert.RawIssuer, cert.RawSubject) {
		return fmt.Errorf("the root of trust domain %q is not self-signed: %w", trustDomain, ErrAuthority)
	}
	if err := cert.CheckSignatureFrom(cert); err != nil {
		return fmt.Errorf("the root of trust domain %q is not self-signed (%w): %w", trustDomain, err, ErrAuthority)
	}
	return nil
}

// checkIssuer checks what an issuer says of itself, without any signature.
func checkIssuer(cert *x509.Certificate, trustDomain string) error {
	if err := checkAuthorityKey(cert.PublicKey); err != nil {
		return fmt.Errorf("issuer of trust domain %q: %w", trustDomain, err)
	}
	if err := checkAuthority(cert, trustDomain); err != nil {
		return fmt.Errorf("issuer: %w", err)
	}
	if bytes.Equal(cert.RawIssuer, cert.RawSubject) {
		return fmt.Errorf("a self-signed certificate is no issuer of trust domain %q: %w", trustDomain, ErrAuthority)
	}
	return nil
}

// checkSignedBy checks that root vouches for issuer and is another key: a root
// among the issuers would let controllers' certificates pass for workloads'.
func checkSignedBy(issuer, root *x509.Certificate) error {
	if bytes.Equal(issuer.RawSubjectPublicKeyInfo, root.RawSubjectPublicKeyInfo) {
		return fmt.Errorf("the root's own key is no issuer: %w", ErrAuthority)
	}
	if err := issuer.CheckSignatureFrom(root); err != nil {
		return fmt.Errorf("the issuer is not signed by the root (%w): %w", err, ErrAuthority)
	}
	return nil
}

func checkAuthority(cert *x509.Certificate, trustDomain string) error {
	got, err := authorityTrustDomain(cert)
	if err != nil {
		return err
	}
	if got != trustDomain {
		return fmt.Errorf("the certificate is of trust domain %q, not %q: %w", got, trustDomain, ErrAuthority)
	}
	return checkSigns(cert, trustDomain)
}

func checkSigns(cert *x509.Certificate, trustDomain string) error {
	if !cert.BasicConstraintsValid || !cert.IsCA || cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		return fmt.Errorf("the certificate of trust domain %q may not sign certificates: %w", trustDomain, ErrAuthority)
	}
	return nil
}

// authorityTrustDomain reads the one URI of an authority, spiffe://TRUST-DOMAIN.
func authorityTrustDomain(cert *x509.Certificate) (string, error) {
	if cert == nil {
		return "", fmt.Errorf("there is no certificate: %w", ErrAuthority)
	}
	if len(cert.URIs) != 1 {
		return "", fmt.Errorf("an authority has one URI, spiffe://TRUST-DOMAIN, and not %d: %w", len(cert.URIs), ErrAuthority)
	}
	host := cert.URIs[0].Host
	if cert.URIs[0].String() != "spiffe://"+host {
		return "", fmt.Errorf("an authority's URI is spiffe://TRUST-DOMAIN and not %q: %w", clip(cert.URIs[0].String()), ErrAuthority)
	}
	if err := ValidTrustDomain(host); err != nil {
		return "", fmt.Errorf("%w: %w", err, ErrAuthority)
	}
	return host, nil
}
