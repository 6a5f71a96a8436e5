package identity

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"strings"
)

const (
	maxPEM   = 16 << 10
	pemCert  = "CERTIFICATE"
	pemKey   = "PRIVATE KEY"    // PKCS #8, RFC 5958
	pemECKey = "EC PRIVATE KEY" // SEC 1, RFC 5915
	redacted = "[private key]"
)

// ErrKey reports a public key that Causeway does not take.
var ErrKey = errors.New("key not allowed")

// PrivateKey is an ECDSA P-256 key. It never prints itself: every verb of fmt,
// JSON and slog show a placeholder. Only MarshalPEM lets it out. The zero
// PrivateKey holds no key and only IsZero may be asked of it.
type PrivateKey struct {
	_   [0]func() // keys are not compared with ==
	key *ecdsa.PrivateKey
}

// NewPrivateKey makes a key. Tests that want it reproducible use
// testing/cryptotest, since Go ignores other sources of randomness.
func NewPrivateKey() (PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return PrivateKey{}, fmt.Errorf("make a P-256 key: %w", err)
	}
	return PrivateKey{key: key}, nil
}

// ParsePrivateKey reads what MarshalPEM writes. Its errors show nothing of it.
func ParsePrivateKey(keyPEM []byte) (PrivateKey, error) {
	der, err := decodePEM(pemKey, keyPEM)
	if err != nil {
		return PrivateKey{}, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return PrivateKey{}, errors.New("the private key is not PKCS #8")
	}
	return privateKey(parsed)
}

// parseImportedKey reads a key that another tool has written: PKCS #8 or SEC 1.
func parseImportedKey(keyPEM []byte) (PrivateKey, error) {
	der, err := decodePEM(pemECKey, keyPEM)
	if err != nil {
		return ParsePrivateKey(keyPEM)
	}
	parsed, err := x509.ParseECPrivateKey(der)
	if err != nil {
		return PrivateKey{}, errors.New("the private key is not SEC 1")
	}
	return privateKey(parsed)
}

func privateKey(parsed any) (PrivateKey, error) {
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return PrivateKey{}, fmt.Errorf("the private key is not ECDSA P-256: %w", ErrKey)
	}
	return PrivateKey{key: key}, nil
}

// MarshalPEM returns the key itself, in the clear.
func (k PrivateKey) MarshalPEM() ([]byte, error) {
	if k.IsZero() {
		return nil, fmt.Errorf("there is no private key to marshal: %w", ErrKey)
	}
	der, err := x509.MarshalPKCS8PrivateKey(k.key)
	if err != nil {
		return nil, fmt.Errorf("marshal a private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der}), nil
}

// Public returns the public half.
func (k PrivateKey) Public() *ecdsa.PublicKey { return &k.key.PublicKey }

// IsZero reports whether there is no key.
func (k PrivateKey) IsZero() bool { return k.key == nil }

// Format writes a placeholder for every verb.
func (PrivateKey) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// isP256 reports whether pub is an ECDSA P-256 key.
func isP256(pub any) bool {
	key, ok := pub.(*ecdsa.PublicKey)
	return ok && key.Curve == elliptic.P256()
}

// checkAuthorityKey bounds what one signature of an authority may cost to verify.
func checkAuthorityKey(pub any) error {
	switch key := pub.(type) {
	case *ecdsa.PublicKey:
		if key.Curve == elliptic.P256() || key.Curve == elliptic.P384() {
			return nil
		}
	case ed25519.PublicKey:
		return nil
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits >= 2048 && bits <= 4096 {
			return nil
		}
	}
	return fmt.Errorf("an authority's key is none of P-256, P-384, Ed25519 and RSA with 2048 to 4096 bits: %w", ErrKey)
}

func encodeCertificate(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: pemCert, Bytes: der})
}

func parseCertificatePEM(certPEM []byte) (*x509.Certificate, error) {
	der, err := decodePEM(pemCert, certPEM)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("parse the certificate: %w", err)
	}
	return cert, nil
}

// decodePEM returns the one block that data must be, give or take white space.
func decodePEM(kind string, data []byte) ([]byte, error) {
	if len(data) > maxPEM {
		return nil, fmt.Errorf("the %s is longer than %d bytes", strings.ToLower(kind), maxPEM)
	}
	text := strings.TrimSpace(string(data))
	block, rest := pem.Decode([]byte(text))
	if block == nil || block.Type != kind || len(block.Headers) != 0 || len(rest) != 0 || !strings.HasPrefix(text, "-----BEGIN ") {
		return nil, fmt.Errorf("the %s is not exactly one PEM block of type %q", strings.ToLower(kind), kind)
	}
	return block.Bytes, nil
}
