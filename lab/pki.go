package lab

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// pki is one cluster's folder of certificates. What is there is kept; what is missing is made.
type pki struct{ dir string }

// leaf says who a certificate is for.
type leaf struct {
	name  string // of the files NAME.crt and NAME.key
	cn    string
	org   []string
	dns   []string
	ips   []string
	serve bool
}

func (p pki) cert(name string) string { return filepath.Join(p.dir, name+".crt") }
func (p pki) key(name string) string  { return filepath.Join(p.dir, name+".key") }

// leaves are the certificates that a cluster of n nodes needs.
func leaves(cluster string, n int) []leaf {
	out := []leaf{
		{name: "apiserver", cn: "kube-apiserver", serve: true,
			dns: []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"},
			ips: []string{"127.0.0.1", controlIP, apiServiceIP}},
		{name: "apiserver-kubelet", cn: "kube-apiserver-kubelet-client", org: []string{"system:masters"}},
		{name: "admin", cn: "lab-admin", org: []string{"system:masters"}},
		{name: "cloud", cn: "lab-cloud", org: []string{"system:masters"}},
		{name: "controller-manager", cn: "system:kube-controller-manager"},
		{name: "scheduler", cn: "system:kube-scheduler"},
		{name: "proxy", cn: "system:kube-proxy"},
	}
	for i := 1; i <= n; i++ {
		node := nodeName(cluster, i)
		out = append(out,
			leaf{name: node, cn: "system:node:" + node, org: []string{"system:nodes"}},
			leaf{name: node + "-serving", cn: node, serve: true, dns: []string{node}, ips: []string{nodeIP(i).String(), "127.0.0.1"}})
	}
	return out
}

// ensure makes the CA, the key that signs ServiceAccount tokens, and every leaf that is not there yet.
func (p pki) ensure(cluster string, nodes int) error {
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return fmt.Errorf("make the folder of certificates: %w", err)
	}
	ca, caKey, err := p.authority("ca", cluster+"-ca")
	if err != nil {
		return err
	}
	front, frontKey, err := p.authority("front-proxy-ca", cluster+"-front-proxy-ca")
	if err != nil {
		return err
	}
	if err := p.accountKey(); err != nil {
		return err
	}
	// What the API server shows to aggregated servers must not be signed by the CA that clients are signed by.
	if err := p.ensureLeaf(leaf{name: "front-proxy", cn: "front-proxy-client"}, front, frontKey); err != nil {
		return err
	}
	for _, l := range leaves(cluster, nodes) {
		if err := p.ensureLeaf(l, ca, caKey); err != nil {
			return err
		}
	}
	return nil
}

func (p pki) authority(name, cn string) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	if !exists(p.cert(name)) || !exists(p.key(name)) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, nil, fmt.Errorf("make the key of a CA: %w", err)
		}
		t := template(pkix.Name{CommonName: cn})
		t.IsCA, t.BasicConstraintsValid = true, true
		t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature
		if err := p.write(name, t, t, key, key); err != nil {
			return nil, nil, err
		}
	}
	key, err := readKey(p.key(name))
	if err != nil {
		return nil, nil, err
	}
	der, err := readPEM(p.cert(name))
	if err != nil {
		return nil, nil, err
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, fmt.Errorf("parse a CA: %w", err)
	}
	return ca, key, nil
}

// accountKey makes sa.key and sa.pub, with which tokens of ServiceAccounts are signed and checked.
func (p pki) accountKey() error {
	pub := filepath.Join(p.dir, "sa.pub")
	if exists(p.key("sa")) && exists(pub) {
		return nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make the key of ServiceAccounts: %w", err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return fmt.Errorf("encode the key of ServiceAccounts: %w", err)
	}
	if err := writeKey(p.key("sa"), key); err != nil {
		return err
	}
	return writePEM(pub, "PUBLIC KEY", der)
}

func (p pki) ensureLeaf(l leaf, ca *x509.Certificate, caKey *ecdsa.PrivateKey) error {
	if exists(p.cert(l.name)) && exists(p.key(l.name)) {
		return nil
	}
	return p.issue(l, ca, caKey)
}

func (p pki) issue(l leaf, ca *x509.Certificate, caKey *ecdsa.PrivateKey) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make the key of %s: %w", l.name, err)
	}
	t := template(pkix.Name{CommonName: l.cn, Organization: l.org})
	t.KeyUsage = x509.KeyUsageDigitalSignature
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if l.serve {
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	t.DNSNames = l.dns
	for _, ip := range l.ips {
		t.IPAddresses = append(t.IPAddresses, net.ParseIP(ip))
	}
	return p.write(l.name, t, ca, key, caKey)
}

func (p pki) write(name string, t, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) error {
	der, err := x509.CreateCertificate(rand.Reader, t, parent, &key.PublicKey, signer)
	if err != nil {
		return fmt.Errorf("sign certificate %q: %w", name, err)
	}
	if err := writeKey(p.key(name), key); err != nil {
		return err
	}
	return writePEM(p.cert(name), "CERTIFICATE", der)
}

func template(subject pkix.Name) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		panic(err) // crypto/rand never fails since Go 1.24
	}
	now := time.Now()
	return &x509.Certificate{SerialNumber: serial, Subject: subject, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(1, 0, 0)}
}

func writeKey(path string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode key %q: %w", path, err)
	}
	return writePEM(path, "EC PRIVATE KEY", der)
}

func writePEM(path, kind string, der []byte) error {
	return writeFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

func readPEM(path string) ([]byte, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	b, _ := pem.Decode(raw)
	if b == nil {
		return nil, fmt.Errorf("no PEM block in %q", path)
	}
	return b.Bytes, nil
}

func readKey(path string) (*ecdsa.PrivateKey, error) {
	der, err := readPEM(path)
	if err != nil {
		return nil, err
	}
	key, err := x509.ParseECPrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("parse key %q: %w", path, err)
	}
	return key, nil
}
