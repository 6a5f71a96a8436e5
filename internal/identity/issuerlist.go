package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"
)

const (
	// MaxIssuerList is the longest signed list, in bytes.
	MaxIssuerList = 32 << 10
	// MaxIssuers is how many issuers a trust domain may have at one time.
	MaxIssuers = 4

	issuerListContext = "causeway issuer list/1\n"
	crossedContext    = "causeway issuer list/2\n"
)

// ErrIssuerList reports a list of issuers that must not be applied.
var ErrIssuerList = errors.New("issuer list not accepted")

// IssuerList is who may vouch for the workloads of a trust domain now. The root signs
// it, or one that follows it. A receiver that has applied a number applies no lower
// one.
type IssuerList struct {
	TrustDomain string
	// Number is at least 1 and below 2^63.
	Number uint64
	// Issuers are 1 to MaxIssuers certificates, each signed by the root or by one that
	// follows it.
	Issuers []*x509.Certificate
	// Root has signed the list: the root that the receiver holds, or the cross
	// certificate of one that follows it.
	Root *x509.Certificate
}

// listDER is the list's ASN.1:
//
//	IssuerList ::= SEQUENCE {
//	    trustDomain UTF8String,
//	    number      INTEGER,
//	    issuers     SEQUENCE OF OCTET STRING } -- Certificate
type listDER struct {
	TrustDomain string `asn1:"utf8"`
	Number      int64
	Issuers     [][]byte
}

// signedListDER is what crosses:
//
//	SignedIssuerList ::= SEQUENCE {
//	    list      OCTET STRING,  -- IssuerList
//	    signature OCTET STRING,  -- Ecdsa-Sig-Value over context, list and crosses
//	    crosses   [0] EXPLICIT SEQUENCE OF OCTET STRING OPTIONAL } -- Certificate
type signedListDER struct {
	List      []byte
	Signature []byte
	Crosses   [][]byte `asn1:"optional,explicit,tag:0"`
}

// SignIssuerList returns the signed list, DER, of the root's trust domain. crosses lead
// those who hold another root to this one, or to a listed issuer's.
func (r *Root) SignIssuerList(number uint64, issuers []*x509.Certificate, crosses ...*x509.Certificate) ([]byte, error) {
	if number > math.MaxInt64 {
		return nil, fmt.Errorf("number %d: %w", number, ErrIssuerList)
	}
	raw := listDER{TrustDomain: r.trustDomain, Number: int64(number)}
	for _, issuer := range issuers {
		raw.Issuers = append(raw.Issuers, issuer.Raw)
	}
	list, err := asn1.Marshal(raw)
	if err != nil {
		return nil, fmt.Errorf("marshal the issuer list: %w", err)
	}
	signed := signedListDER{List: list}
	for _, c := range crosses {
		signed.Crosses = append(signed.Crosses, c.Raw)
	}
	signed.Signature, err = ecdsa.SignASN1(rand.Reader, r.key.key, signed.digest())
	if err != nil {
		return nil, fmt.Errorf("sign the issuer list: %w", err)
	}
	der, err := asn1.Marshal(signed)
	if err != nil {
		return nil, fmt.Errorf("marshal the signed issuer list: %w", err)
	}
	// Check now what peers would refuse, while the operator can act on it.
	if _, err := VerifyIssuerList(r.Anchor(), r.trustDomain, der); err != nil {
		return nil, err
	}
	return der, nil
}

// VerifyIssuerList returns what the root of a trust domain has signed, or one that
// follows it by the list's cross certificates. Nothing else
// inside is read before the signature is good, and no issuer's own signature is
// checked before its key is one of those allowed. It asks neither the clock nor
// which number came before. Its errors wrap ErrIssuerList.
func VerifyIssuerList(root *x509.Certificate, trustDomain string, der []byte) (IssuerList, error) {
	list, err := openIssuerList(root, trustDomain, der)
	if err != nil {
		return IssuerList{}, fmt.Errorf("issuer list of trust domain %q: %w: %w", trustDomain, err, ErrIssuerList)
	}
	return list, nil
}

func openIssuerList(root *x509.Certificate, trustDomain string, der []byte) (IssuerList, error) {
	if err := checkAnchor(root, trustDomain); err != nil {
		return IssuerList{}, err
	}
	if len(der) > MaxIssuerList {
		return IssuerList{}, fmt.Errorf("%d bytes are more than %d", len(der), MaxIssuerList)
	}
	signed, err := unmarshalStrict[signedListDER](der)
	if err != nil {
		return IssuerList{}, err
	}
	roots, err := signed.roots(root, trustDomain)
	if err != nil {
		return IssuerList{}, err
	}
	by := slices.IndexFunc(roots, signed.isBy)
	if by < 0 {
		return IssuerList{}, errors.New("the root's signature is wrong")
	}
	list, err := parseIssuerList(signed.List)
	if err != nil {
		return IssuerList{}, err
	}
	list.Root = roots[by]
	if list.TrustDomain != trustDomain {
		return IssuerList{}, fmt.Errorf("it is the list of trust domain %q", clip(list.TrustDomain))
	}
	if err := checkIssuers(trustDomain, list.Issuers); err != nil {
		return IssuerList{}, err
	}
	for _, issuer := range list.Issuers {
		if err := checkListed(issuer, roots); err != nil {
			return IssuerList{}, err
		}
	}
	return list, nil
}

// roots returns the root that the receiver holds and the cross-signed ones.
func (s signedListDER) roots(root *x509.Certificate, trustDomain string) ([]*x509.Certificate, error) {
	if len(s.Crosses) > MaxCrosses {
		return nil, fmt.Errorf("%d cross certificates are more than %d", len(s.Crosses), MaxCrosses)
	}
	var crosses []*x509.Certificate
	for _, der := range s.Crosses {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("parse a cross certificate: %w", err)
		}
		crosses = append(crosses, c)
	}
	return rootsOfDomain(crossSignedRoots(root, trustDomain, crosses, time.Time{}), trustDomain), nil
}

// isBy reports whether root has signed s.
func (s signedListDER) isBy(root *x509.Certificate) bool {
	key, ok := root.PublicKey.(*ecdsa.PublicKey)
	return ok && isP256(key) && ecdsa.VerifyASN1(key, s.digest(), s.Signature)
}

func parseIssuerList(der []byte) (IssuerList, error) {
	raw, err := unmarshalStrict[listDER](der)
	if err != nil {
		return IssuerList{}, err
	}
	if raw.Number < 1 {
		return IssuerList{}, fmt.Errorf("number %d is below 1", raw.Number)
	}
	issuers, err := parseCertificates(raw.Issuers)
	if err != nil {
		return IssuerList{}, err
	}
	return IssuerList{TrustDomain: raw.TrustDomain, Number: uint64(raw.Number), Issuers: issuers}, nil
}

// ParseIssuers reads DER certificates that a trusted source has named as the issuers of
// a trust domain. It checks everything but signature and dates.
func ParseIssuers(trustDomain string, ders [][]byte) ([]*x509.Certificate, error) {
	issuers, err := parseCertificates(ders)
	if err != nil {
		return nil, fmt.Errorf("issuers of trust domain %q: %w", trustDomain, err)
	}
	if err := checkIssuers(trustDomain, issuers); err != nil {
		return nil, err
	}
	return issuers, nil
}

func parseCertificates(ders [][]byte) ([]*x509.Certificate, error) {
	if len(ders) < 1 || len(ders) > MaxIssuers {
		return nil, fmt.Errorf("%d issuers are not 1 to %d: %w", len(ders), MaxIssuers, ErrAuthority)
	}
	certs := make([]*x509.Certificate, 0, len(ders))
	for _, der := range ders {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("parse an issuer: %w", err)
		}
		certs = append(certs, cert)
	}
	return certs, nil
}

func checkIssuers(trustDomain string, issuers []*x509.Certificate) error {
	if len(issuers) < 1 || len(issuers) > MaxIssuers {
		return fmt.Errorf("trust domain %q has %d issuers, not 1 to %d: %w", trustDomain, len(issuers), MaxIssuers, ErrAuthority)
	}
	for i, issuer := range issuers {
		if err := checkIssuer(issuer, trustDomain); err != nil {
			return err
		}
		if slices.ContainsFunc(issuers[:i], issuer.Equal) {
			return fmt.Errorf("trust domain %q has one issuer twice: %w", trustDomain, ErrAuthority)
		}
	}
	return nil
}

// digest returns what is signed. Without crosses it has the form of the first version.
func (s signedListDER) digest() []byte {
	if len(s.Crosses) == 0 {
		return digestOf(issuerListContext, s.List)
	}
	return digestOf(crossedContext, slices.Concat([][]byte{s.List}, s.Crosses)...)
}

// digestOf hashes a context and parts; more than one part come each after its length.
func digestOf(context string, parts ...[]byte) []byte {
	h := sha256.New()
	h.Write([]byte(context))
	for _, p := range parts {
		if len(parts) > 1 {
			h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(p))))
		}
		h.Write(p)
	}
	return h.Sum(nil)
}

// unmarshalStrict takes exactly the bytes that asn1.Marshal would write, so that
// no two encodings mean the same.
func unmarshalStrict[T any](der []byte) (T, error) {
	var v, none T
	rest, err := asn1.Unmarshal(der, &v)
	if err != nil {
		return none, fmt.Errorf("read the DER: %w", err)
	}
	if len(rest) != 0 {
		return none, fmt.Errorf("%d bytes follow the DER", len(rest))
	}
	again, err := asn1.Marshal(v)
	if err != nil {
		return none, fmt.Errorf("read the DER: %w", err)
	}
	if !bytes.Equal(again, der) {
		return none, errors.New("it is not DER but looser BER")
	}
	return v, nil
}
