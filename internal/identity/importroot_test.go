package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"
)

// importedRoot is what stands in a Secret that somebody else has written.
type importedRoot struct{ cert, key, anchor []byte }

// externalCA is a company's authority, which knows nothing of SPIFFE.
type externalCA struct {
	*testing.T
	cert *x509.Certificate
	key  any
}

func newExternalCA(t *testing.T, key any, pub any, change func(*x509.Certificate)) *externalCA {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "the office"}, NotBefore: noon.Add(-time.Hour), NotAfter: noon.Add(20 * RootLifetime),
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
	}
	if change != nil {
		change(template)
	}
	return &externalCA{t, mint(t, template, template, pub, key), key}
}

// sign makes a Secret, with a key in the form that cert-manager writes by default.
func (o *externalCA) sign(key *ecdsa.PrivateKey, change func(*x509.Certificate)) importedRoot {
	o.Helper()
	template := authorityTemplate("west", "brought", noon, 90*24*time.Hour)
	template.MaxPathLen = -1 // as cert-manager has it
	if change != nil {
		change(template)
	}
	cert := mint(o.T, template, o.cert, &key.PublicKey, o.key)
	der := must(x509.MarshalECPrivateKey(key))(o.T)
	return importedRoot{encodeCertificate(cert.Raw), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), encodeCertificate(o.cert.Raw)}
}

func TestImportRoot(t *testing.T) {
	key := newP256(t)
	caKey := newP256(t)
	o := newExternalCA(t, caKey, &caKey.PublicKey, nil)
	rsaKey := must(rsa.GenerateKey(rand.Reader, 2048))(t)
	p384 := must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))(t)
	good := o.sign(key, nil)
	constrained := func(domains ...string) importedRoot {
		return newExternalCA(t, caKey, &caKey.PublicKey, func(c *x509.Certificate) { c.PermittedURIDomains = domains }).sign(key, nil)
	}
	own := must(NewRoot("west", noon))(t)
	ownCert, ownKey, err := own.MarshalPEM()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		why   string
		is    importedRoot
		after time.Duration
		says  string // of the refusal
	}{
		"by an office":    {"the ordinary case", good, 0, ""},
		"by an RSA root":  {"what is above needs no P-256 key", newExternalCA(t, rsaKey, &rsaKey.PublicKey, nil).sign(key, nil), 0, ""},
		"a chain":         {"tools write what is above beneath it", importedRoot{slices.Concat(good.cert, good.anchor), good.key, good.anchor}, 0, ""},
		"self-signed":     {"as our own", importedRoot{ownCert, ownKey, nil}, 0, ""},
		"its own ca.crt":  {"as cert-manager writes a self-signed one", importedRoot{ownCert, ownKey, ownCert}, 0, ""},
		"permitted":       {"a root that may sign for that trust domain", constrained("west"), 0, ""},
		"not permitted":   {"no peer would believe it", constrained("east"), 0, "would not be believed"},
		"path too short":  {"an issuer goes beneath it", newExternalCA(t, caKey, &caKey.PublicKey, func(c *x509.Certificate) { c.MaxPathLenZero = true }).sign(key, nil), 0, "would not be believed"},
		"an issuer":       {"an issuer signs no issuers", o.sign(key, func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = 0, true }), 0, "may sign no authorities"},
		"not a CA":        {"isCA was forgotten", o.sign(key, func(c *x509.Certificate) { c.IsCA, c.MaxPathLen = false, 0 }), 0, "may not sign certificates"},
		"no URI":          {"whose is it?", o.sign(key, func(c *x509.Certificate) { c.URIs = nil }), 0, "spiffe://TRUST-DOMAIN"},
		"P-384":           {"lists are signed by P-256", o.sign(p384, nil), 0, "P-256"},
		"another key":     {"a Secret half written", importedRoot{good.cert, o.sign(newP256(t), nil).key, good.anchor}, 0, "do not belong together"},
		"another root":    {"a Secret half written", importedRoot{good.cert, good.key, newExternalCA(t, key, &key.PublicKey, nil).sign(key, nil).anchor}, 0, "not signed by the root beside it"},
		"no ca.crt":       {"peers would pin what is renewed every few weeks", importedRoot{good.cert, good.key, nil}, 0, "not self-signed"},
		"ca.crt no root":  {"what stands above is not shown to peers", importedRoot{good.cert, good.key, good.cert}, 0, "not self-signed"},
		"expired":         {"nobody has renewed it", good, 91 * 24 * time.Hour, "is valid from"},
		"a clock behind":  {"cert-manager does not backdate, and this controller's clock may be behind", good, -Backdate - 85*time.Second, ""},
		"not begun":       {"it is for later", good, -2*Backdate - time.Second, "is valid from"},
		"nothing":         {"it is not written yet", importedRoot{}, 0, "no certificate"},
		"huge":            {"bounded", importedRoot{bytes.Repeat([]byte("x"), maxPEM+1), good.key, good.anchor}, 0, "longer than"},
		"a key as a cert": {"pasted by mistake", importedRoot{good.key, good.key, good.anchor}, 0, "no certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := ImportRoot(c.is.cert, c.is.key, c.is.anchor, noon.Add(c.after))
			if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Fatalf("%v, want %q: %s", err, c.says, c.why)
			}
			if err == nil {
				r.checkServes(t)
			}
		})
	}
}

// checkServes checks that whoever pins r's anchor believes r's issuers and controllers.
func (r *Root) checkServes(t *testing.T) {
	t.Helper()
	issuer := must(r.NewIssuer(noon))(t)
	der := must(r.SignIssuerList(1, []*x509.Certificate{issuer.cert}, r.Intermediates()...))(t)
	pinned := must(ParseRootCertificate(r.AnchorPEM(), "west"))(t)
	if _, err := VerifyIssuerList(pinned, "west", der); err != nil {
		t.Error(err)
	}
	leaf := (&cluster{t, r, nil}).controller().cert.Leaf
	if _, err := VerifyController(append([]*x509.Certificate{leaf}, r.Intermediates()...), "west", pinned, noon); err != nil {
		t.Error(err)
	}
	if _, err := VerifyController(append([]*x509.Certificate{leaf}, r.Intermediates()...), "east", pinned, noon); err == nil && len(pinned.URIs) == 0 {
		t.Error("one cluster of an office passes for another")
	}
}
