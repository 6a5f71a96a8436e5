// Package invite decides how two clusters that have never met make a Link, once, by
// a token that a person carries.
//
//	inviter: Invite ─ Secret ─▶ Token ─ a person ─▶ joiner: Join ─ Secret ─▶ Check
//	joiner: Request ─ Secret.Request ─▶ (TLS pinned to the inviter's root) ─▶ inviter: Decide ─▶ Answer ─ Secret.Answer ─▶ joiner: a Link
//
// What always holds:
//   - What is exchanged is public; nothing that lasts is derived from the token.
//   - An Invite belongs to the first cluster that uses it, by its root's hash, from the
//     compare-and-swap on; the same cluster may try again, no other ever can.
//   - Decide asks no clock and no cluster: it names the next single step, so that a
//     crash between two steps is a retry of the second.
//   - A Link that was made and unlinked is not made again by its old Invite.
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

// Lifetime is the longest that a token is good for.
const Lifetime = 15 * time.Minute

// Tail is for how long after its end a token still leads to a controller, which
// can say that it has ended; and an hour later nothing of it is kept.
const (
	Tail = 15 * time.Minute
	kept = time.Hour
)

// SecretName is the Secret beside an Invite, JoinSecretName the one beside a Join.
// Each has one key, SecretKey.
func SecretName(invite string) string { return "causeway-invite-" + invite }

// JoinSecretName is the Secret beside a Join.
func JoinSecretName(join string) string { return "causeway-join-" + join }

// SecretKey is the key of an Invite's Secret, TokenKey of a Join's.
const (
	SecretKey = "secret"
	TokenKey  = "token"
)

// Expires is when an Invite ends, by the clock of its API server.
func Expires(inv *v1alpha1.Invite) time.Time {
	return inv.CreationTimestamp.Add(time.Duration(inv.Spec.ValidSeconds) * time.Second)
}

// Open reports until when an Invite is worth a route; false: it is not any more.
func Open(inv *v1alpha1.Invite, now time.Time) (until time.Time, open bool) {
	until = Expires(inv).Add(Tail)
	return until, inv.DeletionTimestamp == nil && now.Before(until)
}

// Over reports whether nobody needs to see an Invite or Join any more, of which a
// token ended then.
func Over(expires, now time.Time) bool { return now.After(expires.Add(Tail + kept)) }

// Reason is why a cluster is refused: a word from a closed list.
type Reason string

// The reasons.
const (
	Unknown      Reason = "Unknown"       // there is no such Invite, or not any more
	BadProof     Reason = "BadProof"      // the secret is not the Invite's
	BadRequest   Reason = "BadRequest"    // its material does not hold together
	WrongName    Reason = "WrongName"     // it was invited under another name
	Used         Reason = "Used"          // the Invite belongs to another cluster, or was used up
	Expired      Reason = "Expired"       // its time ran out
	OwnCluster   Reason = "OwnCluster"    // the joiner is the inviter
	NameTaken    Reason = "NameTaken"     // a Link for another cluster has the name
	AlreadyKnown Reason = "AlreadyLinked" // another Link is for the cluster
	BadToken     Reason = "BadToken"      // the token cannot be read
)

// Reasons returns every reason, to be counted from zero.
func Reasons() []Reason {
	return []Reason{Unknown, BadProof, BadRequest, WrongName, Used, Expired, OwnCluster, NameTaken, AlreadyKnown, BadToken}
}

// Refusal is a sentence to whoever joins, and why.
type Refusal struct {
	Reason  Reason
	Message string
}

func (r *Refusal) Error() string { return r.Message }

// Refuse makes a Refusal.
func Refuse(reason Reason, format string, args ...any) *Refusal {
	return &Refusal{reason, fmt.Sprintf(format, args...)}
}

// ReasonOf returns the reason of a refusal that err wraps; false: it is none.
func ReasonOf(err error) (Reason, bool) {
	r, ok := errors.AsType[*Refusal](err)
	if !ok {
		return "", false
	}
	return r.Reason, true
}

// Half is what a cluster tells of itself: public, and proven.
type Half struct {
	// Root is the cluster's root, which names its trust domain.
	Root *x509.Certificate
	// TrustDomain is the one of Root.
	TrustDomain string
	// LinkKey is the X25519 public key, 32 bytes.
	LinkKey []byte
}

// Spec is the Link's by which a cluster knows the one that h is of. It names the
// gateways at which that one was met, and no others: what a Link names is dialled as
// it stands, and so must not be a stranger's word. What either says of its own
// gateways later, on the catalog stream, is filtered and probed.
func (h Half) Spec(export *v1alpha1.ExportRules, imports *v1alpha1.ImportRules, met ...string) v1alpha1.LinkSpec {
	return v1alpha1.LinkSpec{
		TrustDomain: h.TrustDomain, Root: string(rootPEM(h.Root)), LinkPublicKey: base64.StdEncoding.EncodeToString(h.LinkKey),
		Gateways: met, Export: export, Import: imports,
	}
}

func rootPEM(root *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw})
}

// RootHash is the hash of h's root in hex.
func (h Half) RootHash() string { return hexHash(identity.RootHash(h.Root)) }

func hexHash(hash [32]byte) string { return hex.EncodeToString(hash[:]) }

// check says what is wrong with h; nil: nothing.
func (h Half) check(own link.Own) *Refusal {
	if h.TrustDomain == own.TrustDomain {
		return Refuse(OwnCluster, "the token was made in this very cluster: use it in the cluster that is to be linked with it")
	}
	if _, err := identity.ParseRootCertificate(rootPEM(h.Root), h.TrustDomain); err != nil {
		return Refuse(BadRequest, "the cluster's root does not fit: %v", err)
	}
	l := v1alpha1.Link{Spec: h.Spec(nil, nil)}
	l.Name = "it"
	if fault := link.Judge(own, []v1alpha1.Link{l}).Faults[l.Name]; fault != nil {
		return Refuse(BadRequest, "the data that the cluster sent does not make a valid Link: %s", fault.Message)
	}
	return nil
}

// is reports whether l is the Link for the cluster that h is of.
func (h Half) is(l *v1alpha1.Link) bool {
	return l.Spec.TrustDomain == h.TrustDomain && rootHashOf(l) == h.RootHash() &&
		l.Spec.LinkPublicKey == base64.StdEncoding.EncodeToString(h.LinkKey)
}

// claimedBy reports whether l is for the cluster that h is of, by its trust domain or
// its key. Two Links that claim one cluster are none.
func (h Half) claimedBy(l *v1alpha1.Link) bool {
	return l.Spec.TrustDomain == h.TrustDomain || l.Spec.LinkPublicKey == base64.StdEncoding.EncodeToString(h.LinkKey)
}

// rootHashOf is the hash of the root in a Link, in hex; "" if it holds none.
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

// Heard is a refusal as the inviter words it, made fit to be shown: bounded, and
// without what could move a terminal's cursor. A reason that is not known stays so.
func Heard(reason, message string, most int) *Refusal {
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
	if len(message) > most {
		message = strings.ToValidUTF8(message[:most], "")
	}
	return &Refusal{r, message}
}
