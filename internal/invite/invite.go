// Package invite decides how two clusters establish Links to each other with a token that
// a user copies from one cluster to the other.
//
//	inviter: Invite, Secret ─▶ Token ─ copied by a user ─▶ joiner: Join, Secret ─▶ Check
//	joiner:  Request and proof ─ TLS, pinned to the inviter's root ─▶ inviter: Decide
//	inviter: Link, then Answer and proof ─▶ joiner: CheckInviter, Link
//
// Invariants:
//   - The clusters exchange only public data. No long-lived key is derived from the
//     token.
//   - A compare-and-swap binds an Invite to the first cluster that uses it, by the hash
//     of the root. That cluster may retry. No other cluster can use the Invite.
//   - Decide is pure and returns one step at a time, so a retry after a crash continues
//     with the step that was interrupted.
//   - An Invite does not create a Link again that was created and then deleted.
package invite

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/link"
)

// Lifetime is the longest validity of a token.
const Lifetime = 15 * time.Minute

const (
	// GracePeriod is how long after its expiry a token still leads to the inviter's
	// controller, which then answers that the token has expired.
	GracePeriod = 15 * time.Minute
	// retention is how long after the grace period an Invite or a Join is kept.
	retention = time.Hour
)

// SecretName returns the name of the Secret that belongs to an Invite.
func SecretName(invite string) string { return "causeway-invite-" + invite }

// JoinSecretName returns the name of the Secret that belongs to a Join.
func JoinSecretName(join string) string { return "causeway-join-" + join }

// Keys of the data of these Secrets.
const (
	// SecretKey holds the secret of an Invite.
	SecretKey = "secret"
	// TokenKey holds the token of a Join.
	TokenKey = "token"
)

// Expires returns the time at which an Invite expires, by the clock of its API server.
func Expires(inv *v1alpha1.Invite) time.Time {
	return inv.CreationTimestamp.Add(time.Duration(inv.Spec.ValidSeconds) * time.Second)
}

// Open reports whether gateways must route joiners of an Invite to the controller, and
// until when.
func Open(inv *v1alpha1.Invite, now time.Time) (until time.Time, open bool) {
	until = Expires(inv).Add(GracePeriod)
	return until, inv.DeletionTimestamp == nil && now.Before(until)
}

// CanDelete reports whether the Invite or Join of a token that expires at a time can be
// deleted.
func CanDelete(expires, now time.Time) bool {
	return now.After(expires.Add(GracePeriod + retention))
}

// Reason is a machine-readable reason why a cluster is refused.
type Reason string

// The reasons.
const (
	Unknown       Reason = "Unknown"       // the Invite does not exist or was deleted
	BadProof      Reason = "BadProof"      // the secret is not the secret of the Invite
	BadRequest    Reason = "BadRequest"    // the data of the cluster is inconsistent
	WrongName     Reason = "WrongName"     // the cluster was invited under another name
	Used          Reason = "Used"          // the Invite was used, perhaps by another cluster
	Expired       Reason = "Expired"       // the Invite has expired
	OwnCluster    Reason = "OwnCluster"    // the joiner is the inviter
	NameTaken     Reason = "NameTaken"     // a Link for another cluster has the name
	AlreadyLinked Reason = "AlreadyLinked" // another Link for the cluster exists
	BadToken      Reason = "BadToken"      // the token cannot be parsed
)

// Reasons returns all reasons. Metrics use it to export each of them from zero.
func Reasons() []Reason {
	return []Reason{
		Unknown,
		BadProof,
		BadRequest,
		WrongName,
		Used,
		Expired,
		OwnCluster,
		NameTaken,
		AlreadyLinked,
		BadToken,
	}
}

// Refusal is the error of a cluster that is refused.
type Refusal struct {
	Reason Reason
	// Message is a sentence for the user who joins.
	Message string
}

// Error implements error.
func (r *Refusal) Error() string { return r.Message }

// Refuse returns a Refusal. The other arguments are those of fmt.Sprintf.
func Refuse(reason Reason, format string, args ...any) *Refusal {
	return &Refusal{reason, fmt.Sprintf(format, args...)}
}

// ReasonOf returns the reason of the Refusal that err wraps. It returns false if err
// wraps none.
func ReasonOf(err error) (Reason, bool) {
	r, ok := errors.AsType[*Refusal](err)
	if !ok {
		return "", false
	}
	return r.Reason, true
}

// PublicIdentity is the public half of the identity of a cluster, whose root has been
// verified.
type PublicIdentity struct {
	// Root is the root certificate of the cluster.
	Root *x509.Certificate
	// TrustDomain is the trust domain that Root names.
	TrustDomain string
	// LinkKey is the X25519 public key of the cluster, 32 bytes.
	LinkKey []byte
}

// Spec returns the spec of a Link for the cluster. gateways are the addresses at which
// the cluster was authenticated. The spec must not contain others, because the controller
// dials the addresses in a Link without a check. The addresses that the peer advertises
// later, on the catalog stream, are filtered and probed.
func (p PublicIdentity) Spec(export *v1alpha1.ExportRules, imports *v1alpha1.ImportRules,
	gateways ...string) v1alpha1.LinkSpec {
	return v1alpha1.LinkSpec{
		TrustDomain:   p.TrustDomain,
		Root:          string(rootPEM(p.Root)),
		LinkPublicKey: base64.StdEncoding.EncodeToString(p.LinkKey),
		Gateways:      gateways,
		Export:        export,
		Import:        imports,
	}
}

func rootPEM(root *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw})
}

// RootHash returns the SHA-256 of the root certificate in hex.
func (p PublicIdentity) RootHash() string { return hexHash(identity.RootHash(p.Root)) }

const ownClusterMessage = "the token was created in this very cluster: use it in the other cluster"

func hexHash(hash [32]byte) string { return hex.EncodeToString(hash[:]) }

// check refuses p if no valid Link can be created for it. It returns nil if one can.
func (p PublicIdentity) check(own link.Own) *Refusal {
	if p.TrustDomain == own.TrustDomain {
		return Refuse(OwnCluster, ownClusterMessage)
	}
	if _, err := identity.ParseRootCertificate(rootPEM(p.Root), p.TrustDomain); err != nil {
		return Refuse(BadRequest, "the root of the cluster is invalid: %v", err)
	}
	l := v1alpha1.Link{Spec: p.Spec(nil, nil)}
	l.Name = "candidate"
	if fault := link.Judge(own, []v1alpha1.Link{l}).Faults[l.Name]; fault != nil {
		return Refuse(BadRequest, "no valid Link can be created from the data that the cluster sent: %s",
			fault.Message)
	}
	return nil
}

// matches reports whether l is a Link for exactly this cluster.
func (p PublicIdentity) matches(l *v1alpha1.Link) bool {
	return l.Spec.TrustDomain == p.TrustDomain && rootHashOf(l) == p.RootHash() &&
		l.Spec.LinkPublicKey == base64.StdEncoding.EncodeToString(p.LinkKey)
}

// conflictsWith reports whether l has the trust domain or the key of this cluster. Two
// such Links are both invalid.
func (p PublicIdentity) conflictsWith(l *v1alpha1.Link) bool {
	return l.Spec.TrustDomain == p.TrustDomain ||
		l.Spec.LinkPublicKey == base64.StdEncoding.EncodeToString(p.LinkKey)
}

// rootHashOf returns the hash of the root in a Link in hex, or "" if the Link has no
// valid root.
func rootHashOf(l *v1alpha1.Link) string {
	block, _ := pem.Decode([]byte(strings.TrimSpace(l.Spec.Root)))
	if block == nil {
		return ""
	}
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return ""
	}
	return hexHash(identity.RootHash(root))
}

// ReceivedRefusal returns the refusal that a peer has sent, with a message that is safe
// to print: at most limit bytes of printable characters, so no terminal escape sequences.
// A reason that this version does not know becomes Unknown.
func ReceivedRefusal(reason, message string, limit int) *Refusal {
	r := Reason(reason)
	if !slices.Contains(Reasons(), r) {
		r = Unknown
	}
	message = strings.Map(func(c rune) rune {
		if !unicode.IsPrint(c) {
			return -1
		}
		return c
	}, strings.ToValidUTF8(message, ""))
	if len(message) > limit {
		message = strings.ToValidUTF8(message[:limit], "")
	}
	return &Refusal{r, message}
}
