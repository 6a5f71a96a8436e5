package identity

import (
	"container/list"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"sync"
	"time"
)

// A fingerprint is the SHA-256 of a certificate.
type fingerprint [sha256.Size]byte

func fingerprintOf(c *x509.Certificate) fingerprint { return sha256.Sum256(c.Raw) }

// A Proof is what a workload's chain has proven: a name, and the issuer that vouches for
// it. A signature does not expire, so Check needs no cryptography: it compares dates, and
// asks whether that issuer is still listed. A Proof never changes. Its zero value proves
// nothing.
type Proof struct {
	name   Name
	leaf   fingerprint
	issuer fingerprint // of the listed issuer at which the chain ends
	// from is when all certificates of the chain are valid. leafUntil is when the leaf
	// ends, and signersUntil when the first of those above it does.
	from, leafUntil, signersUntil time.Time
}

// newProof describes a verified chain, from the leaf to a listed issuer.
func newProof(name Name, chain []*x509.Certificate) *Proof {
	leaf, issuer := chain[0], chain[len(chain)-1]
	p := &Proof{
		name:         name,
		leaf:         fingerprintOf(leaf),
		issuer:       fingerprintOf(issuer),
		from:         leaf.NotBefore,
		leafUntil:    leaf.NotAfter,
		signersUntil: issuer.NotAfter,
	}
	for _, c := range chain[1:] {
		if c.NotBefore.After(p.from) {
			p.from = c.NotBefore
		}
		if c.NotAfter.Before(p.signersUntil) {
			p.signersUntil = c.NotAfter
		}
	}
	return p
}

// Name is the proven name.
func (p *Proof) Name() Name { return p.name }

// NotBefore is from when all certificates of the chain are valid.
func (p *Proof) NotBefore() time.Time { return p.from }

// NotAfter is when the workload's own certificate ends.
func (p *Proof) NotAfter() time.Time { return p.leafUntil }

// Check returns nil if the proof holds by anchors at a time: VerifyWorkload would return
// its name. Otherwise Reason tells why not. It verifies no signature.
func (p *Proof) Check(anchors *Anchors, now time.Time) error {
	domain := p.name.TrustDomain()
	switch {
	case len(anchors.listed(domain)) == 0:
		return refuse(ReasonTrustDomain, "no issuer is known for trust domain %q", domain)
	case !anchors.hasIssuer(domain, p.issuer):
		return refuse(ReasonUnknownAuthority, "the issuer of the certificate of %s is not listed any more",
			p.name)
	case now.Before(p.from):
		return refuse(ReasonNotYetValid, "the certificate of %s is valid from %s", p.name, utc(p.from))
	case now.After(p.leafUntil):
		return refuse(ReasonExpired, "the certificate of %s was valid until %s", p.name, utc(p.leafUntil))
	case now.After(p.signersUntil):
		return refuse(ReasonExpired, "the issuer of the certificate of %s was valid until %s", p.name,
			utc(p.signersUntil))
	}
	return nil
}

func utc(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// Proof returns what a finished handshake has proven by these anchors, and adds it to
// their cache, if they have one. Before the end of the handshake it fails: nothing is
// kept on behalf of a peer that has not proven that it holds its key. It verifies the
// chain again unless the cache knows it.
func (a *Anchors) Proof(cs tls.ConnectionState, now time.Time) (*Proof, error) {
	if _, err := PeerName(cs); err != nil {
		return nil, err
	}
	p, err := verifyWorkload(cs.PeerCertificates, a, now)
	if err != nil {
		return nil, err
	}
	a.cache.put(p)
	return p, nil
}

// maxProofs bounds a ProofCache.
const maxProofs = 4096

// ProofCache remembers the proofs of recent handshakes, so that the next handshake of the
// same workload costs no verification of a signature. A proof counts only as long as its
// Check succeeds. When the cache is full it evicts the proof whose last handshake was the
// longest ago. Only finished handshakes change it. Make it with NewProofCache; nil is a
// cache that remembers nothing. It is safe for concurrent use.
type ProofCache struct {
	mu     sync.Mutex // guards what follows
	byLeaf map[fingerprint]*list.Element
	recent list.List // of *Proof, the last handshake in front
}

// NewProofCache returns an empty cache.
func NewProofCache() *ProofCache {
	return &ProofCache{byLeaf: make(map[fingerprint]*list.Element)}
}

// get returns the proof for a leaf, or nil. It changes nothing.
func (c *ProofCache) get(leaf fingerprint) *Proof {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.byLeaf[leaf]; e != nil {
		return e.Value.(*Proof)
	}
	return nil
}

// put adds a proof, or replaces that for the same leaf.
func (c *ProofCache) put(p *Proof) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.byLeaf[p.leaf]; e != nil {
		e.Value = p
		c.recent.MoveToFront(e)
		return
	}
	c.byLeaf[p.leaf] = c.recent.PushFront(p)
	if c.recent.Len() > maxProofs {
		oldest := c.recent.Remove(c.recent.Back()).(*Proof)
		delete(c.byLeaf, oldest.leaf)
	}
}
