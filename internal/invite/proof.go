package invite

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// LabelKey is the key by which the token's holder seals the label that leads to the
// inviter's controller.
func (s Secret) LabelKey() [32]byte { return s.derive("causeway invite/1 label") }

// A Session is what the two ends of one TLS connection agree on.
type Session struct {
	// Exporter is the connection's own keying material (RFC 8446, section 7.5).
	Exporter [32]byte
	// Inviter and Joiner are the hashes of the roots that were presented. The
	// exporter does not bind the client's certificate, so they are proven beside it.
	Inviter, Joiner [32]byte
}

// ProveRequest is the joiner's proof that it has the token and says this.
func (s Secret) ProveRequest(on Session, request []byte) []byte {
	return s.prove(on, "request", request)
}

// ProveAnswer is the inviter's proof of what it answers to this request.
func (s Secret) ProveAnswer(on Session, request, answer []byte) []byte {
	return s.prove(on, "answer", request, answer)
}

// Equal compares two proofs in constant time.
func Equal(a, b []byte) bool { return hmac.Equal(a, b) }

func (s Secret) prove(on Session, what string, parts ...[]byte) []byte {
	key := s.derive("causeway invite/1 proof")
	mac := hmac.New(sha256.New, key[:])
	mac.Write([]byte("causeway join/1 " + what))
	mac.Write(on.Exporter[:])
	mac.Write(on.Inviter[:])
	mac.Write(on.Joiner[:])
	for _, p := range parts {
		mac.Write(binary.BigEndian.AppendUint32(nil, uint32(len(p))))
		mac.Write(p)
	}
	return mac.Sum(nil)
}

// derive is HKDF-SHA-256 (RFC 5869) without salt.
func (s Secret) derive(info string) [32]byte {
	key, err := hkdf.Key(sha256.New, s.raw[:], nil, info, 32)
	if err != nil {
		panic(fmt.Sprintf("invite: HKDF of 32 bytes: %v", err)) // it fails on absurd lengths only
	}
	return [32]byte(key)
}
