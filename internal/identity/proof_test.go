package identity

import (
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"testing"
	"time"
)

// proven is the state of a finished handshake whose peer presented a chain.
func proven(certs ...*x509.Certificate) tls.ConnectionState {
	return tls.ConnectionState{HandshakeComplete: true, PeerCertificates: certs}
}

func (c *cluster) listing(issuers ...*x509.Certificate) *Anchors {
	c.Helper()
	return must(NewAnchors(map[string][]*x509.Certificate{c.root.TrustDomain(): issuers}))(c.T)
}

func TestProofCheck(t *testing.T) {
	west, east := newCluster(t, "west"), newCluster(t, "east")
	cart := west.workload("shop", "cart")
	chain := parse(t, cart.cert.Certificate)
	proof := must(west.anchors().Proof(proven(chain...), noon))(t)
	if proof.Name() != cart.Name() || !proof.NotAfter().Equal(cart.NotAfter()) {
		t.Errorf("the proof is of %v until %v", proof.Name(), proof.NotAfter())
	}
	other := must(west.root.NewIssuer(noon))(t)
	ended := must(west.root.NewIssuer(noon))(t).cert
	ended.NotAfter = noon.Add(-time.Hour)
	long := leafTemplate("spiffe://west/ns/shop/sa/long")
	long.NotAfter = noon.Add(2 * IssuerLifetime)
	key := newP256(t)
	outlives := mint(t, long, west.issuer.cert, &key.PublicKey, west.issuer.key.key)
	longProof := must(west.anchors().Proof(proven(outlives), noon))(t)

	cases := map[string]struct {
		why     string
		proof   *Proof
		anchors *Anchors
		at      time.Time
		want    string
	}{
		"holds": {
			why: "nothing has changed", anchors: west.anchors(),
		},
		"another listed": {
			why: "rotation announces ahead", anchors: west.listing(other.cert, west.issuer.cert),
		},
		"an ended listed": {
			why:     "an issuer that has ended counts for nothing",
			anchors: west.listing(ended, west.issuer.cert),
		},
		"dropped": {
			why:     "an issuer counts only while it is listed",
			anchors: west.listing(other.cert),
			want:    ReasonUnknownAuthority,
		},
		"unlinked": {
			why: "no anchors, no trust", anchors: east.anchors(), want: ReasonTrustDomain,
		},
		"nil": {
			why: "no anchors, no trust", want: ReasonTrustDomain,
		},
		"last moment": {
			why: "NotAfter is inclusive, as in x509", anchors: west.anchors(), at: chain[0].NotAfter,
		},
		"expired": {
			why:     "a stolen key is good for a day at most",
			anchors: west.anchors(),
			at:      chain[0].NotAfter.Add(1),
			want:    ReasonExpired,
		},
		"first moment": {
			why: "NotBefore is inclusive, as in x509", anchors: west.anchors(), at: chain[0].NotBefore,
		},
		"not yet valid": {
			why:     "the clock was set back",
			anchors: west.anchors(),
			at:      chain[0].NotBefore.Add(-1),
			want:    ReasonNotYetValid,
		},
		"issuer in force": {
			why:     "a leaf may say that it outlives its issuer",
			proof:   longProof,
			anchors: west.anchors(),
			at:      noon.Add(IssuerLifetime),
		},
		"issuer expired": {
			why:     "it does not",
			proof:   longProof,
			anchors: west.anchors(),
			at:      noon.Add(IssuerLifetime + 1),
			want:    ReasonExpired,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			p, at := c.proof, c.at
			if p == nil {
				p = proof
			}
			if at.IsZero() {
				at = noon
			}
			if err := p.Check(c.anchors, at); Reason(err) != c.want {
				t.Errorf("Check: reason %q (%v), want %q: %s", Reason(err), err, c.want, c.why)
			}
		})
	}
}

// Check must say what VerifyWorkload says of the same chain, at each moment that matters.
func TestProofCheckAgreesWithVerification(t *testing.T) {
	west := newCluster(t, "west")
	chain := parse(t, west.workload("shop", "cart").cert.Certificate)
	proof := must(west.anchors().Proof(proven(chain...), noon))(t)
	for _, c := range chain {
		for _, edge := range []time.Time{c.NotBefore, c.NotAfter} {
			for _, at := range []time.Time{edge.Add(-1), edge, edge.Add(1)} {
				_, verified := VerifyWorkload(chain, west.anchors(), at)
				if checked := proof.Check(west.anchors(), at); Reason(checked) != Reason(verified) {
					t.Errorf("at %v: Check says %v, verification %v", at, checked, verified)
				}
			}
		}
	}
}

// Verification comes before the peer has proven that it holds its key, so it must leave
// no trace. A peer without the key could otherwise make its certificate a cached one.
func TestCacheIsFilledOnlyAfterTheHandshake(t *testing.T) {
	west := newCluster(t, "west")
	cache := NewProofCache()
	anchors := west.anchors().WithCache(cache)
	chain := parse(t, west.workload("shop", "cart").cert.Certificate)
	if _, err := VerifyWorkload(chain, anchors, noon); err != nil {
		t.Fatal(err)
	}
	early := tls.ConnectionState{PeerCertificates: chain}
	if _, err := anchors.Proof(early, noon); Reason(err) != ReasonIdentity {
		t.Errorf("Proof before the end of the handshake: %v", err)
	}
	if cache.recent.Len() != 0 {
		t.Error("the cache was filled before the end of a handshake")
	}
	if _, err := anchors.Proof(proven(chain...), noon); err != nil || cache.recent.Len() != 1 {
		t.Errorf("%v; %d proofs are cached, want 1", err, cache.recent.Len())
	}
}

// A cached proof is no more than a chain that was just verified.
func TestCachedProofIsChecked(t *testing.T) {
	west := newCluster(t, "west")
	cache := NewProofCache()
	chain := parse(t, west.workload("shop", "cart").cert.Certificate)
	must(west.anchors().WithCache(cache).Proof(proven(chain...), noon))(t)
	other := must(west.root.NewIssuer(noon))(t)
	cases := map[string]struct {
		why     string
		anchors *Anchors
		certs   []*x509.Certificate
		at      time.Time
		want    string
	}{
		"again": {
			why:     "the second handshake is as good as the first",
			anchors: west.anchors(),
			certs:   chain,
			at:      noon,
		},
		"alone": {
			why: "the leaf is what was proven", anchors: west.anchors(), certs: chain[:1], at: noon,
		},
		"revoked": {
			why:     "revoking an issuer is at once",
			anchors: west.listing(other.cert),
			certs:   chain,
			at:      noon,
			want:    ReasonUnknownAuthority,
		},
		"expired": {
			why:     "dates hold for cached proofs too",
			anchors: west.anchors(),
			certs:   chain,
			at:      noon.Add(25 * time.Hour),
			want:    ReasonExpired,
		},
		"long": {
			why:     "the bounds on chains do not depend on the cache",
			anchors: west.anchors(),
			certs:   []*x509.Certificate{chain[0], chain[1], chain[1], chain[1]},
			at:      noon,
			want:    ReasonChainTooLong,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if _, err := VerifyWorkload(c.certs, c.anchors.WithCache(cache), c.at); Reason(err) != c.want {
				t.Errorf("reason %q (%v), want %q: %s", Reason(err), err, c.want, c.why)
			}
		})
	}
}

// A forged leaf with the content of a cached one has another fingerprint.
func TestCacheKeyCoversWholeLeaf(t *testing.T) {
	west := newCluster(t, "west")
	cache := NewProofCache()
	anchors := west.anchors().WithCache(cache)
	chain := parse(t, west.workload("shop", "cart").cert.Certificate)
	must(anchors.Proof(proven(chain...), noon))(t)
	key := newP256(t)
	template := leafTemplate("spiffe://west/ns/shop/sa/cart")
	template.SerialNumber = chain[0].SerialNumber
	template.AuthorityKeyId = west.issuer.cert.SubjectKeyId
	forged := mint(t, template, west.issuer.cert, &key.PublicKey, west.issuer.key.key)
	tampered := append([]byte(nil), forged.Raw...)
	tampered[len(tampered)-1] ^= 1 // its signature
	forged = must(x509.ParseCertificate(tampered))(t)
	_, err := VerifyWorkload([]*x509.Certificate{forged}, anchors, noon)
	if Reason(err) != ReasonUnknownAuthority {
		t.Errorf("a forged leaf: %v", err)
	}
}

func TestCacheEvictsTheOldestHandshake(t *testing.T) {
	cache := NewProofCache()
	leaf := func(i int) fingerprint {
		var f fingerprint
		big.NewInt(int64(i)).FillBytes(f[:])
		return f
	}
	for i := range maxProofs {
		cache.put(&Proof{leaf: leaf(i)})
	}
	cache.put(&Proof{leaf: leaf(0)}) // another handshake
	cache.get(leaf(1))               // none
	cache.put(&Proof{leaf: leaf(maxProofs)})
	if cache.get(leaf(0)) == nil || cache.get(leaf(1)) != nil || cache.get(leaf(maxProofs)) == nil {
		t.Error("the proof whose last handshake was the longest ago must go, and no other")
	}
	if n := cache.recent.Len(); n != maxProofs || len(cache.byLeaf) != n {
		t.Errorf("%d proofs in %d entries, want %d", n, len(cache.byLeaf), maxProofs)
	}
	var none *ProofCache
	none.put(&Proof{})
	if none.get(leaf(0)) != nil {
		t.Error("a nil cache remembers something")
	}
}

// During a rotation two issuers are listed. Both have the same subject, and the leaf is
// verified by the one that signed it.
func TestVerifyDuringARotation(t *testing.T) {
	west := newCluster(t, "west")
	next := must(west.root.NewIssuer(noon))(t)
	cart := west.workload("shop", "cart")
	chain := parse(t, cart.cert.Certificate)
	for name, anchors := range map[string]*Anchors{
		"old first": west.listing(west.issuer.cert, next.cert),
		"new first": west.listing(next.cert, west.issuer.cert),
	} {
		proof, err := anchors.Proof(proven(chain...), noon)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err := proof.Check(west.listing(west.issuer.cert), noon); err != nil {
			t.Errorf("%s: the signer is listed alone: %v", name, err)
		}
		if err := proof.Check(west.listing(next.cert), noon); Reason(err) != ReasonUnknownAuthority {
			t.Errorf("%s: the signer is dropped: %v", name, err)
		}
	}
}

// Issuers that were made elsewhere may have authorities below them. The certificates that
// the peer presents count then, with their dates.
func TestProofOfALongerChain(t *testing.T) {
	west := newCluster(t, "west")
	issuerKey, middleKey, leafKey := newP256(t), newP256(t), newP256(t)
	template := authorityTemplate("west", "issuer", noon, IssuerLifetime)
	template.MaxPathLen = 1
	issuer := mint(t, template, west.root.cert, &issuerKey.PublicKey, west.root.key.key)
	template = authorityTemplate("west", "middle", noon, 30*time.Minute)
	template.MaxPathLenZero = true
	middle := mint(t, template, issuer, &middleKey.PublicKey, issuerKey)
	leaf := mint(t, leafTemplate("spiffe://west/ns/shop/sa/cart"), middle, &leafKey.PublicKey, middleKey)
	chain, anchors := []*x509.Certificate{leaf, middle}, west.listing(issuer)
	proof := must(anchors.Proof(proven(chain...), noon))(t)
	for after, want := range map[time.Duration]string{
		0: "", 30 * time.Minute: "", 31 * time.Minute: ReasonExpired, 2 * time.Hour: ReasonExpired,
	} {
		if err := proof.Check(anchors, noon.Add(after)); Reason(err) != want {
			t.Errorf("Check after %v: %v, want %q", after, err, want)
		}
		if _, err := VerifyWorkload(chain, anchors, noon.Add(after)); Reason(err) != want {
			t.Errorf("VerifyWorkload after %v: %v, want %q", after, err, want)
		}
	}
	if err := proof.Check(west.listing(west.issuer.cert), noon); Reason(err) != ReasonUnknownAuthority {
		t.Errorf("the listed end of the chain is dropped: %v", err)
	}
	if _, err := VerifyWorkload(chain[:1], anchors, noon); Reason(err) != ReasonUnknownAuthority {
		t.Errorf("the leaf alone: %v", err)
	}
}

// The cost of a peer's certificate in a handshake: the first of a workload, and each
// later.
func BenchmarkVerifyWorkload(b *testing.B) {
	root := must(NewRoot("west", noon))(b)
	issuer := must(root.NewIssuer(noon))(b)
	name := must(NewName("west", "shop", "cart"))(b)
	key := must(NewPrivateKey())(b)
	var chain []*x509.Certificate
	for _, der := range must(issuer.SignWorkload(key.Public(), name, noon))(b) {
		chain = append(chain, must(x509.ParseCertificate(der))(b))
	}
	anchors := must(NewAnchors(map[string][]*x509.Certificate{"west": {issuer.cert}}))(b)
	cached := anchors.WithCache(NewProofCache())
	must(cached.Proof(proven(chain...), noon))(b)
	for name, a := range map[string]*Anchors{"first": anchors, "cached": cached} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := VerifyWorkload(chain, a, noon); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
