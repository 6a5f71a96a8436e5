package rotation

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"time"

	"github.com/causeway-mesh/causeway/internal/identity"
)

// Keys of the two Secrets. The current issuer or root has the keys of a kubernetes.io/tls
// Secret.
const (
	currentCert = "tls.crt"
	currentKey  = "tls.key"
	nextCert    = "next.crt"
	nextKey     = "next.key"
	stateJSON   = "rotation.json"
	rootsJSON   = "roots.json"
	// The certificates that have signed external roots.
	currentAnchor = "ca.crt"
	nextAnchor    = "next-ca.crt"
)

// storedState is a State without the issuers that have keys. Its JSON names are part of
// the storage format, which older and newer controllers read.
type storedState struct {
	Number        uint64          `json:"number"`
	CurrentNumber uint64          `json:"needed"`
	NextNumber    uint64          `json:"announced,omitempty"`
	Deadline      time.Time       `json:"deadline,omitzero"`
	Since         time.Time       `json:"since,omitzero"`
	PromoteOnAck  bool            `json:"hurry,omitempty"`
	Request       string          `json:"request,omitempty"`
	RootsDigest   string          `json:"roots,omitempty"`
	RootsNumber   uint64          `json:"rootsSince,omitempty"`
	Retired       []storedRetired `json:"formers,omitempty"`
}

type storedRetired struct {
	DER   []byte    `json:"certificate"`
	Until time.Time `json:"until"`
}

// Marshal returns the data of the Secret for s. It contains private keys in the clear.
func (s State) Marshal() (map[string][]byte, error) {
	data := make(map[string][]byte, 5)
	var err error
	if data[currentCert], data[currentKey], err = s.Current.MarshalPEM(); err != nil {
		return nil, err
	}
	if s.Next != nil {
		if data[nextCert], data[nextKey], err = s.Next.MarshalPEM(); err != nil {
			return nil, err
		}
	}
	out := storedState{
		Number:        s.Number,
		CurrentNumber: s.CurrentNumber,
		NextNumber:    s.NextNumber,
		Deadline:      s.Deadline,
		Since:         s.Since,
		PromoteOnAck:  s.PromoteOnAck,
		Request:       s.Request,
		RootsDigest:   s.RootsDigest,
		RootsNumber:   s.RootsNumber,
	}
	for _, issuer := range s.Retired {
		out.Retired = append(out.Retired, storedRetired{DER: issuer.Certificate.Raw, Until: issuer.Until})
	}
	data[stateJSON], err = json.Marshal(out)
	return data, err
}

// Parse parses data that Marshal has returned, or the data of a Secret that contains only
// a current issuer, because the cluster has never rotated. Each issuer with a key must be
// signed by one of roots.
func Parse(data map[string][]byte, roots ...*x509.Certificate) (State, error) {
	current, err := identity.ParseIssuer(data[currentCert], data[currentKey], roots...)
	if err != nil {
		return State{}, err
	}
	if len(data[stateJSON]) == 0 {
		return NewState(current), nil
	}
	var in storedState
	if err := json.Unmarshal(data[stateJSON], &in); err != nil {
		return State{}, fmt.Errorf("parse %s: %w", stateJSON, err)
	}
	s := State{
		Number:        in.Number,
		Current:       current,
		Deadline:      in.Deadline,
		PromoteOnAck:  in.PromoteOnAck,
		NextNumber:    in.NextNumber,
		CurrentNumber: in.CurrentNumber,
		Since:         in.Since,
		RootsDigest:   in.RootsDigest,
		RootsNumber:   in.RootsNumber,
		Request:       in.Request,
	}
	if len(data[nextCert]) > 0 {
		if s.Next, err = identity.ParseIssuer(data[nextCert], data[nextKey], roots...); err != nil {
			return State{}, fmt.Errorf("parse next issuer: %w", err)
		}
	}
	for _, issuer := range in.Retired {
		c, err := x509.ParseCertificate(issuer.DER)
		if err != nil {
			return State{}, fmt.Errorf("parse retired issuer in %s: %w", stateJSON, err)
		}
		s.Retired = append(s.Retired, RetiredIssuer{Certificate: c, Until: issuer.Until})
	}
	return s, nil
}

// storedRoots is a Roots without the roots that have keys. Its JSON names are part of the
// storage format, which older and newer controllers read.
type storedRoots struct {
	Generation     uint64    `json:"generation"`
	Deadline       time.Time `json:"deadline,omitzero"`
	PromoteOnAck   bool      `json:"hurry,omitempty"`
	ForwardCross   []byte    `json:"onward,omitempty"`
	BackwardCross  []byte    `json:"back,omitempty"`
	Retired        []byte    `json:"former,omitempty"`
	RetiredRevoked bool      `json:"disowned,omitempty"`
	EarlierCrosses [][]byte  `json:"elders,omitempty"`
	Request        string    `json:"request,omitempty"`
}

// Marshal returns the data of the Secret for r. It contains private keys in the clear.
func (r Roots) Marshal() (map[string][]byte, error) {
	data := make(map[string][]byte, 7)
	var err error
	if data[currentCert], data[currentKey], err = r.Current.MarshalPEM(); err != nil {
		return nil, err
	}
	if len(r.Current.Intermediates()) > 0 {
		data[currentAnchor] = r.Current.AnchorPEM()
	}
	if r.Next != nil {
		if data[nextCert], data[nextKey], err = r.Next.MarshalPEM(); err != nil {
			return nil, err
		}
		if len(r.Next.Intermediates()) > 0 {
			data[nextAnchor] = r.Next.AnchorPEM()
		}
	}
	out := storedRoots{
		Generation:     r.Generation,
		Deadline:       r.Deadline,
		PromoteOnAck:   r.PromoteOnAck,
		ForwardCross:   derOf(r.ForwardCross),
		BackwardCross:  derOf(r.BackwardCross),
		Retired:        derOf(r.Retired),
		RetiredRevoked: r.RetiredRevoked,
		Request:        r.Request,
	}
	for _, c := range r.EarlierCrosses {
		out.EarlierCrosses = append(out.EarlierCrosses, c.Raw)
	}
	data[rootsJSON], err = json.Marshal(out)
	return data, err
}

// derOf returns the encoding of c, or nil if c is nil.
func derOf(c *x509.Certificate) []byte {
	if c == nil {
		return nil
	}
	return c.Raw
}

// ParseRoots parses data that Roots.Marshal has returned, or the data of a Secret that
// contains only a current root, because the cluster has never rotated its root.
func ParseRoots(data map[string][]byte) (Roots, error) {
	current, err := identity.ParseImportedRoot(data[currentCert], data[currentKey], data[currentAnchor])
	if err != nil {
		return Roots{}, err
	}
	if len(data[rootsJSON]) == 0 {
		return NewRoots(current), nil
	}
	var in storedRoots
	if err := json.Unmarshal(data[rootsJSON], &in); err != nil {
		return Roots{}, fmt.Errorf("parse %s: %w", rootsJSON, err)
	}
	r := Roots{
		Generation:     in.Generation,
		Current:        current,
		Deadline:       in.Deadline,
		PromoteOnAck:   in.PromoteOnAck,
		RetiredRevoked: in.RetiredRevoked,
		Request:        in.Request,
	}
	if len(data[nextCert]) > 0 {
		if r.Next, err = identity.ParseImportedRoot(
			data[nextCert],
			data[nextKey],
			data[nextAnchor],
		); err != nil {
			return Roots{}, fmt.Errorf("parse next root: %w", err)
		}
	}
	earlier := make([]*x509.Certificate, len(in.EarlierCrosses))
	for i := range earlier {
		if earlier[i], err = parseOptional(in.EarlierCrosses[i]); err != nil {
			return Roots{}, err
		}
	}
	r.EarlierCrosses = distinct(earlier, maxEarlierCrosses)
	for into, der := range map[**x509.Certificate][]byte{
		&r.ForwardCross:  in.ForwardCross,
		&r.BackwardCross: in.BackwardCross,
		&r.Retired:       in.Retired,
	} {
		if *into, err = parseOptional(der); err != nil {
			return Roots{}, err
		}
	}
	if r.RetiredRevoked && r.Retired == nil {
		return Roots{}, fmt.Errorf("parse %s: the revoked root is missing", rootsJSON)
	}
	return r, nil
}

// parseOptional parses a certificate of rootsJSON. It returns nil if der is empty.
func parseOptional(der []byte) (*x509.Certificate, error) {
	if len(der) == 0 {
		return nil, nil
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("parse certificate in %s: %w", rootsJSON, err)
	}
	return c, nil
}
