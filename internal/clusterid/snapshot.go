package clusterid

import (
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/causeway-mesh/causeway/internal/rotation"
)

// Snapshot is the set of roots and issuers that is in force at one moment. It is
// immutable; its slices must not be modified.
type Snapshot struct {
	state        rotation.State
	roots        rotation.Roots
	signedList   []byte
	certificates [][]byte
}

// Number is the number of the list of issuers. It grows with every change of the list.
func (s *Snapshot) Number() uint64 { return s.state.Number }

// RootGeneration grows with every change of the roots.
func (s *Snapshot) RootGeneration() uint64 { return s.roots.Generation }

// Certificates are the listed issuers, DER, in a stable order. A workload certificate
// signed by any of them is valid.
func (s *Snapshot) Certificates() [][]byte { return s.certificates }

// SignedList is the list of issuers as peers receive it, signed by the root, DER.
func (s *Snapshot) SignedList() []byte { return s.signedList }

// Issuer is the certificate of the issuer that signs workloads now.
func (s *Snapshot) Issuer() *x509.Certificate { return s.state.Current.Certificate() }

// Root is the certificate of the root that signs issuers and controllers now.
func (s *Snapshot) Root() *x509.Certificate { return s.roots.Current.Certificate() }

// Anchor is the certificate that peers pin. It differs from Root if an external CA signed
// the root.
func (s *Snapshot) Anchor() *x509.Certificate { return s.roots.Current.Anchor() }

// unacknowledgedPatience is how long a peer may take to acknowledge the list with the
// current issuer before its Link reports it.
const unacknowledgedPatience = time.Minute

// Unacknowledged returns the number of the list that a peer should have applied by now,
// if the peer last acknowledged an older one. Otherwise, and while acknowledged is 0
// because the peer has acknowledged nothing to this replica, it returns 0.
func (s *Snapshot) Unacknowledged(acknowledged uint64, now time.Time) uint64 {
	if acknowledged == 0 || acknowledged >= s.state.CurrentNumber ||
		now.Before(s.state.Since.Add(unacknowledgedPatience)) {
		return 0
	}
	return s.state.CurrentNumber
}

// adopt puts roots and issuers in force. It signs the list again only if its content
// changed, so that peers receive the same bytes as long as possible.
func (i *Identity) adopt(roots rotation.Roots, state rotation.State) error {
	next := &Snapshot{state: state, roots: roots}
	listed := state.Listed()
	if old := i.current.Load(); old != nil && old.Number() == state.Number &&
		old.RootGeneration() == roots.Generation &&
		slices.EqualFunc(old.state.Listed(), listed, (*x509.Certificate).Equal) {
		next.signedList, next.certificates = old.signedList, old.certificates
	} else {
		signed, err := roots.Current.SignIssuerList(state.Number, listed, roots.CrossCertificates()...)
		if err != nil {
			return fmt.Errorf("sign the list of issuers: %w", err)
		}
		next.signedList = signed
		for _, c := range listed {
			next.certificates = append(next.certificates, c.Raw)
		}
	}
	i.current.Store(next)
	return nil
}
