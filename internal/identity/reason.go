package identity

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Reasons why a peer is refused, as a metric label. The list is closed.
const (
	ReasonNoCertificate    = "no_certificate"
	ReasonChainTooLong     = "chain_too_long"
	ReasonLeafKey          = "leaf_key"
	ReasonAuthorityKey     = "authority_key"
	ReasonIdentity         = "identity"            // not exactly one SPIFFE ID of our form
	ReasonLeafUsage        = "leaf_usage"          // a CA, or not for TLS
	ReasonTrustDomain      = "trust_domain"        // no anchors for it
	ReasonUnknownAuthority = "unknown_authority"   // none of its trust domain's issuers signed it
	ReasonExpired          = "expired"             // by our clock
	ReasonNotYetValid      = "not_yet_valid"       // by our clock
	ReasonChain            = "chain"               // any other fault that X.509 finds
	ReasonUnexpected       = "unexpected_identity" // proven, but not who it should be
	ReasonALPN             = "alpn"
	ReasonResumed          = "resumed"
	ReasonOther            = "other" // not this package's error
)

// Reasons returns every reason there is, sorted, so that each can be counted
// from zero.
func Reasons() []string {
	reasons := []string{
		ReasonNoCertificate, ReasonChainTooLong, ReasonLeafKey, ReasonAuthorityKey, ReasonIdentity, ReasonLeafUsage,
		ReasonTrustDomain, ReasonUnknownAuthority, ReasonExpired, ReasonNotYetValid, ReasonChain, ReasonUnexpected,
		ReasonALPN, ReasonResumed, ReasonOther,
	}
	slices.Sort(reasons)
	return reasons
}

// ErrRefused is wrapped by every error that has a reason of its own.
var ErrRefused = errors.New("peer not believed")

// Reason returns why a peer was refused: one of Reasons, ReasonOther for an error that
// is not of this package (such as a broken handshake), or "" for nil. It unwraps
// errors, so it also works on the error of a handshake.
func Reason(err error) string {
	if err == nil {
		return ""
	}
	if r, ok := errors.AsType[*refusal](err); ok {
		return r.reason
	}
	return ReasonOther
}

type refusal struct {
	reason string
	err    error
}

func refuse(reason, format string, args ...any) error {
	return &refusal{reason, fmt.Errorf(format, args...)}
}

func (r *refusal) Error() string { return r.err.Error() }

func (r *refusal) Unwrap() []error { return []error{ErrRefused, r.err} }

// refuseChain finds the reason in what x509svid says of a chain that inspect has
// let through.
func refuseChain(certs []*x509.Certificate, now time.Time, name Name, err error) error {
	if _, ok := errors.AsType[*refusal](err); ok {
		return err
	}
	reason := ReasonChain
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		reason = ReasonUnknownAuthority
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		reason = ReasonExpired
		if slices.ContainsFunc(certs, func(c *x509.Certificate) bool { return now.Before(c.NotBefore) }) {
			reason = ReasonNotYetValid
		}
	}
	return refuse(reason, "%s: %w", name, err)
}
