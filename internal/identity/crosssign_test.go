package identity

import (
	"crypto/x509"
	"slices"
	"testing"
	"time"
)

// rootChain is a trust domain whose root was followed twice.
type rootChain struct {
	*testing.T
	roots []*Root
	// onward[i] is root i+1's key by root i, back[i] the other way round.
	onward, back []*x509.Certificate
}

func newRootChain(t *testing.T) *rootChain {
	t.Helper()
	d := &rootChain{T: t}
	for i := range 3 {
		d.roots = append(d.roots, must(NewRoot("west", noon))(t))
		if i > 0 {
			d.onward = append(d.onward, must(d.roots[i-1].CrossSign(d.roots[i].cert, noon))(t))
			d.back = append(d.back, must(d.roots[i].CrossSign(d.roots[i-1].cert, noon))(t))
		}
	}
	return d
}

// controller is root i's certificate for a controller.
func (d *rootChain) controller(i int) *x509.Certificate {
	return (&cluster{d.T, d.roots[i], nil}).controller().cert.Leaf
}

func (d *rootChain) issuer(i int) *x509.Certificate {
	return must(d.roots[i].NewIssuer(noon))(d.T).cert
}

func TestControllersUnderCrossSignedRoot(t *testing.T) {
	d, east := newRootChain(t), newCluster(t, "east")
	key := newP256(t)
	template := leafTemplate("spiffe://west/ns/causeway-system/sa/causeway-controller")
	// A stolen issuer, of root 0, as it stands and as it would like to be.
	stolen := must(d.roots[0].NewIssuer(noon))(t)
	byStolen := mint(t, template, stolen.cert, &key.PublicKey, stolen.key.key)
	self := authorityTemplate("west", "root", noon, time.Hour)
	self.MaxPathLen = 1
	forged := mint(t, self, stolen.cert, stolen.key.Public(), stolen.key.key)
	other := must(NewRoot("east", noon))(t)
	foreign := authorityTemplate("east", "root", noon, time.Hour)
	foreign.MaxPathLen = 1
	endorsed := mint(t, foreign, d.roots[0].cert, other.key.Public(), d.roots[0].key.key)
	crosses := func(c ...*x509.Certificate) []*x509.Certificate { return c }

	for name, c := range map[string]struct {
		why    string
		pinned int
		leaf   *x509.Certificate
		shown  []*x509.Certificate
		at     time.Duration
		want   string // reason
	}{
		"followed":            {why: "an old Link stays good", leaf: d.controller(1), shown: crosses(d.onward[0])},
		"followed twice":      {why: "a Link may sleep through a rotation", leaf: d.controller(2), shown: crosses(d.onward[1], d.onward[0])},
		"in any order":        {why: "the way is found", leaf: d.controller(2), shown: crosses(d.onward[0], d.onward[1])},
		"a new Link":          {why: "what leads others there does not hurt", pinned: 1, leaf: d.controller(1), shown: crosses(d.onward[0])},
		"ahead of a replica":  {why: "who has the new root already believes those who have not", pinned: 1, leaf: d.controller(0), shown: crosses(d.back[0])},
		"no way shown":        {why: "a root is believed by its signature alone", leaf: d.controller(1), want: ReasonUnknownAuthority},
		"a gap":               {why: "each step is signed", leaf: d.controller(2), shown: crosses(d.onward[1]), want: ReasonUnknownAuthority},
		"backwards":           {why: "a root vouches for its followers, not for its forebears", pinned: 1, leaf: d.controller(0), shown: crosses(d.onward[0]), want: ReasonUnknownAuthority},
		"the root itself":     {why: "nobody's word for oneself counts", leaf: d.controller(1), shown: crosses(d.roots[1].cert), want: ReasonUnknownAuthority},
		"a stolen issuer":     {why: "an issuer signs workloads, and is no root", leaf: byStolen, shown: crosses(stolen.cert), want: ReasonUnknownAuthority},
		"an issuer's own":     {why: "an issuer makes no roots", leaf: byStolen, shown: crosses(stolen.cert, forged), want: ReasonUnknownAuthority},
		"another's root":      {why: "a root vouches for its own trust domain", leaf: mint(t, template, other.cert, &key.PublicKey, other.key.key), shown: crosses(endorsed), want: ReasonUnknownAuthority},
		"another trust chain": {why: "who is not pinned is nobody", leaf: east.controller().cert.Leaf, shown: crosses(d.onward[0]), want: ReasonTrustDomain},
		"expired":             {why: "nothing outlives the root that is pinned", leaf: d.controller(1), shown: crosses(d.onward[0]), at: RootLifetime + time.Hour, want: ReasonExpired},
		"too many":            {why: "work before proof is bounded", leaf: d.controller(1), shown: slices.Repeat(d.onward, MaxPresented), want: ReasonChainTooLong},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := VerifyController(append([]*x509.Certificate{c.leaf}, c.shown...), "west", d.roots[c.pinned].cert, noon.Add(c.at))
			if Reason(err) != c.want {
				t.Errorf("reason %q (%v), want %q: %s", Reason(err), err, c.want, c.why)
			}
		})
	}
}

// A follower does not outlive the root by which it is believed.
func TestCrossCertificateExpiresWithRoot(t *testing.T) {
	old := must(NewRoot("west", noon.Add(-RootLifetime/2)))(t)
	young := must(NewRoot("west", noon))(t)
	cross := must(old.CrossSign(young.cert, noon))(t)
	if !cross.NotAfter.Equal(old.cert.NotAfter) {
		t.Errorf("the cross certificate ends at %v, the root that signed it at %v", cross.NotAfter, old.cert.NotAfter)
	}
	leaf := (&cluster{t, young, nil}).controller().cert.Leaf
	if _, err := VerifyController([]*x509.Certificate{leaf, cross}, "west", old.cert, old.cert.NotAfter.Add(time.Second)); err == nil {
		t.Error("it is believed after the end of the root that is pinned")
	}
}

func TestCrossSignRejects(t *testing.T) {
	west, east := newCluster(t, "west"), newCluster(t, "east")
	for name, c := range map[string]struct {
		why   string
		other *x509.Certificate
	}{
		"itself":         {"it says nothing", west.root.cert},
		"another's root": {"a root vouches for its own trust domain only", east.root.cert},
		"an issuer":      {"an issuer is no root", west.issuer.cert},
		"a leaf":         {"a workload is no root", west.workload("shop", "cart").cert.Leaf},
	} {
		if _, err := west.root.CrossSign(c.other, noon); err == nil {
			t.Errorf("%s: endorsed: %s", name, c.why)
		}
	}
}

func TestIssuerListOfCrossSignedRoot(t *testing.T) {
	d := newRootChain(t)
	list := func(by int, issuers []*x509.Certificate, crosses ...*x509.Certificate) []byte {
		t.Helper()
		return must(d.roots[by].SignIssuerList(7, issuers, crosses...))(t)
	}
	i0, i1, i2 := d.issuer(0), d.issuer(1), d.issuer(2)
	announced := list(0, []*x509.Certificate{i0}, d.onward[0], d.back[0])
	turned := list(1, []*x509.Certificate{i0, i1}, d.onward[0], d.back[0])
	over := list(1, []*x509.Certificate{i1}, d.onward[0])
	twice := list(2, []*x509.Certificate{i2}, d.onward[0], d.onward[1])
	revoked := list(2, []*x509.Certificate{i2})
	for name, c := range map[string]struct {
		why    string
		der    []byte
		pinned int
		ok     bool
	}{
		"announced, old Link": {"as before", announced, 0, true},
		"announced, new Link": {"both roots are believed by either", announced, 1, true},
		"turned, old Link":    {"the old root has signed the new one", turned, 0, true},
		"turned, new Link":    {"the old root's issuer is listed still", turned, 1, true},
		"over, old Link":      {"an old Link stays good", over, 0, true},
		"over, new Link":      {"the new root's own", over, 1, true},
		"twice, old Link":     {"a Link may sleep through a rotation", twice, 0, true},
		"over, later Link":    {"a root says nothing of those before it", over, 2, false},
		"revoked, old Link":   {"nobody has signed the new root", revoked, 0, false},
		"revoked, new Link":   {"linked anew", revoked, 2, true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := VerifyIssuerList(d.roots[c.pinned].cert, "west", c.der)
			if (err == nil) != c.ok {
				t.Fatalf("%v, want ok %v: %s", err, c.ok, c.why)
			}
			if err == nil && (got.Number != 7 || got.Root == nil) {
				t.Errorf("%+v", got)
			}
		})
	}
	for i := range turned {
		bent := slices.Clone(turned)
		bent[i] ^= 1
		if _, err := VerifyIssuerList(d.roots[0].cert, "west", bent); err == nil {
			t.Fatalf("byte %d may be changed unseen", i)
		}
	}
	if _, err := d.roots[0].SignIssuerList(1, []*x509.Certificate{i1}); err == nil {
		t.Error("an issuer of a root that nobody has endorsed is listed")
	}
	if _, err := d.roots[0].SignIssuerList(1, []*x509.Certificate{i0}, slices.Repeat(d.onward, 4)...); err == nil {
		t.Error("crosses without a bound")
	}
	own := mint(t, authorityTemplate("west", "issuer", noon, time.Hour), d.roots[0].cert, d.roots[1].key.Public(), d.roots[0].key.key)
	if _, err := d.roots[1].SignIssuerList(1, []*x509.Certificate{own}, d.onward[0], d.back[0]); err == nil {
		t.Error("a root's own key is listed as an issuer: controllers would pass for workloads")
	}
}
