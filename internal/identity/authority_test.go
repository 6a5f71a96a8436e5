package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"
)

func extension(critical bool) pkix.Extension {
	return pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1}, Critical: critical, Value: []byte{5, 0}}
}

func TestRootAndIssuer(t *testing.T) {
	west := newCluster(t, "west")
	for name, c := range map[string]struct {
		cert     *x509.Certificate
		lifetime time.Duration
		pathLen  int
	}{
		"root":   {west.root.Certificate(), RootLifetime, 1},
		"issuer": {west.issuer.Certificate(), IssuerLifetime, 0},
	} {
		t.Run(name, func(t *testing.T) {
			if !c.cert.IsCA || c.cert.MaxPathLen != c.pathLen || c.cert.KeyUsage&x509.KeyUsageCertSign == 0 {
				t.Errorf("CA %v, path length %d, usage %v", c.cert.IsCA, c.cert.MaxPathLen, c.cert.KeyUsage)
			}
			if len(c.cert.URIs) != 1 || c.cert.URIs[0].String() != "spiffe://west" {
				t.Errorf("URIs = %v", c.cert.URIs)
			}
			if !c.cert.NotBefore.Equal(noon.Add(-Backdate)) || !c.cert.NotAfter.Equal(noon.Add(c.lifetime)) {
				t.Errorf("valid from %v to %v", c.cert.NotBefore, c.cert.NotAfter)
			}
		})
	}
}

func TestAuthoritiesRoundTripThroughPEM(t *testing.T) {
	west := newCluster(t, "west")
	rootCert, rootKey, err := west.root.MarshalPEM()
	if err != nil {
		t.Fatal(err)
	}
	issuerCert, issuerKey, err := west.issuer.MarshalPEM()
	if err != nil {
		t.Fatal(err)
	}
	root := must(ParseRoot(rootCert, rootKey))(t)
	issuer := must(ParseIssuer(issuerCert, issuerKey, root.Certificate()))(t)
	if root.TrustDomain() != "west" || issuer.TrustDomain() != "west" {
		t.Errorf("trust domains %q and %q", root.TrustDomain(), issuer.TrustDomain())
	}
	key := must(NewPrivateKey())(t)
	chain := must(issuer.SignWorkload(key.Public(), west.name("shop", "cart"), noon))(t)
	if _, err := VerifyWorkload(parse(t, chain), west.anchors(), noon); err != nil {
		t.Errorf("an issuer read back signs what nobody believes: %v", err)
	}

	east := newCluster(t, "east")
	eastCert, eastKey, err := east.root.MarshalPEM()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		why string
		err error
	}{
		"keys swapped":        {"a Secret half restored must not sign", second(ParseRoot(rootCert, eastKey))},
		"issuer as root":      {"an issuer is not self-signed", second(ParseRoot(issuerCert, issuerKey))},
		"root as issuer":      {"a root is no issuer", second(ParseIssuer(rootCert, rootKey, root.Certificate()))},
		"issuer of another":   {"the root must have signed it", second(ParseIssuer(issuerCert, issuerKey, east.root.cert))},
		"wrong trust domain":  {"a Link names root and trust domain", second(ParseRootCertificate(eastCert, "west"))},
		"issuer pinned":       {"a Link pins a root", second(ParseRootCertificate(issuerCert, "west"))},
		"trailing garbage":    {"what follows might be a second root", second(ParseRootCertificate(append(slices.Clone(rootCert), "x"...), "west"))},
		"leading garbage":     {"what precedes might be a second root", second(ParseRootCertificate(append([]byte("x\n"), rootCert...), "west"))},
		"two roots":           {"one root is pinned", second(ParseRootCertificate(append(slices.Clone(rootCert), eastCert...), "west"))},
		"a key":               {"a private key pasted by mistake", second(ParseRootCertificate(rootKey, "west"))},
		"nothing":             {"an empty field", second(ParseRootCertificate(nil, "west"))},
		"huge":                {"strangers' bytes are bounded", second(ParseRootCertificate(bytes.Repeat([]byte(" "), 1<<20), "west"))},
		"a certificate's key": {"a certificate is no key", second(ParsePrivateKey(rootCert))},
	} {
		if c.err == nil {
			t.Errorf("%s was taken: %s", name, c.why)
		}
	}
	if _, err := ParseRootCertificate(append([]byte("\n "), rootCert...), "west"); err != nil {
		t.Errorf("white space from YAML: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestSignWorkload(t *testing.T) {
	west := newCluster(t, "west")
	key := must(NewPrivateKey())(t)
	name := west.name("shop", "cart")
	chain := parse(t, must(west.issuer.SignWorkload(key.Public(), name, noon))(t))
	leaf := chain[0]
	if len(chain) != 2 || !chain[1].Equal(west.issuer.cert) {
		t.Errorf("the chain is not leaf and issuer: %d certificates", len(chain))
	}
	if !leaf.NotBefore.Equal(noon.Add(-5*time.Minute)) || !leaf.NotAfter.Equal(noon.Add(24*time.Hour)) {
		t.Errorf("valid from %v to %v", leaf.NotBefore, leaf.NotAfter)
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != name.String() || len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) != 0 {
		t.Errorf("alternative names %v %v", leaf.URIs, leaf.DNSNames)
	}
	if leaf.KeyUsage != x509.KeyUsageDigitalSignature || len(leaf.ExtKeyUsage) != 2 {
		t.Errorf("usage %v %v", leaf.KeyUsage, leaf.ExtKeyUsage)
	}

	late := west.issuer.cert.NotAfter.Add(-time.Hour)
	chain = parse(t, must(west.issuer.SignWorkload(key.Public(), name, late))(t))
	if !chain[0].NotAfter.Equal(west.issuer.cert.NotAfter) {
		t.Errorf("the leaf ends at %v, its issuer at %v", chain[0].NotAfter, west.issuer.cert.NotAfter)
	}
	p384 := must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))(t)
	for what, err := range map[string]error{
		"an expired issuer":            second(west.issuer.SignWorkload(key.Public(), name, west.issuer.cert.NotAfter)),
		"an issuer of the future":      second(west.issuer.SignWorkload(key.Public(), name, noon.Add(-time.Hour))),
		"another trust domain's name":  second(west.issuer.SignWorkload(key.Public(), must(NewName("east", "shop", "cart"))(t), noon)),
		"nobody's name":                second(west.issuer.SignWorkload(key.Public(), Name{}, noon)),
		"a P-384 key":                  second(west.issuer.SignWorkload(&p384.PublicKey, name, noon)),
		"a root signing for a pod":     second(west.root.SignController(key.Public(), name, nil, noon)),
		"a wildcard for a controller":  second(west.root.SignController(key.Public(), west.name("cs", ControllerServiceAccount), []string{"*"}, noon)),
		"a controller after the root":  second(west.root.SignController(key.Public(), west.name("cs", ControllerServiceAccount), nil, noon.Add(2*RootLifetime))),
		"an issuer after the root":     second(west.root.NewIssuer(noon.Add(2 * RootLifetime))),
		"a root without trust domain":  second(NewRoot("", noon)),
		"a credential of another key":  second(NewCredential(must(west.issuer.SignWorkload(key.Public(), name, noon))(t), must(NewPrivateKey())(t))),
		"a credential without a chain": second(NewCredential(nil, key)),
		"a credential of a CA":         second(NewCredential([][]byte{west.issuer.cert.Raw}, west.issuer.key)),
		"a credential without a key":   second(NewCredential(must(west.issuer.SignWorkload(key.Public(), name, noon))(t), PrivateKey{})),
	} {
		if err == nil {
			t.Errorf("%s: no error", what)
		}
	}
}

func TestSignController(t *testing.T) {
	west := newCluster(t, "west")
	key := must(NewPrivateKey())(t)
	hosts := []string{"causeway-controller.causeway-system.svc"}
	chain := parse(t, must(west.root.SignController(key.Public(), west.name("causeway-system", ControllerServiceAccount), hosts, noon))(t))
	leaf := chain[0]
	if len(chain) != 1 || !slices.Equal(leaf.DNSNames, hosts) || !leaf.NotAfter.Equal(noon.Add(24*time.Hour)) {
		t.Errorf("%d certificates, DNS names %v, until %v", len(chain), leaf.DNSNames, leaf.NotAfter)
	}
}

func TestCredential(t *testing.T) {
	west := newCluster(t, "west")
	c := west.workload("shop", "cart")
	if c.Name() != west.name("shop", "cart") || !c.NotAfter().Equal(noon.Add(24*time.Hour)) {
		t.Errorf("%v until %v", c.Name(), c.NotAfter())
	}
	if left := c.NotAfter().Sub(c.RenewAt()); left < 12*time.Hour || left > 12*time.Hour+Backdate {
		t.Errorf("renewed %v before the end, want half its life", left)
	}
}

// number is a private key as the number that it is.
func number(key *ecdsa.PrivateKey) *big.Int {
	raw, err := key.Bytes()
	if err != nil {
		panic(err) // every key of a test is on P-256
	}
	return new(big.Int).SetBytes(raw)
}

func TestKeysDoNotPrint(t *testing.T) {
	west := newCluster(t, "west")
	key := must(NewPrivateKey())(t)
	link := must(NewLinkKey())(t)
	credential := west.workload("shop", "cart")
	secrets := map[string]string{
		"workload": number(key.key).String(), "workload hex": number(key.key).Text(16),
		"root": number(west.root.key.key).String(), "credential": number(credential.cert.PrivateKey.(*ecdsa.PrivateKey)).String(),
		"link": fmt.Sprint(link.Bytes()), "link hex": fmt.Sprintf("%x", link.Bytes()),
	}
	type holder struct{ Key PrivateKey }
	for _, v := range []any{key, &key, holder{key}, link, &link, west.root, *west.root, west.issuer, credential, struct{ C *Credential }{credential}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%d", "%x", "%q"} {
			printed := fmt.Sprintf(verb, v)
			for what, secret := range secrets {
				if strings.Contains(printed, secret) {
					t.Errorf("%s of %T shows the %s key", verb, v, what)
				}
			}
		}
		if b, err := json.Marshal(v); err == nil {
			for what, secret := range secrets {
				if strings.Contains(string(b), secret) {
					t.Errorf("JSON of %T shows the %s key", v, what)
				}
			}
		}
	}
	if got := fmt.Sprint(key); got != redacted {
		t.Errorf("a key prints as %q", got)
	}
}

func TestCSR(t *testing.T) {
	key := must(NewPrivateKey())(t)
	good := must(NewCSR(key))(t)
	if pub := must(ParseCSR(good))(t); !pub.Equal(key.Public()) {
		t.Error("ParseCSR returns another key")
	}
	request := func(template *x509.CertificateRequest, key any) []byte {
		return must(x509.CreateCertificateRequest(rand.Reader, template, key))(t)
	}
	p384 := must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))(t)
	forged := slices.Clone(good)
	forged[len(forged)-1] ^= 1
	cases := map[string]struct {
		why string
		der []byte
	}{
		"bad signature": {"who does not hold the key gets no certificate for it", forged},
		"P-384":         {"leaves are P-256", request(&x509.CertificateRequest{}, p384)},
		"too long":      {"a request holds a key and nothing else", request(&x509.CertificateRequest{Subject: pkix.Name{CommonName: strings.Repeat("a", 2*MaxCSR)}}, key.key)},
		"trailing":      {"one request at a time", append(slices.Clone(good), 0)},
		"garbage":       {"strangers' bytes", []byte("garbage")},
		"empty":         {"strangers' bytes", nil},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if _, err := ParseCSR(c.der); !errors.Is(err, ErrCSR) {
				t.Errorf("ParseCSR: %v, want ErrCSR: %s", err, c.why)
			}
		})
	}
	named := request(&x509.CertificateRequest{DNSNames: []string{"payments"}}, key.key)
	if pub, err := ParseCSR(named); err != nil || !pub.Equal(key.Public()) {
		t.Errorf("names in a request are ignored, not feared: %v", err)
	}
}

func FuzzParseCSR(f *testing.F) {
	f.Add(must(NewCSR(must(NewPrivateKey())(f)))(f))
	f.Fuzz(func(t *testing.T, der []byte) {
		pub, err := ParseCSR(der)
		if err != nil && !errors.Is(err, ErrCSR) {
			t.Fatal(err)
		}
		if err == nil && !isP256(pub) {
			t.Fatalf("ParseCSR returns %T", pub)
		}
	})
}

func FuzzParseRootCertificate(f *testing.F) {
	root, _ := fixedRoot(f)
	f.Add(encodeCertificate(root.cert.Raw))
	f.Fuzz(func(t *testing.T, pem []byte) {
		if cert, err := ParseRootCertificate(pem, "west"); err == nil && checkAuthorityKey(cert.PublicKey) != nil {
			t.Fatal("a root without a P-256 key")
		}
	})
}
