package controller

import (
	"crypto/ecdsa"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/rotation"
)

// issuing is who vouches for this cluster, and for its workloads. It is immutable.
type issuing struct {
	rotation.State
	roots rotation.Roots
	list  []byte   // signed, as peers get it
	ders  [][]byte // that are on it
}

// behindPatience is how long a peer may take to acknowledge an issuer that signs already
// before its Link says so.
const behindPatience = time.Minute

// behind returns the number of the list that a peer should have, if it says that it has
// an older one; otherwise 0.
func (i *issuing) behind(trusts uint64, now time.Time) uint64 {
	if trusts == 0 || trusts >= i.Needed || now.Before(i.Since.Add(behindPatience)) {
		return 0
	}
	return i.Needed
}

// adopt puts roots and issuers in force. What is listed is signed anew only if something of
// it changed.
func (o *own) adopt(roots rotation.Roots, s rotation.State) error {
	next := &issuing{State: s, roots: roots}
	listed := s.Listed()
	if old := o.issuers.Load(); old != nil && old.Number == s.Number && old.roots.Generation == roots.Generation &&
		slices.EqualFunc(old.Listed(), listed, (*x509.Certificate).Equal) {
		next.list, next.ders = old.list, old.ders
	} else {
		var err error
		if next.list, err = roots.Current.SignIssuerList(s.Number, listed, roots.Crosses()...); err != nil {
			return fmt.Errorf("sign the list of issuers: %w", err)
		}
		for _, c := range listed {
			next.ders = append(next.ders, c.Raw)
		}
	}
	o.issuers.Store(next)
	return nil
}

// hello is what is said of this cluster to its peers.
func (o *own) hello(version string) *wire.Hello {
	return &wire.Hello{Version: version, IssuerList: o.issuers.Load().list, LinkPublicKey: o.linkKey.Public()}
}

// TrustDomain implements signer.Issuer.
func (o *own) TrustDomain() string { return o.trustDomain }

// SignWorkload implements signer.Issuer by the issuer that is current now.
func (o *own) SignWorkload(pub *ecdsa.PublicKey, name identity.Name, now time.Time) ([][]byte, error) {
	return o.issuers.Load().Current.SignWorkload(pub, name, now)
}

// acks are the numbers of the newest lists of our issuers that peers say to have, by Link.
func (p *peers) acks() map[string]uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make(map[string]uint64, len(p.links))
	for name, s := range p.links {
		out[name] = s.trusts
	}
	return out
}

// acked takes in what a peer says to have of our issuers.
func (p *peers) acked(s *peerState, number uint64) {
	p.mu.Lock()
	known := number <= s.trusts
	p.mu.Unlock()
	if !known {
		p.note(s, func() { s.trusts = max(s.trusts, number) })
	}
}

// Trusts implements wire.Sink.
func (o *outboundSink) Trusts(_ string, number uint64) { o.p.acked(o.s, number) }

// Trusts implements wire.Sink.
func (i inboundSink) Trusts(link string, number uint64) {
	i.p.mu.Lock()
	s := i.p.links[link]
	if g, ok := i.p.dialed[link]; ok {
		g.trusts = max(g.trusts, number)
		i.p.dialed[link] = g
	}
	i.p.mu.Unlock()
	if s != nil {
		i.p.acked(s, number)
	}
}
