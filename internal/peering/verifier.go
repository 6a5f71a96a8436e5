package peering

import (
	"crypto/x509"
	"slices"
	"sync"
	"time"

	"github.com/causeway-mesh/causeway/internal/identity"
)

// verifyInterval is how often the signatures of an open stream's certificates are
// verified again.
const verifyInterval = time.Minute

// verifier verifies the controllers of peers. A stream asks again with each heartbeat,
// and only the clock can change the answer. So an answer is used again for
// verifyInterval, unless one of the certificates expires before. The zero value is ready.
// It is safe for concurrent use.
type verifier struct {
	mu     sync.Mutex                          // guards what follows
	proven map[*x509.Certificate]verifiedChain // by leaf
	pruned time.Time
}

// verifiedChain is a chain that a root was proven to vouch for.
type verifiedChain struct {
	certs       []*x509.Certificate
	domain      string
	root        *x509.Certificate
	from, until time.Time
}

// verify returns an error unless root vouches for certs, leaf first, as a controller of
// the trust domain at now.
func (v *verifier) verify(certs []*x509.Certificate, domain string, root *x509.Certificate,
	now time.Time) error {
	if v.isProven(certs, domain, root, now) {
		return nil
	}
	if _, err := identity.VerifyController(certs, domain, root, now); err != nil {
		return err
	}
	next := verifiedChain{certs: certs, domain: domain, root: root, from: now, until: now.Add(verifyInterval)}
	for _, c := range append(certs[:len(certs):len(certs)], root) {
		if c.NotAfter.Before(next.until) {
			next.until = c.NotAfter
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.proven == nil {
		v.proven = make(map[*x509.Certificate]verifiedChain)
	}
	if now.Sub(v.pruned).Abs() >= verifyInterval { // connections that have ended
		v.pruned = now
		for leaf, c := range v.proven {
			if !now.Before(c.until) {
				delete(v.proven, leaf)
			}
		}
	}
	v.proven[certs[0]] = next
	return nil
}

// isProven reports whether the very chain was proven a short time ago.
func (v *verifier) isProven(certs []*x509.Certificate, domain string, root *x509.Certificate,
	now time.Time) bool {
	if len(certs) == 0 {
		return false
	}
	v.mu.Lock()
	c, ok := v.proven[certs[0]]
	v.mu.Unlock()
	return ok && c.domain == domain && c.root == root && slices.Equal(c.certs, certs) &&
		!now.Before(c.from) && now.Before(c.until)
}
