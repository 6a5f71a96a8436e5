package peering

import (
	"crypto/x509"
	"testing"
	"time"

	"github.com/causeway-mesh/causeway/internal/clusterid/clusteridtest"
)

// TestVerifierRepeats covers a second question about a chain that was proven before.
func TestVerifierRepeats(t *testing.T) {
	c, err := east().Credential()
	if err != nil {
		t.Fatal(err)
	}
	leaf := c.TLS().Leaf
	chain := []*x509.Certificate{leaf}
	peer := west().PeerOf(east().Link("east"))
	root := peer.Root
	other := west().PeerOf(clusteridtest.New("east", "27a432a2").Link("east")).Root
	now := time.Now()
	for name, tc := range map[string]struct {
		why  string
		root *x509.Certificate
		at   time.Time
		want bool
	}{
		"soon":           {"nothing has changed", root, now.Add(time.Second), true},
		"much later":     {"it is verified again", root, now.Add(time.Hour), true},
		"clock set back": {"it is verified again", root, now.Add(-time.Second), true},
		"another root":   {"a new Link proves nothing of the old", other, now.Add(time.Second), false},
		"expired":        {"the certificate ends first", root, leaf.NotAfter.Add(time.Second), false},
	} {
		var v verifier
		first := now
		if name == "expired" {
			first = leaf.NotAfter.Add(-time.Second)
		}
		if err := v.verify(chain, peer.TrustDomain, root, first); err != nil {
			t.Fatal(err)
		}
		if err := v.verify(chain, peer.TrustDomain, tc.root, tc.at); (err == nil) != tc.want {
			t.Errorf("%s: %s: %v", name, tc.why, err)
		}
	}
}
