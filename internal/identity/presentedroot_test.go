package identity

import (
	"crypto/tls"
	"crypto/x509"
	"testing"
	"time"
)

func TestPresentedRoot(t *testing.T) {
	east, west := newCluster(t, "east"), newCluster(t, "west")
	chain := func(c *Credential) []*x509.Certificate { return parse(t, c.TLS().Certificate) }
	eastRoot, westRoot := east.root.Certificate(), west.root.Certificate()
	for name, c := range map[string]struct {
		why    string
		certs  []*x509.Certificate
		at     time.Time
		pinned bool // to east's root
		reason string
	}{
		"introduced":       {why: "its own root beside it", certs: chain(west.controller().WithRoot(westRoot)), at: noon},
		"pinned":           {why: "the root that a token names", certs: chain(east.controller().WithRoot(eastRoot)), at: noon, pinned: true},
		"another root":     {why: "a sound cluster that is not the inviter", certs: chain(west.controller().WithRoot(westRoot)), at: noon, pinned: true, reason: ReasonUnknownAuthority},
		"borrowed root":    {why: "anybody can show east's root", certs: chain(west.controller().WithRoot(eastRoot)), at: noon, pinned: true, reason: ReasonTrustDomain},
		"no root":          {why: "a catalog's certificate introduces nobody", certs: chain(east.controller()), at: noon, reason: ReasonChainTooLong},
		"an issuer":        {why: "a workload is no controller, and an issuer no root", certs: chain(east.workload("shop", "bar")), at: noon, reason: ReasonUnknownAuthority},
		"nothing":          {why: "no certificate", at: noon, reason: ReasonChainTooLong},
		"a year from now":  {why: "clocks are compared here", certs: chain(east.controller().WithRoot(eastRoot)), at: noon.AddDate(1, 0, 0), pinned: true, reason: ReasonExpired},
		"before its birth": {why: "clocks are compared here", certs: chain(east.controller().WithRoot(eastRoot)), at: noon.Add(-time.Hour), pinned: true, reason: ReasonNotYetValid},
	} {
		t.Run(name, func(t *testing.T) {
			now := func() time.Time { return c.at }
			verify := VerifyAnyRoot(now)
			if c.pinned {
				verify = VerifyPinned(RootHash(eastRoot), now)
			}
			if err := verify(tls.ConnectionState{PeerCertificates: c.certs}); Reason(err) != c.reason {
				t.Errorf("%s: %v (%q), want %q", c.why, err, Reason(err), c.reason)
			}
		})
	}
}

// A credential that introduces must not change the one that it is made of.
func TestWithRootIsACopy(t *testing.T) {
	east := newCluster(t, "east")
	c := east.controller()
	c.WithRoot(east.root.Certificate())
	if n := len(c.TLS().Certificate); n != 1 {
		t.Errorf("catalog streams would present %d certificates", n)
	}
}
