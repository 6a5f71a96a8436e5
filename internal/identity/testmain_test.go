package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"net/url"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// noon is when tests happen.
var noon = time.Date(2026, 3, 14, 12, 0, 0, 0, time.UTC)

func atNoon() time.Time { return noon }

// cluster is one trust domain with all it takes to mint certificates.
type cluster struct {
	*testing.T
	root   *Root
	issuer *Issuer
}

func newCluster(t *testing.T, trustDomain string) *cluster {
	t.Helper()
	root := must(NewRoot(trustDomain, noon))(t)
	return &cluster{t, root, must(root.NewIssuer(noon))(t)}
}

func (c *cluster) name(namespace, account string) Name {
	c.Helper()
	return must(NewName(c.root.TrustDomain(), namespace, account))(c.T)
}

// workload is a credential as the signer would issue it at noon.
func (c *cluster) workload(namespace, account string) *Credential {
	c.Helper()
	key := must(NewPrivateKey())(c.T)
	chain := must(c.issuer.SignWorkload(key.Public(), c.name(namespace, account), noon))(c.T)
	return must(NewCredential(chain, key))(c.T)
}

func (c *cluster) controller() *Credential {
	c.Helper()
	key := must(NewPrivateKey())(c.T)
	name := c.name("causeway-system", ControllerServiceAccount)
	return must(NewCredential(must(c.root.SignController(key.Public(), name, nil, noon))(c.T), key))(c.T)
}

func (c *cluster) anchors() *Anchors {
	c.Helper()
	return must(NewAnchors(map[string][]*x509.Certificate{
		c.root.TrustDomain(): {c.issuer.Certificate()},
	}))(c.T)
}

// leafTemplate is a sound workload's certificate, for tests to break.
func leafTemplate(id string) *x509.Certificate {
	uri, err := url.Parse(id)
	if err != nil {
		panic(err)
	}
	return &x509.Certificate{
		NotBefore:             noon.Add(-Backdate),
		NotAfter:              noon.Add(time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{uri},
	}
}

// mint signs whatever it is given.
func mint(t *testing.T, template, parent *x509.Certificate, pub any, key any) *x509.Certificate {
	t.Helper()
	der := must(x509.CreateCertificate(rand.Reader, template, parent, pub, key))(t)
	return must(x509.ParseCertificate(der))(t)
}

func newP256(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	return must(NewPrivateKey())(t).key
}

func parse(t *testing.T, chain [][]byte) []*x509.Certificate {
	t.Helper()
	var certs []*x509.Certificate
	for _, der := range chain {
		certs = append(certs, must(x509.ParseCertificate(der))(t))
	}
	return certs
}

// must returns v, or ends the test: must(f())(t).
func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// fixedRoot is the same in every process, as fuzzing needs it: its keys are
// numbers, its signatures RFC 6979's.
func fixedRoot(t testing.TB) (*Root, *Issuer) {
	t.Helper()
	key := func(n byte) PrivateKey {
		scalar := make([]byte, 32)
		scalar[31] = n
		return PrivateKey{key: must(ecdsa.ParseRawPrivateKey(elliptic.P256(), scalar))(t)}
	}
	fixed := func(kind string, serial int64, parent *x509.Certificate, pub, by PrivateKey) *x509.Certificate {
		template := authorityTemplate("west", kind, noon, IssuerLifetime)
		template.SerialNumber = big.NewInt(serial)
		if parent == nil {
			parent = template
		}
		der := must(x509.CreateCertificate(nil, template, parent, pub.Public(), by.key))(t)
		return must(x509.ParseCertificate(der))(t)
	}
	root := fixed("root", 1, nil, key(1), key(1))
	issuer := fixed("issuer", 2, root, key(2), key(1))
	return &Root{authority: authority{"west", root, key(1)}}, &Issuer{authority{"west", issuer, key(2)}}
}
