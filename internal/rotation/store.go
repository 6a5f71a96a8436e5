package rotation

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"time"

	"github.com/causeway-mesh/causeway/internal/identity"
)

// Keys of the Secrets: the current issuer or root has those of any TLS Secret.
const (
	currentCert, currentKey = "tls.crt", "tls.key"
	nextCert, nextKey       = "next.crt", "next.key"
	rest                    = "rotation.json"
	rootsRest               = "roots.json"
	// Who has signed a root that was brought.
	currentAnchor, nextAnchor = "ca.crt", "next-ca.crt"
)

// stored is what a State is beside its issuers.
type stored struct {
	Number    uint64         `json:"number"`
	Needed    uint64         `json:"needed"`
	Announced uint64         `json:"announced,omitempty"`
	Deadline  time.Time      `json:"deadline,omitzero"`
	Since     time.Time      `json:"since,omitzero"`
	Hurry     bool           `json:"hurry,omitempty"`
	Request   string         `json:"request,omitempty"`
	Mark      string         `json:"roots,omitempty"`
	Carried   uint64         `json:"rootsSince,omitempty"`
	Formers   []storedFormer `json:"formers,omitempty"`
}

type storedFormer struct {
	DER   []byte    `json:"certificate"`
	Until time.Time `json:"until"`
}

// Marshal returns the data of the Secret, keys in the clear.
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
	out := stored{
		Number: s.Number, Needed: s.Needed, Announced: s.Announced, Deadline: s.Deadline, Since: s.Since, Hurry: s.Hurry,
		Request: s.Request, Mark: s.Mark, Carried: s.Carried,
	}
	for _, f := range s.Formers {
		out.Formers = append(out.Formers, storedFormer{f.Certificate.Raw, f.Until})
	}
	data[rest], err = json.Marshal(out)
	return data, err
}

// Parse reads what Marshal wrote, or a Secret of a cluster that has never rotated. Every
// issuer with a key must be signed by one of roots.
func Parse(data map[string][]byte, roots ...*x509.Certificate) (State, error) {
	current, err := identity.ParseIssuer(data[currentCert], data[currentKey], roots...)
	if err != nil {
		return State{}, err
	}
	if len(data[rest]) == 0 {
		return First(current), nil
	}
	var in stored
	if err := json.Unmarshal(data[rest], &in); err != nil {
		return State{}, fmt.Errorf("%s: %w", rest, err)
	}
	s := State{
		Number: in.Number, Needed: in.Needed, Announced: in.Announced, Current: current,
		Deadline: in.Deadline, Since: in.Since, Hurry: in.Hurry, Request: in.Request, Mark: in.Mark, Carried: in.Carried,
	}
	if len(data[nextCert]) > 0 {
		if s.Next, err = identity.ParseIssuer(data[nextCert], data[nextKey], roots...); err != nil {
			return State{}, fmt.Errorf("next: %w", err)
		}
	}
	for _, f := range in.Formers {
		c, err := x509.ParseCertificate(f.DER)
		if err != nil {
			return State{}, fmt.Errorf("%s: a former issuer: %w", rest, err)
		}
		s.Formers = append(s.Formers, Former{c, f.Until})
	}
	return s, nil
}

// storedRoots is what Roots are beside the roots that have a key.
type storedRoots struct {
	Generation uint64    `json:"generation"`
	Deadline   time.Time `json:"deadline,omitzero"`
	Hurry      bool      `json:"hurry,omitempty"`
	Onward     []byte    `json:"onward,omitempty"`
	Back       []byte    `json:"back,omitempty"`
	Former     []byte    `json:"former,omitempty"`
	Disowned   bool      `json:"disowned,omitempty"`
	Elders     [][]byte  `json:"elders,omitempty"`
	Request    string    `json:"request,omitempty"`
}

// Marshal returns the data of the Secret, keys in the clear.
func (r Roots) Marshal() (map[string][]byte, error) {
	data := make(map[string][]byte, 7)
	var err error
	if data[currentCert], data[currentKey], err = r.Current.MarshalPEM(); err != nil {
		return nil, err
	}
	if len(r.Current.Way()) > 0 {
		data[currentAnchor] = r.Current.AnchorPEM()
	}
	if r.Next != nil {
		if data[nextCert], data[nextKey], err = r.Next.MarshalPEM(); err != nil {
			return nil, err
		}
		if len(r.Next.Way()) > 0 {
			data[nextAnchor] = r.Next.AnchorPEM()
		}
	}
	out := storedRoots{
		Generation: r.Generation, Deadline: r.Deadline, Hurry: r.Hurry, Disowned: r.Disowned, Request: r.Request,
		Onward: raw(r.Onward), Back: raw(r.Back), Former: raw(r.Former),
	}
	for _, c := range r.Elders {
		out.Elders = append(out.Elders, c.Raw)
	}
	data[rootsRest], err = json.Marshal(out)
	return data, err
}

func raw(c *x509.Certificate) []byte {
	if c == nil {
		return nil
	}
	return c.Raw
}

// ParseRoots reads what Roots.Marshal wrote, or a Secret of a cluster that has never
// rotated its root.
func ParseRoots(data map[string][]byte) (Roots, error) {
	current, err := identity.ParseBroughtRoot(data[currentCert], data[currentKey], data[currentAnchor])
	if err != nil {
		return Roots{}, err
	}
	if len(data[rootsRest]) == 0 {
		return FirstRoots(current), nil
	}
	var in storedRoots
	if err := json.Unmarshal(data[rootsRest], &in); err != nil {
		return Roots{}, fmt.Errorf("%s: %w", rootsRest, err)
	}
	r := Roots{Generation: in.Generation, Current: current, Deadline: in.Deadline, Hurry: in.Hurry, Disowned: in.Disowned, Request: in.Request}
	if len(data[nextCert]) > 0 {
		if r.Next, err = identity.ParseBroughtRoot(data[nextCert], data[nextKey], data[nextAnchor]); err != nil {
			return Roots{}, fmt.Errorf("next: %w", err)
		}
	}
	elders := make([]*x509.Certificate, len(in.Elders))
	for i := range elders {
		if elders[i], err = certificate(in.Elders[i]); err != nil {
			return Roots{}, err
		}
	}
	r.Elders = bounded(elders, maxElders)
	for into, der := range map[**x509.Certificate][]byte{&r.Onward: in.Onward, &r.Back: in.Back, &r.Former: in.Former} {
		if *into, err = certificate(der); err != nil {
			return Roots{}, err
		}
	}
	if r.Disowned && r.Former == nil {
		return Roots{}, fmt.Errorf("%s: a root is disowned that is not there", rootsRest)
	}
	return r, nil
}

// certificate parses one that may be missing.
func certificate(der []byte) (*x509.Certificate, error) {
	if len(der) == 0 {
		return nil, nil
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", rootsRest, err)
	}
	return c, nil
}
