package controller

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// maker is somebody else's authority, which keeps a cluster's root in a Secret.
type maker struct {
	*testing.T
	*api
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	// writing: it is m who writes.
	writing bool
}

func newMaker(t *testing.T, a *api) *maker {
	m := &maker{T: t, api: a}
	m.cert, m.key = m.sign(nil, &x509.Certificate{Subject: pkix.Name{CommonName: "office"}, NotAfter: time.Now().AddDate(20, 0, 0)})
	return m
}

func (m *maker) sign(by *x509.Certificate, c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	m.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		m.Fatal(err)
	}
	c.SerialNumber, c.NotBefore, c.BasicConstraintsValid, c.IsCA, c.KeyUsage = big.NewInt(1), time.Now().Add(-time.Hour), true, true, x509.KeyUsageCertSign
	signer := m.key
	if by == nil {
		by, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, by, &key.PublicKey, signer)
	if err != nil {
		m.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		m.Fatal(err)
	}
	return cert, key
}

// renews writes the Secret as cert-manager does: in place, with another key.
func (m *maker) renews(trustDomain string) {
	m.Helper()
	cert, key := m.sign(m.cert, &x509.Certificate{
		Subject: pkix.Name{CommonName: "root of " + trustDomain}, NotAfter: time.Now().AddDate(0, 3, 0),
		URIs: []*url.URL{{Scheme: "spiffe", Host: trustDomain}}, MaxPathLen: -1,
	})
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		m.Fatal(err)
	}
	text := func(kind string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}) }
	m.writes(map[string][]byte{"tls.crt": text("CERTIFICATE", cert.Raw), "tls.key": text("EC PRIVATE KEY", der), "ca.crt": text("CERTIFICATE", m.cert.Raw)})
}

func (m *maker) writes(data map[string][]byte) {
	m.Helper()
	m.writing = true
	defer func() { m.writing = false }()
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: "ca"}, Type: corev1.SecretTypeTLS, Data: data}
	if err := m.Create(m.Context(), s); err == nil {
		return
	}
	m.get(m.T, system, "ca", s)
	s.Data = data
	if err := m.Update(m.Context(), s); err != nil {
		m.Fatal(err)
	}
}

func TestBroughtRoot(t *testing.T) {
	a, now := newAPI(t), time.Now()
	as := named("west")
	as.CASecret = "ca"
	if _, err := loadOwn(t.Context(), a, as, now); err == nil || !strings.Contains(err.Error(), "is not there") {
		t.Fatalf("a root of our own would be pinned by peers before the other is there: %v", err)
	}
	m := newMaker(t, a)
	m.renews("west")
	acks := map[string]uint64{"east": 1}
	leader, other := newTurnerAs(t, a, true, acks, as), newTurnerAs(t, a, false, nil, as)
	both := func(after time.Duration) {
		t.Helper()
		leader.see(t, now.Add(after))
		other.see(t, now.Add(after))
		for _, o := range []*own{leader.own, other.own} {
			if err := trustedUnder(t, m.cert, o); err != nil {
				t.Errorf("after %v, who pins the office's root: %v", after, err)
			}
		}
	}
	both(0)
	if leader.own.trustDomain != "west" {
		t.Errorf("trust domain %s", leader.own.trustDomain)
	}
	var cm corev1.ConfigMap
	a.get(t, system, IdentityConfigMap, &cm)
	if block, _ := pem.Decode([]byte(cm.Data[KeyRoot])); block == nil || string(block.Bytes) != string(m.cert.Raw) || cm.Data[KeyCASecret] != "ca" {
		t.Errorf("peers are to pin the office's root, but are told %v", cm.Data)
	}
	first := leader.own.root().Certificate()
	a.refusing(func(verb string, o client.Object) error {
		if verb != "get" && o.GetName() == "ca" && !m.writing {
			t.Errorf("%s of the Secret, which is somebody else's", verb)
		}
		return nil
	})

	m.writes(map[string][]byte{"tls.crt": []byte("half written")})
	both(0)
	both(0)
	if said := leader.events(); len(said) != 1 || !strings.Contains(said[0], caNotTaken) {
		t.Errorf("it is told once that the Secret is no root: %q", said)
	}
	if p := progress(t, a); !strings.Contains(p.Fault, "system/ca cannot be this cluster's root") {
		t.Errorf("who asks is not told: %+v", p)
	}
	m.renews("east")
	both(0)
	if said := leader.events(); len(said) != 1 || !strings.Contains(said[0], "spiffe://west") {
		t.Errorf("a root of another trust domain: %q", said)
	}

	m.renews("west")
	both(time.Second)
	if have := leader.own.issuers.Load(); have.roots.Next == nil || !have.roots.Current.Certificate().Equal(first) || progress(t, a).Fault != "" {
		t.Error("what is renewed is not announced first")
	}
	both(24*time.Hour + 2*time.Second)
	if have := leader.own.issuers.Load(); have.roots.Next != nil || have.roots.Current.Certificate().Equal(first) || have.Next == nil {
		t.Error("what is renewed does not sign when the announcement is over")
	}
	again := newTurnerAs(t, a, false, nil, as)
	if !again.own.root().Same(leader.own.root()) {
		t.Error("a restart reads what is in force")
	}
}

// events returns what was told since it was last asked.
func (r *turner) events() []string {
	var out []string
	for {
		select {
		case e := <-r.told.Events:
			out = append(out, e)
		default:
			return out
		}
	}
}
