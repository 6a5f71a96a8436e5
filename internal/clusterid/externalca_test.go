package clusterid

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

	"github.com/causeway-mesh/causeway/internal/clusterinfo"
	"github.com/causeway-mesh/causeway/internal/kube/kubetest"
)

// externalCA is a CA outside Causeway that keeps a cluster's root in a Secret.
type externalCA struct {
	*testing.T
	*kubetest.API
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	// writing is set while the CA itself writes the Secret.
	writing bool
}

func newExternalCA(t *testing.T, a *kubetest.API) *externalCA {
	m := &externalCA{T: t, API: a}
	m.cert, m.key = m.sign(nil, &x509.Certificate{
		Subject:  pkix.Name{CommonName: "office"},
		NotAfter: time.Now().AddDate(20, 0, 0),
	})
	return m
}

func (m *externalCA) sign(by *x509.Certificate, c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	m.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		m.Fatal(err)
	}
	c.SerialNumber, c.NotBefore = big.NewInt(1), time.Now().Add(-time.Hour)
	c.BasicConstraintsValid, c.IsCA, c.KeyUsage = true, true, x509.KeyUsageCertSign
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

// renew writes the Secret as cert-manager does: in place, with another key.
func (m *externalCA) renew(trustDomain string) {
	m.Helper()
	cert, key := m.sign(m.cert, &x509.Certificate{
		Subject: pkix.Name{CommonName: "root of " + trustDomain}, NotAfter: time.Now().AddDate(0, 3, 0),
		URIs: []*url.URL{{Scheme: "spiffe", Host: trustDomain}}, MaxPathLen: -1,
	})
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		m.Fatal(err)
	}
	text := func(kind string, der []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{
			Type:  kind,
			Bytes: der,
		})
	}
	m.store(map[string][]byte{
		"tls.crt": text("CERTIFICATE", cert.Raw),
		"tls.key": text("EC PRIVATE KEY", der),
		"ca.crt":  text("CERTIFICATE", m.cert.Raw),
	})
}

func (m *externalCA) store(data map[string][]byte) {
	m.Helper()
	m.writing = true
	defer func() { m.writing = false }()
	s := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: "ca"},
		Type:       corev1.SecretTypeTLS,
		Data:       data,
	}
	if err := m.Create(m.Context(), s); err == nil {
		return
	}
	m.MustGet(m.T, system, "ca", s)
	s.Data = data
	if err := m.Update(m.Context(), s); err != nil {
		m.Fatal(err)
	}
}

func TestExternalCA(t *testing.T) {
	a, now := kubetest.New(nil), time.Now()
	o := named("west")
	o.CASecret = "ca"
	if _, err := Load(t.Context(), a, o); err == nil || !strings.Contains(err.Error(), "does not exist") {
		t.Fatalf("peers would pin a root of our own before the external one exists: %v", err)
	}
	m := newExternalCA(t, a)
	m.renew("west")
	acknowledged := map[string]uint64{"east": 1}
	leader, follower := newReplicaWith(t, a, true, acknowledged, o), newReplicaWith(t, a, false, nil, o)
	both := func(after time.Duration) {
		t.Helper()
		leader.step(t, now.Add(after))
		follower.step(t, now.Add(after))
		for _, id := range []*Identity{leader.id, follower.id} {
			if err := verifyFrom(t, m.cert, id); err != nil {
				t.Errorf("after %v, a peer that pins the external CA refuses: %v", after, err)
			}
		}
	}
	both(0)
	if leader.id.trustDomain != "west" {
		t.Errorf("trust domain %s", leader.id.trustDomain)
	}
	var cm corev1.ConfigMap
	a.MustGet(t, system, clusterinfo.IdentityConfigMap, &cm)
	if block, _ := pem.Decode([]byte(cm.Data[clusterinfo.KeyRoot])); block == nil ||
		string(block.Bytes) != string(m.cert.Raw) || cm.Data[clusterinfo.KeyCASecret] != "ca" {
		t.Errorf("peers are to pin the external CA, but %v is published", cm.Data)
	}
	first := leader.id.Issuers().Root()
	a.Refuse(func(verb string, o client.Object) error {
		if verb != "get" && o.GetName() == "ca" && !m.writing {
			t.Errorf("%s of the Secret that belongs to the external CA", verb)
		}
		return nil
	})

	m.store(map[string][]byte{"tls.crt": []byte("half written")})
	both(0)
	both(0)
	if got := leader.events(); len(got) != 1 || !strings.Contains(got[0], InvalidCASecret) {
		t.Errorf("one Event must say that the Secret holds no root: %q", got)
	}
	if p := progress(t, a); !strings.Contains(p.Fault, "system/ca cannot be this cluster's root") {
		t.Errorf("the progress does not report the fault: %+v", p)
	}
	m.renew("east")
	both(0)
	if got := leader.events(); len(got) != 1 || !strings.Contains(got[0], "spiffe://west") {
		t.Errorf("a root of another trust domain must be refused: %q", got)
	}

	m.renew("west")
	both(time.Second)
	if have := leader.id.Issuers(); have.roots.Next == nil || !have.Root().Equal(first) ||
		progress(t, a).Fault != "" {
		t.Error("a renewed root must be announced first")
	}
	both(24*time.Hour + 2*time.Second)
	if have := leader.id.Issuers(); have.roots.Next != nil || have.Root().Equal(first) ||
		have.state.Next == nil {
		t.Error("a renewed root must sign when the announcement is over")
	}
	restarted := newReplicaWith(t, a, false, nil, o)
	if !restarted.id.Issuers().Root().Equal(leader.id.Issuers().Root()) {
		t.Error("a restart must read what is in force")
	}
}
