package identity

import "crypto/tls"

// KeyExchange says which key shares a client offers. Servers accept both.
type KeyExchange int

const (
	// PostQuantum offers X25519MLKEM768 beside X25519, so that traffic that is recorded
	// today cannot be decrypted by a later quantum computer. Its ClientHello has about
	// 1,600 bytes and thus needs two TCP segments.
	PostQuantum KeyExchange = iota
	// Classical offers X25519 alone. Its ClientHello fits one TCP segment, which some
	// middleboxes demand.
	Classical
)

// KeyExchangeOf returns PostQuantum if postQuantum is true, and otherwise Classical.
func KeyExchangeOf(postQuantum bool) KeyExchange {
	if postQuantum {
		return PostQuantum
	}
	return Classical
}

// Limit makes a client's config, which ClientTLS returned, offer only the key shares of k.
// It changes and returns config.
func (k KeyExchange) Limit(config *tls.Config) *tls.Config {
	config.CurvePreferences = k.groups()
	return config
}

// groups are the key exchange groups of k, the preferred one first.
func (k KeyExchange) groups() []tls.CurveID {
	if k == Classical {
		return []tls.CurveID{tls.X25519}
	}
	return []tls.CurveID{tls.X25519MLKEM768, tls.X25519}
}
