package rotation

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"time"

	"github.com/causeway-mesh/causeway/internal/identity"
)

// Keys of the Secret: the current issuer has those of any TLS Secret.
const (
	currentCert, currentKey = "tls.crt", "tls.key"
	nextCert, nextKey       = "next.crt", "next.key"
	rest                    = "rotation.json"
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
	out := stored{Number: s.Number, Needed: s.Needed, Announced: s.Announced, Deadline: s.Deadline, Since: s.Since, Hurry: s.Hurry, Request: s.Request}
	for _, f := range s.Formers {
		out.Formers = append(out.Formers, storedFormer{f.Certificate.Raw, f.Until})
	}
	data[rest], err = json.Marshal(out)
	return data, err
}

// Parse reads what Marshal wrote, or a Secret of a cluster that has never rotated. Every
// issuer must be signed by root.
func Parse(data map[string][]byte, root *x509.Certificate) (State, error) {
	current, err := identity.ParseIssuer(data[currentCert], data[currentKey], root)
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
		Deadline: in.Deadline, Since: in.Since, Hurry: in.Hurry, Request: in.Request,
	}
	if len(data[nextCert]) > 0 {
		if s.Next, err = identity.ParseIssuer(data[nextCert], data[nextKey], root); err != nil {
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
