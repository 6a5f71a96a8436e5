package identity

import (
	"bytes"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

const secondsPerDay = 24 * 60 * 60

// ErrLinkKey reports bytes that are no link key, or a public key that no secret
// may be shared with.
var ErrLinkKey = errors.New("link key not accepted")

// LinkKey is a cluster's X25519 key (RFC 7748). Its public half is published;
// with a peer's it makes the secret from which the keys of each day are derived.
// It never prints itself; only Bytes lets it out. The zero LinkKey is no key.
type LinkKey struct {
	_   [0]func() // keys are not compared with ==
	key *ecdh.PrivateKey
}

// NewLinkKey makes a key.
func NewLinkKey() (LinkKey, error) {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return LinkKey{}, fmt.Errorf("make a link key: %w", err)
	}
	return LinkKey{key: key}, nil
}

// ParseLinkKey reads what Bytes returns. Its errors wrap ErrLinkKey.
func ParseLinkKey(b []byte) (LinkKey, error) {
	key, err := ecdh.X25519().NewPrivateKey(b)
	if err != nil {
		return LinkKey{}, fmt.Errorf("a link key is 32 bytes, not %d: %w", len(b), ErrLinkKey)
	}
	return LinkKey{key: key}, nil
}

// Bytes returns the private key itself, 32 bytes.
func (k LinkKey) Bytes() []byte { return k.key.Bytes() }

// Public returns the public half, 32 bytes.
func (k LinkKey) Public() []byte { return k.key.PublicKey().Bytes() }

// IsZero reports whether there is no key.
func (k LinkKey) IsZero() bool { return k.key == nil }

// Format writes a placeholder for every verb.
func (LinkKey) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// LinkSecret returns the secret that only two linked clusters can compute: X25519 of
// the own private and the peer's public key. It returns ErrLinkKey for the own public
// key and for points of low order, whose secret is public.
func LinkSecret(own LinkKey, peerPublic []byte) ([32]byte, error) {
	if own.IsZero() {
		return [32]byte{}, fmt.Errorf("there is no own link key: %w", ErrLinkKey)
	}
	peer, err := ecdh.X25519().NewPublicKey(peerPublic)
	if err != nil {
		return [32]byte{}, fmt.Errorf("a peer's link key is 32 bytes, not %d: %w", len(peerPublic), ErrLinkKey)
	}
	secret, err := own.key.ECDH(peer)
	if err != nil {
		return [32]byte{}, fmt.Errorf("the peer's link key is of low order: %w", ErrLinkKey)
	}
	// Compared as secrets, since one point has several spellings.
	if self, err := own.key.ECDH(own.key.PublicKey()); err != nil || bytes.Equal(secret, self) {
		return [32]byte{}, fmt.Errorf("the peer's link key is our own: %w", ErrLinkKey)
	}
	return [32]byte(secret), nil
}

// Day returns the UTC day of t, Unix time / 86400. Days before 1970 are day 0.
func Day(t time.Time) uint32 { return uint32(max(t.Unix(), 0) / secondsPerDay) }

// DayKey derives the key that seals labels from one trust domain to another on
// one UTC day.
func DayKey(secret [32]byte, fromTrustDomain, toTrustDomain string, day uint32) [32]byte {
	info := field(field(nil, fromTrustDomain), toTrustDomain)
	return derive(secret, "causeway day key/1", binary.BigEndian.AppendUint32(info, day))
}

// HopKey derives the key that authenticates the gateways' headers to one backend,
// a node or a controller replica, from a master that only controllers hold.
func HopKey(master [32]byte, node string) [32]byte {
	return derive(master, "causeway hop key/1", field(nil, node))
}

// EndpointKey derives the key of EndpointID from the master, so that one Secret
// holds both.
func EndpointKey(master [32]byte) [32]byte {
	return derive(master, "causeway endpoint key/1", nil)
}

// EndpointID names a pod as an endpoint of a Service, NAMESPACE/NAME, without
// telling anything about it to those who do not hold the key.
func EndpointID(key [32]byte, service, podUID string) [8]byte {
	mac := hmac.New(sha256.New, key[:])
	mac.Write(field(field([]byte("causeway endpoint id/1"), service), podUID))
	return [8]byte(mac.Sum(nil)[:8])
}

// derive is HKDF-SHA-256 (RFC 5869) without salt; info is the context, then the
// fields.
func derive(secret [32]byte, context string, fields []byte) [32]byte {
	key, err := hkdf.Key(sha256.New, secret[:], nil, context+string(fields), 32)
	if err != nil {
		panic(fmt.Sprintf("identity: HKDF of 32 bytes: %v", err)) // it fails on absurd lengths only
	}
	return [32]byte(key)
}

// field appends s with its length, so that no two lists of fields look alike.
func field(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
}
