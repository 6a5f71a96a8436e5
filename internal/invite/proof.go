package invite

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// LabelKey returns the key that encrypts the connection label with which a joiner reaches
// the inviter's controller.
func (s Secret) LabelKey() [32]byte { return s.derive("causeway invite/1 label") }

// A Session identifies one TLS connection between a joiner and an inviter.
type Session struct {
	// Exporter is exported keying material of the connection (RFC 8446, section 7.5).
	Exporter [32]byte
	// Inviter and Joiner are the hashes of the roots that the two ends presented. A proof
	// includes them, because the exporter does not bind the client's certificate.
	Inviter, Joiner [32]byte
}

// ProveRequest returns the joiner's proof that it holds the token and has sent request.
func (s Secret) ProveRequest(on Session, request []byte) []byte {
	return s.prove(on, "request", request)
}

// ProveAnswer returns the inviter's proof that it has sent answer to request.
func (s Secret) ProveAnswer(on Session, request, answer []byte) []byte {
	return s.prove(on, "answer", request, answer)
}

// Equal compares two proofs in constant time.
func Equal(a, b []byte) bool { return hmac.Equal(a, b) }

func (s Secret) prove(on Session, kind string, parts ...[]byte) []byte {
	key := s.derive("causeway invite/1 proof")
	mac := hmac.New(sha256.New, key[:])
	mac.Write([]byte("causeway join/1 " + kind))
	mac.Write(on.Exporter[:])
	mac.Write(on.Inviter[:])
	mac.Write(on.Joiner[:])
	for _, p := range parts {
		mac.Write(binary.BigEndian.AppendUint32(nil, uint32(len(p))))
		mac.Write(p)
	}
	return mac.Sum(nil)
}

// derive returns a key by HKDF-SHA-256 (RFC 5869) without salt.
func (s Secret) derive(info string) [32]byte {
	key, err := hkdf.Key(sha256.New, s.raw[:], nil, info, 32)
	if err != nil {
		// HKDF fails only for lengths above 255 hashes.
		panic(fmt.Sprintf("invite: derive key: %v", err))
	}
	return [32]byte(key)
}
