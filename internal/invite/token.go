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

// MaxToken bounds a token's text.
const MaxToken = 4096

// TokenPrefix begins every token's text.
const TokenPrefix = "causeway-join-1."

const (
	maxGateways = 8
	sumBytes    = 4
	maxAddress  = 262
)

// ErrToken reports text that is no token. Its message tells no part of the text.
var ErrToken = errors.New("this is no join token")

// Secret is what an invite's token proves to hold. It never prints itself.
type Secret struct {
	_   [0]func() // secrets are not compared with ==
	raw [32]byte
}

// NewSecret makes a secret.
func NewSecret() Secret {
	var s Secret
	rand.Read(s.raw[:]) // never fails, see its doc
	return s
}

// ParseSecret reads what Bytes returns.
func ParseSecret(b []byte) (Secret, error) {
	if len(b) != len(Secret{}.raw) {
		return Secret{}, fmt.Errorf("an invite's secret has 32 bytes, not %d", len(b))
	}
	return Secret{raw: [32]byte(b)}, nil
}

// Bytes returns the secret itself.
func (s Secret) Bytes() []byte { return bytes.Clone(s.raw[:]) }

// Format writes a placeholder, whatever the verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "Secret(hidden)") }

// Token is what a person carries from the inviter to the joiner.
type Token struct {
	// Root is the hash of the inviter's root.
	Root   [32]byte
	Secret Secret
	// Expires is by the inviter's clock, in whole seconds.
	Expires time.Time
	// Peer is the name that the joiner is invited under, and of the Invite.
	Peer string
	// Inviter is the inviter's own name: how the joiner may call it.
	Inviter string
	// Gateways are the inviter's, host:port, 1 to 8.
	Gateways []string
}

var name = regexp.MustCompile(`^[a-z]([-a-z0-9]{0,30}[a-z0-9])?$`)

// String returns the token's text: whoever has it can join. It is called so that no %v of a Token
// writes it by accident.
func (t Token) String() string { return "Token(hidden)" }

// Text returns the token as it is carried. An error says which field does not fit.
func (t Token) Text() (string, error) {
	if err := t.check(); err != nil {
		return "", err
	}
	b := append([]byte{}, t.Root[:]...)
	b = append(b, t.Secret.raw[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(t.Expires.Unix()))
	b = text(text(b, t.Peer), t.Inviter)
	b = append(b, byte(len(t.Gateways)))
	for _, g := range t.Gateways {
		b = text(b, g)
	}
	sum := sha256.Sum256(b)
	return TokenPrefix + base64.RawURLEncoding.EncodeToString(append(b, sum[:sumBytes]...)), nil
}

func text(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
}

func (t Token) check() error {
	switch {
	case !name.MatchString(t.Peer):
		return fmt.Errorf("%q cannot be the name of a Link", t.Peer)
	case !name.MatchString(t.Inviter):
		return fmt.Errorf("%q cannot be the name of a cluster", t.Inviter)
	case t.Expires.Unix() <= 0 || t.Expires.Unix() > math.MaxInt32*4:
		return errors.New("its end is no time")
	case len(t.Gateways) == 0 || len(t.Gateways) > maxGateways:
		return fmt.Errorf("it names %d gateway addresses, and 1 to %d are wanted", len(t.Gateways), maxGateways)
	}
	for _, g := range t.Gateways {
		if err := link.CheckAddress(g); len(g) > maxAddress || err != nil {
			return errors.New("one of its gateway addresses is no host:port")
		}
	}
	return nil
}

// ParseToken reads a token's text, in which white space does not matter. Its
// errors wrap ErrToken and tell nothing of the text.
func ParseToken(s string) (Token, error) {
	if len(s) > 2*MaxToken {
		return Token{}, fmt.Errorf("%w: it is too long", ErrToken)
	}
	s = strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return -1
		}
		return r
	}, s)
	rest, ok := strings.CutPrefix(s, TokenPrefix)
	if !ok || len(s) > MaxToken {
		return Token{}, fmt.Errorf("%w: one begins with %s", ErrToken, TokenPrefix)
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(rest)
	if err != nil || len(b) < sumBytes {
		return Token{}, fmt.Errorf("%w: it is damaged; copy the whole of it", ErrToken)
	}
	b, sum := b[:len(b)-sumBytes], b[len(b)-sumBytes:]
	if want := sha256.Sum256(b); !bytes.Equal(sum, want[:sumBytes]) {
		return Token{}, fmt.Errorf("%w: it is damaged; copy the whole of it", ErrToken)
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
		return Token{}, errors.New("its fields do not fit its length")
	}
	return t, t.check()
}

// reader takes bytes off b. Where there are too few it gives zeros, and remembers.
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

// Check says why a token is of no use in a cluster; nil: it may be. as is the name
// that the cluster answers to, name the Link that it would make, root its own root's hash.
func (t Token) Check(as, name string, root [32]byte, links []v1alpha1.Link, now time.Time) *Refusal {
	switch {
	case t.Root == root:
		return Refuse(OwnCluster, "the token was made in this very cluster: use it in the cluster that is to be linked with it")
	case t.Peer != as:
		return Refuse(WrongName, "the token is for cluster %s, and this is cluster %s", t.Peer, as)
	case !now.Before(t.Expires.Add(Tail)):
		return Refuse(Expired, "the token ran out at %s: ask for a new one", t.Expires.UTC().Format("2006-01-02 15:04:05 MST"))
	}
	for i := range links {
		l := &links[i]
		same := rootHashOf(l) == hexHash(t.Root)
		switch {
		case l.Name == name && l.DeletionTimestamp != nil:
			return Refuse(NameTaken, "Link %s is being deleted: try again in a moment", name)
		case l.Name == name && !same:
			return Refuse(NameTaken, "Link %s is for another cluster, of trust domain %s: choose another name for the inviter", name, l.Spec.TrustDomain)
		case l.Name != name && same:
			return Refuse(AlreadyKnown, "the inviter is linked already, by Link %s", l.Name)
		}
	}
	return nil
}

// Linked reports whether one of links is the Link of that name for the inviter.
func (t Token) Linked(name string, links []v1alpha1.Link) bool {
	for i := range links {
		if l := &links[i]; l.Name == name && l.DeletionTimestamp == nil && rootHashOf(l) == hexHash(t.Root) {
			return true
		}
	}
	return false
}

// Fits says what is wrong with what the inviter says of itself; nil: nothing. name is
// the Link that would be made of it, links are all there are.
func (t Token) Fits(h Half, own link.Own, name string, links []v1alpha1.Link) *Refusal {
	if identity.RootHash(h.Root) != t.Root {
		return Refuse(BadRequest, "the inviter's root is not the one that the token names")
	}
	if r := h.check(own); r != nil {
		return r
	}
	for i := range links {
		if l := &links[i]; l.Name != name && h.claimedBy(l) {
			return Refuse(AlreadyKnown, "Link %s, of trust domain %s, is for the cluster that the inviter says it is: if it is, made anew, unlink that one "+
				"and join again with the same token; if not, do not trust it", l.Name, l.Spec.TrustDomain)
		}
	}
	return nil
}

// IsName reports whether s can be the name of an Invite, and of a Link.
func IsName(s string) bool { return name.MatchString(s) }
