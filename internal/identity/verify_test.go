package identity

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"testing"
	"time"
)

func TestVerifyWorkload(t *testing.T) {
	west, east := newCluster(t, "west"), newCluster(t, "east")
	const cart = "spiffe://west/ns/shop/sa/cart"
	key := newP256(t)

	// leaf is a sound leaf of west's issuer after the given change.
	leaf := func(change func(*x509.Certificate)) []*x509.Certificate {
		template := leafTemplate(cart)
		if change != nil {
			change(template)
		}
		return []*x509.Certificate{
			mint(t, template, west.issuer.cert, &key.PublicKey, west.issuer.key.key), west.issuer.cert,
		}
	}
	good := leaf(nil)
	foreign := mint(t, leafTemplate(cart), east.issuer.cert, &key.PublicKey, east.issuer.key.key)
	sibling := must(west.root.NewIssuer(noon))(t)
	unlisted := mint(t, leafTemplate(cart), sibling.cert, &key.PublicKey, sibling.key.key)
	p384 := must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))(t)
	p521 := must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader))(t)
	middle := func(pub any) *x509.Certificate {
		template := authorityTemplate("west", "middle", noon, time.Hour)
		template.MaxPathLen = -1
		return mint(t, template, west.root.cert, pub, west.root.key.key)
	}

	cases := map[string]struct {
		why   string
		certs []*x509.Certificate
		at    time.Time
		want  string // reason
	}{
		"good":         {why: "an honest caller is believed", certs: good},
		"leaf alone":   {why: "the issuer is an anchor, so it need not be sent", certs: good[:1]},
		"superfluous":  {why: "what is sent besides does not hurt", certs: append(slices.Clone(good), east.issuer.cert)},
		"no chain":     {why: "nothing proves nothing", want: ReasonNoCertificate},
		"long chain":   {why: "work before proof is bounded", certs: append(slices.Clone(good), good...), want: ReasonChainTooLong},
		"wrong issuer": {why: "a peer vouches for its own trust domain only", certs: []*x509.Certificate{foreign, east.issuer.cert}, want: ReasonUnknownAuthority},
		"unlisted issuer": {why: "an issuer counts when the list says so, not when the root signed it",
			certs: []*x509.Certificate{unlisted, sibling.cert, west.root.cert}, want: ReasonUnknownAuthority},
		"controller's certificate": {why: "a chain to the root is no workload's", certs: []*x509.Certificate{west.controller().cert.Leaf, west.root.cert}, want: ReasonUnknownAuthority},
		"other trust domain": {why: "no anchors, no trust", want: ReasonTrustDomain,
			certs: leaf(func(c *x509.Certificate) { c.URIs[0].Host = "north" })},
		"expired":       {why: "a stolen key dies within a day", certs: good, at: noon.Add(2 * time.Hour), want: ReasonExpired},
		"not yet valid": {why: "told apart from expiry: it is a clock's fault", certs: good, at: noon.Add(-time.Hour), want: ReasonNotYetValid},
		"two URIs": {why: "which of two names would the policy read?", want: ReasonIdentity,
			certs: leaf(func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) })},
		"no URI": {why: "a DNS name is no identity", want: ReasonIdentity,
			certs: leaf(func(c *x509.Certificate) { c.URIs, c.DNSNames = nil, []string{"cart"} })},
		"other path": {why: "other systems' IDs mean other things", want: ReasonIdentity,
			certs: leaf(func(c *x509.Certificate) { c.URIs[0].Path = "/cart" })},
		"CA leaf": {why: "a CA is no workload", want: ReasonLeafUsage,
			certs: leaf(func(c *x509.Certificate) { c.IsCA = true })},
		"cert sign": {why: "a workload signs no certificates", want: ReasonLeafUsage,
			certs: leaf(func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign })},
		"client only": {why: "an SVID is for both sides", want: ReasonLeafUsage,
			certs: leaf(func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] })},
		"P-384 leaf": {why: "leaves are P-256 and nothing else", want: ReasonLeafKey,
			certs: []*x509.Certificate{mint(t, leafTemplate(cart), west.issuer.cert, &p384.PublicKey, west.issuer.key.key)}},
		"P-521 authority": {why: "the dearest signature is never verified", want: ReasonAuthorityKey,
			certs: []*x509.Certificate{mint(t, leafTemplate(cart), middle(&p521.PublicKey), &key.PublicKey, p521), middle(&p521.PublicKey)}},
		"workload as CA": {why: "a workload must not mint its neighbours", want: ReasonUnknownAuthority,
			certs: []*x509.Certificate{mint(t, leafTemplate(cart), good[0], &key.PublicKey, key), good[0]}},
		"critical extension": {why: "what we do not understand may forbid the use", want: ReasonChain,
			certs: leaf(func(c *x509.Certificate) {
				c.ExtraExtensions = append(c.ExtraExtensions, extension(true))
			})},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			at := c.at
			if at.IsZero() {
				at = noon
			}
			got, err := VerifyWorkload(c.certs, west.anchors(), at)
			if Reason(err) != c.want {
				t.Fatalf("VerifyWorkload: reason %q (%v), want %q: %s", Reason(err), err, c.want, c.why)
			}
			if err != nil && (!errors.Is(err, ErrRefused) || !got.IsZero()) {
				t.Errorf("VerifyWorkload = %v, %v: a refusal names nobody and wraps ErrRefused", got, err)
			}
			if err == nil && got.String() != cart {
				t.Errorf("VerifyWorkload = %q, want %q", got, cart)
			}
		})
	}
	if _, err := VerifyWorkload(good, nil, noon); Reason(err) != ReasonTrustDomain {
		t.Errorf("nil anchors: %v, want nobody trusted", err)
	}
}

// An issuer's certificate outlived by a leaf is the one fault that x509 reports
// about an anchor.
func TestVerifyWorkloadWithExpiredIssuer(t *testing.T) {
	west := newCluster(t, "west")
	template := leafTemplate("spiffe://west/ns/shop/sa/cart")
	template.NotAfter = noon.Add(2 * IssuerLifetime)
	key := newP256(t)
	leaf := mint(t, template, west.issuer.cert, &key.PublicKey, west.issuer.key.key)
	_, err := VerifyWorkload([]*x509.Certificate{leaf}, west.anchors(), noon.Add(IssuerLifetime+time.Hour))
	if !errors.Is(err, ErrRefused) {
		t.Errorf("a leaf of an expired issuer: %v", err)
	}
}

func TestVerifyController(t *testing.T) {
	west, east := newCluster(t, "west"), newCluster(t, "east")
	controller := west.controller().cert.Leaf
	key := newP256(t)
	rogue := mint(t, leafTemplate("spiffe://west/ns/causeway-system/sa/causeway-agent"), west.root.cert, &key.PublicKey, west.root.key.key)
	minted := mint(t, leafTemplate("spiffe://west/ns/causeway-system/sa/causeway-controller"), west.issuer.cert, &key.PublicKey, west.issuer.key.key)
	foreign := mint(t, leafTemplate("spiffe://east/ns/causeway-system/sa/causeway-controller"), west.root.cert, &key.PublicKey, west.root.key.key)

	cases := map[string]struct {
		why   string
		certs []*x509.Certificate
		root  *x509.Certificate
		at    time.Time
		want  string
		// domain is the one that the Link names; "": west.
		domain string
	}{
		"good":                     {why: "a replica of the cluster", certs: []*x509.Certificate{controller}},
		"none":                     {why: "nothing proves nothing", want: ReasonNoCertificate},
		"with an issuer":           {why: "a stolen issuer is not the controller", certs: []*x509.Certificate{minted, west.issuer.cert}, want: ReasonUnknownAuthority},
		"long chain":               {why: "work before proof is bounded", certs: slices.Repeat([]*x509.Certificate{controller}, 2+MaxPresented), want: ReasonChainTooLong},
		"by an issuer":             {why: "a stolen issuer is not the controller", certs: []*x509.Certificate{minted}, want: ReasonUnknownAuthority},
		"other account":            {why: "no other account is the controller", certs: []*x509.Certificate{rogue}, want: ReasonUnexpected},
		"other root":               {why: "the Link pins one root", certs: []*x509.Certificate{controller}, root: east.root.cert, domain: "east", want: ReasonTrustDomain},
		"not its root":             {why: "root and trust domain belong together", certs: []*x509.Certificate{controller}, root: east.root.cert, want: ReasonUnknownAuthority},
		"other domain":             {why: "a root vouches for its own trust domain only", certs: []*x509.Certificate{foreign}, want: ReasonTrustDomain},
		"expired":                  {why: "controllers renew daily", certs: []*x509.Certificate{controller}, at: noon.Add(25 * time.Hour), want: ReasonExpired},
		"of a clock that is ahead": {why: "only who is let in can be told what is wrong with its clock", certs: []*x509.Certificate{controller}, at: noon.Add(-10 * time.Minute)},
		"of a clock gone mad":      {why: "no clock that anybody meant is that far ahead", certs: []*x509.Certificate{controller}, at: noon.Add(-ClockTolerance - time.Hour), want: ReasonNotYetValid},
		"no root":                  {why: "an issuer is no root", certs: []*x509.Certificate{minted}, root: west.issuer.cert, want: ReasonUnknownAuthority},
		"root as a leaf":           {why: "the root speaks for nobody", certs: []*x509.Certificate{west.root.cert}, want: ReasonIdentity},
		"workload as such":         {why: "a workload is no controller", certs: []*x509.Certificate{west.workload("shop", "cart").cert.Leaf}, want: ReasonUnknownAuthority},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			root, at := c.root, c.at
			if root == nil {
				root = west.root.cert
			}
			if at.IsZero() {
				at = noon
			}
			got, err := VerifyController(c.certs, cmp.Or(c.domain, "west"), root, at)
			if Reason(err) != c.want {
				t.Fatalf("VerifyController: reason %q (%v), want %q: %s", Reason(err), err, c.want, c.why)
			}
			if err == nil && got != west.controller().Name() {
				t.Errorf("VerifyController = %v", got)
			}
		})
	}
}

func TestAuthorityKeys(t *testing.T) {
	cases := map[string]struct {
		why string
		pub any
		ok  bool
	}{
		"P-256":    {why: "our own", pub: &newP256(t).PublicKey, ok: true},
		"P-384":    {why: "a brought CA", pub: &must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))(t).PublicKey, ok: true},
		"Ed25519":  {why: "a brought CA", pub: ed25519.PublicKey(make([]byte, 32)), ok: true},
		"RSA 2048": {why: "a brought CA", pub: rsaOf(2048), ok: true},
		"RSA 4096": {why: "a brought CA", pub: rsaOf(4096), ok: true},
		"P-521":    {why: "twenty times dearer than P-256", pub: &must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader))(t).PublicKey},
		"RSA 1024": {why: "too weak", pub: rsaOf(1024)},
		"RSA 8192": {why: "too dear", pub: rsaOf(8192)},
		"nothing":  {why: "an algorithm that Go does not know", pub: nil},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if err := checkAuthorityKey(c.pub); (err == nil) != c.ok {
				t.Errorf("checkAuthorityKey = %v, want ok %v: %s", err, c.ok, c.why)
			}
		})
	}
}

func rsaOf(bits uint) *rsa.PublicKey {
	return &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), bits-1), E: 65537}
}

func TestAnchors(t *testing.T) {
	west, east := newCluster(t, "west"), newCluster(t, "east")
	cases := map[string]struct {
		why     string
		domain  string
		issuers []*x509.Certificate
	}{
		"root":         {"a root among the issuers would pass controllers for workloads", "west", []*x509.Certificate{west.root.cert}},
		"other domain": {"an issuer vouches for its own trust domain", "west", []*x509.Certificate{east.issuer.cert}},
		"none":         {"a trust domain without issuers is left out instead", "west", nil},
		"twice":        {"the bound on issuers counts", "west", []*x509.Certificate{west.issuer.cert, west.issuer.cert}},
		"a leaf":       {"a workload is no authority", "west", []*x509.Certificate{west.workload("shop", "cart").cert.Leaf}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if _, err := NewAnchors(map[string][]*x509.Certificate{c.domain: c.issuers}); err == nil {
				t.Errorf("NewAnchors took it: %s", c.why)
			}
		})
	}
	given := map[string][]*x509.Certificate{"west": {west.issuer.cert}, "east": {east.issuer.cert}}
	anchors := must(NewAnchors(given))(t)
	given["west"][0] = east.issuer.cert
	if _, err := VerifyWorkload([]*x509.Certificate{west.workload("shop", "cart").cert.Leaf}, anchors, noon); err != nil {
		t.Errorf("the set changed with its argument: %v", err)
	}
	if got := anchors.TrustDomains(); !slices.Equal(got, []string{"east", "west"}) {
		t.Errorf("TrustDomains = %q", got)
	}
	if got := anchors.Issuers("west"); len(got) != 1 || !got[0].Equal(west.issuer.cert) {
		t.Errorf("Issuers = %v", got)
	}
}

func TestReasonsAreClosed(t *testing.T) {
	if got := Reason(fmt.Errorf("dial: %w", refuse(ReasonALPN, "x"))); got != ReasonALPN {
		t.Errorf("Reason does not see through wrapping: %q", got)
	}
	if Reason(nil) != "" || Reason(errors.New("x")) != ReasonOther {
		t.Error("nil has no reason, and a stranger's error is other")
	}
	if !slices.IsSorted(Reasons()) || len(slices.Compact(Reasons())) != 15 {
		t.Errorf("Reasons = %q", Reasons())
	}
}

// FuzzVerifyWorkload throws arbitrary certificates at the verifier.
func FuzzVerifyWorkload(f *testing.F) {
	root, issuer := fixedRoot(f)
	name := must(NewName("west", "shop", "cart"))(f)
	anchors := must(NewAnchors(map[string][]*x509.Certificate{"west": {issuer.cert}}))(f)
	template := leafTemplate(name.String())
	template.SerialNumber = big.NewInt(3)
	leaf := must(x509.CreateCertificate(nil, template, issuer.cert, issuer.key.Public(), issuer.key.key))(f)
	must(VerifyWorkload([]*x509.Certificate{must(x509.ParseCertificate(leaf))(f)}, anchors, noon))(f)
	f.Add(leaf, issuer.cert.Raw)
	f.Add(issuer.cert.Raw, leaf)
	f.Fuzz(func(t *testing.T, a, b []byte) {
		var certs []*x509.Certificate
		for _, der := range [][]byte{a, b} {
			if cert, err := x509.ParseCertificate(der); err == nil {
				certs = append(certs, cert)
			}
		}
		got, err := VerifyWorkload(certs, anchors, noon)
		if err == nil && got != name {
			t.Fatalf("VerifyWorkload believes %v", got)
		}
		if err != nil && !slices.Contains(Reasons(), Reason(err)) {
			t.Fatalf("%v has no reason", err)
		}
		_, _ = VerifyController(certs, "west", root.cert, noon)
	})
}
