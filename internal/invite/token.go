package invite

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"strings"
	"time"
	"unicode"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/link"
)

// MaxToken is the longest text of a token, in bytes.
const MaxToken = 4096

// TokenPrefix is the start of the text of every token.
const TokenPrefix = "causeway-join-1."

const (
	maxGateways = 8
	sumBytes    = 4
	maxAddress  = 262
)

// ErrToken reports text that is not a token. Messages never contain parts of the text.
var ErrToken = errors.New("not a join token")

// Secret is the secret of an Invite. The joiner proves that it holds it. All fmt verbs
// print a placeholder instead of the secret.
type Secret struct {
	_   [0]func() // prevents comparison with ==, which is not constant-time
	raw [32]byte
}

// NewSecret generates a secret.
func NewSecret() Secret {
	var s Secret
	rand.Read(s.raw[:]) // never returns an error
	return s
}

// ParseSecret parses the result of Bytes.
func ParseSecret(b []byte) (Secret, error) {
	if len(b) != len(Secret{}.raw) {
		return Secret{}, fmt.Errorf("parse invite secret: want 32 bytes, got %d", len(b))
	}
	return Secret{raw: [32]byte(b)}, nil
}

// Bytes returns a copy of the secret.
func (s Secret) Bytes() []byte { return bytes.Clone(s.raw[:]) }

// Format implements fmt.Formatter. It writes a placeholder for every verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "Secret(hidden)") }

// Token is the content of the text that a user copies from the inviter to the joiner.
type Token struct {
	// Root is the SHA-256 of the inviter's root certificate.
	Root   [32]byte
	Secret Secret
	// Expires is the expiry by the inviter's clock, in whole seconds.
	Expires time.Time
	// Peer is the name of the Invite, which is the inviter's name for the joiner.
	Peer string
	// Inviter is the name that the inviter suggests for itself.
	Inviter string
	// Gateways lists 1 to 8 gateway addresses of the inviter, as host:port.
	Gateways []string
}

var name = regexp.MustCompile(`^[a-z]([-a-z0-9]{0,30}[a-z0-9])?$`)

// String implements fmt.Stringer. It returns a placeholder, so that no log contains the
// token by accident. Text returns the token.
func (t Token) String() string { return "Token(hidden)" }

// Text returns the text of the token, which gives its holder the right to join. It
// returns an error if a field is invalid.
func (t Token) Text() (string, error) {
	if err := t.check(); err != nil {
		return "", err
	}
	b := append([]byte{}, t.Root[:]...)
	b = append(b, t.Secret.raw[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(t.Expires.Unix()))
	b = appendText(appendText(b, t.Peer), t.Inviter)
	b = append(b, byte(len(t.Gateways)))
	for _, g := range t.Gateways {
		b = appendText(b, g)
	}
	sum := sha256.Sum256(b)
	return TokenPrefix + base64.RawURLEncoding.EncodeToString(append(b, sum[:sumBytes]...)), nil
}

// appendText appends the length of s and s.
func appendText(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
}

func (t Token) check() error {
	switch {
	case !name.MatchString(t.Peer):
		return fmt.Errorf("%q cannot be the name of a Link", t.Peer)
	case !name.MatchString(t.Inviter):
		return fmt.Errorf("%q cannot be the name of a cluster", t.Inviter)
	case t.Expires.Unix() <= 0 || t.Expires.Unix() > math.MaxInt32*4:
		return errors.New("the expiry is out of range")
	case len(t.Gateways) == 0 || len(t.Gateways) > maxGateways:
		return fmt.Errorf("it has %d gateway addresses, want 1 to %d", len(t.Gateways), maxGateways)
	}
	for _, g := range t.Gateways {
		if err := link.CheckAddress(g); len(g) > maxAddress || err != nil {
			return errors.New("a gateway address is not a host:port")
		}
	}
	return nil
}

// ParseToken parses the text of a token. It ignores white space, because terminals and
// chats break lines. Its errors wrap ErrToken and contain no part of the text.
func ParseToken(s string) (Token, error) {
	if len(s) > 2*MaxToken {
		return Token{}, fmt.Errorf("%w: text is too long", ErrToken)
	}
	s = strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return -1
		}
		return r
	}, s)
	rest, ok := strings.CutPrefix(s, TokenPrefix)
	if !ok || len(s) > MaxToken {
		return Token{}, fmt.Errorf("%w: a token starts with %s", ErrToken, TokenPrefix)
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(rest)
	if err != nil || len(b) < sumBytes {
		return Token{}, fmt.Errorf("%w: text is damaged, copy all of it", ErrToken)
	}
	b, sum := b[:len(b)-sumBytes], b[len(b)-sumBytes:]
	if want := sha256.Sum256(b); !bytes.Equal(sum, want[:sumBytes]) {
		return Token{}, fmt.Errorf("%w: text is damaged, copy all of it", ErrToken)
	}
	t, err := parseFields(b)
	if err != nil {
		return Token{}, fmt.Errorf("%w: %w", ErrToken, err)
	}
	return t, nil
}

func parseFields(b []byte) (Token, error) {
	r := reader{b: b}
	t := Token{Root: [32]byte(r.take(32)), Secret: Secret{raw: [32]byte(r.take(32))}}
	t.Expires = time.Unix(int64(binary.BigEndian.Uint64(r.take(8))), 0).UTC()
	t.Peer, t.Inviter = r.text(), r.text()
	for range r.take(1)[0] {
		t.Gateways = append(t.Gateways, r.text())
	}
	if r.short || len(r.b) > 0 {
		return Token{}, errors.New("the fields do not match the length")
	}
	return t, t.check()
}

// reader consumes b. If b has too few bytes, it returns zeros and sets short.
type reader struct {
	b     []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if len(r.b) < n {
		r.b, r.short = nil, true
		return make([]byte, n)
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) text() string {
	n := int(binary.BigEndian.Uint16(r.take(2)))
	if n > maxAddress || r.short {
		r.b, r.short = nil, true
		return ""
	}
	return string(r.take(n))
}

// Check refuses a token that this cluster cannot use. It returns nil if it can. as is the
// name of this cluster at the inviter, name is the name of the Link to be created, and
// root is the hash of this cluster's root. links must contain all Links of the cluster.
func (t Token) Check(as, name string, root [32]byte, links []v1alpha1.Link, now time.Time) *Refusal {
	switch {
	case t.Root == root:
		return Refuse(OwnCluster, ownClusterMessage)
	case t.Peer != as:
		return Refuse(WrongName, "the token is for cluster %s, and this is cluster %s", t.Peer, as)
	case !now.Before(t.Expires.Add(GracePeriod)):
		return Refuse(Expired, "the token expired at %s: ask for a new one", timestamp(t.Expires))
	}
	for i := range links {
		l := &links[i]
		same := rootHashOf(l) == hexHash(t.Root)
		switch {
		case l.Name == name && l.DeletionTimestamp != nil:
			return Refuse(NameTaken, "Link %s is being deleted: try again later", name)
		case l.Name == name && !same:
			return Refuse(NameTaken, "Link %s is for another cluster, with trust domain %s: "+
				"choose another name for the inviter", name, l.Spec.TrustDomain)
		case l.Name != name && same:
			return Refuse(AlreadyLinked, "the inviter is already linked, by Link %s", l.Name)
		}
	}
	return nil
}

// Linked reports whether links contains the Link with this name for the inviter.
func (t Token) Linked(name string, links []v1alpha1.Link) bool {
	for i := range links {
		if l := &links[i]; l.Name == name && l.DeletionTimestamp == nil && rootHashOf(l) == hexHash(t.Root) {
			return true
		}
	}
	return false
}

// CheckInviter refuses the inviter if no valid Link can be created for it. It returns nil
// if one can. name is the name of the Link. links must contain all Links of the cluster.
func (t Token) CheckInviter(p PublicIdentity, own link.Own, name string, links []v1alpha1.Link) *Refusal {
	if identity.RootHash(p.Root) != t.Root {
		return Refuse(BadRequest, "the inviter's root is not the root in the token")
	}
	if r := p.check(own); r != nil {
		return r
	}
	for i := range links {
		if l := &links[i]; l.Name != name && p.conflictsWith(l) {
			return Refuse(AlreadyLinked,
				"Link %s, with trust domain %s, is for the cluster that the inviter claims to be: "+
					"if the inviter is that cluster, reinstalled, unlink that one and join again with "+
					"the same token; otherwise do not trust the inviter", l.Name, l.Spec.TrustDomain)
		}
	}
	return nil
}

// IsName reports whether s is a valid name of an Invite, a Join and a Link.
func IsName(s string) bool { return name.MatchString(s) }
