package route

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"
)

// Suffix ends every sealed label. It is the same in all installs, so it identifies
// none.
const Suffix = ".causeway.internal"

// Window is how far a label's minute may lie from the opener's clock.
const Window = 15 * time.Minute

var (
	// ErrNotALabel reports an SNI that has not the form of a label.
	ErrNotALabel = errors.New("not a label")
	// ErrUnknownKey reports a label that none of the day keys held opens.
	ErrUnknownKey = errors.New("no day key opens the label")
	// ErrStale reports a label whose minute lies too far from now. The error is a
	// *StaleError.
	ErrStale = errors.New("stale")
	// ErrUnknownHint reports an authentic label whose hint this version does not know.
	ErrUnknownHint = errors.New("unknown hint")
	// ErrNoDayKey reports that no day key for the day in question is held.
	ErrNoDayKey = errors.New("no day key for this day")
)

// StaleError says by how much something was too old, or if By is negative from the
// future. It is ErrStale.
type StaleError struct {
	What string
	By   time.Duration
}

// Error says what was stale and by how much.
func (e *StaleError) Error() string {
	if e.By < 0 {
		return fmt.Sprintf("%s is from %v in the future: compare the two clocks", e.What, -e.By)
	}
	return fmt.Sprintf("%s is %v old: compare the two clocks", e.What, e.By)
}

// Is reports whether target is ErrStale.
func (e *StaleError) Is(target error) bool { return target == ErrStale }

// DayKey is the secret of one direction of one link for one UTC day. It never prints.
type DayKey [32]byte

// String hides the key.
func (DayKey) String() string { return "DayKey(hidden)" }

// GoString hides the key.
func (k DayKey) GoString() string { return k.String() }

// LogValue hides the key.
func (k DayKey) LogValue() slog.Value { return slog.StringValue(k.String()) }

// DatedKey is a day key and its day.
type DatedKey struct {
	// Day is Unix time / 86400.
	Day uint32
	Key DayKey
}

// LinkKey is a day key by which a link's peer seals labels to us.
type LinkKey struct {
	Link string
	DatedKey
}

// HintKind is the kind of a Hint's argument. The list is closed.
type HintKind uint8

// The kinds of hints.
const (
	// HintAny is for any ready endpoint.
	HintAny HintKind = iota
	// HintEndpoint is for the endpoint with an id, or else any.
	HintEndpoint
	// HintHost is for the pod with a hostname and for no other.
	HintHost
	// WishOpen is HintEndpoint, also if the endpoint takes no new connections but the
	// link has one open with it by way of the same gateway.
	WishOpen
)

// Hint says which endpoint a label asks for. The zero value is for any.
type Hint struct {
	Kind HintKind
	// Arg is the endpoint's id or the hostname's hash; zero for any.
	Arg [8]byte
}

// AnyEndpoint asks for any ready endpoint.
func AnyEndpoint() Hint { return Hint{} }

// ForEndpoint is the hint for the endpoint with an id, or else any.
func ForEndpoint(id EndpointID) Hint { return Hint{HintEndpoint, id} }

// ForOpen is the hint for the endpoint with an id, with which a connection is open, or
// else any.
func ForOpen(id EndpointID) Hint { return Hint{WishOpen, id} }

// ForHost is the hint for the pod with a hostname.
func ForHost(hostname string) Hint { return Hint{HintHost, HostHash(hostname)} }

// HostHash is the first 8 bytes of the SHA-256 of the lower-case hostname.
func HostHash(hostname string) [8]byte {
	sum := sha256.Sum256([]byte(strings.ToLower(hostname)))
	return [8]byte(sum[:8])
}

// valid reports whether the hint is of a known kind and, if for any, without argument.
func (h Hint) valid() bool {
	return h.Kind <= WishOpen && (h.Kind != HintAny || h.Arg == [8]byte{})
}

// matches reports whether the endpoint is the one hinted.
func (h Hint) matches(e Endpoint) bool {
	switch h.Kind {
	case HintEndpoint, WishOpen:
		return e.ID == h.Arg
	case HintHost:
		return e.Host != [8]byte{} && e.Host == h.Arg
	}
	return false
}

// Label is what a sealed label says.
type Label struct {
	Route uint32
	// Minute is Unix time / 60.
	Minute uint32
	Hint   Hint
}

// Day returns the UTC day of t as day keys count it.
func Day(t time.Time) uint32 { return uint32(t.Unix() / (24 * 60 * 60)) }

func minuteOf(t time.Time) uint32 { return uint32(t.Unix() / 60) }

func (l Label) day() uint32     { return l.Minute / (24 * 60) }
func (l Label) time() time.Time { return time.Unix(int64(l.Minute)*60, 0) }

const (
	keyHintLen = 3
	nonceLen   = 12
	plainLen   = 4 + 4 + 1 + 8
	tagLen     = 16
	sealedLen  = keyHintLen + nonceLen + plainLen + tagLen
	// The 77 characters are cut in two, as a DNS label holds 63.
	firstLen  = 39
	secondLen = 38
)

var labelEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// labelCipher is the cipher of a day key.
type labelCipher struct {
	keyHint [keyHintLen]byte
	aad     []byte
	aead    cipher.AEAD
}

func newLabelCipher(k DayKey) labelCipher {
	var s labelCipher
	copy(s.keyHint[:], expand(k, "causeway label/1 hint", keyHintLen))
	s.aad = append([]byte("causeway label/1"), s.keyHint[:]...)
	block, err := aes.NewCipher(expand(k, "causeway label/1 key", 32))
	if err == nil {
		s.aead, err = cipher.NewGCM(block)
	}
	if err != nil {
		panic(fmt.Sprintf("route: AES-256-GCM with fixed lengths: %v", err))
	}
	return s
}

// expand derives n bytes from a day key by HKDF-SHA-256 (RFC 5869) without salt.
func expand(k DayKey, info string, n int) []byte {
	b, err := hkdf.Key(sha256.New, k[:], nil, info, n)
	if err != nil {
		panic(fmt.Sprintf("route: HKDF with fixed lengths: %v", err))
	}
	return b
}

func (s labelCipher) seal(l Label, nonce [nonceLen]byte) string {
	var plain [plainLen]byte
	binary.BigEndian.PutUint32(plain[0:], l.Route)
	binary.BigEndian.PutUint32(plain[4:], l.Minute)
	plain[8] = byte(l.Hint.Kind)
	copy(plain[9:], l.Hint.Arg[:])

	sealed := make([]byte, 0, sealedLen)
	sealed = append(sealed, s.keyHint[:]...)
	sealed = append(sealed, nonce[:]...)
	sealed = s.aead.Seal(sealed, nonce[:], plain[:], s.aad)
	text := labelEncoding.EncodeToString(sealed)
	return text[:firstLen] + "." + text[firstLen:] + Suffix
}

// open decrypts a sealed label whose hint is s's. It reports false if the key is not s's.
func (s labelCipher) open(sealed []byte) (Label, bool) {
	plain, err := s.aead.Open(nil, sealed[keyHintLen:keyHintLen+nonceLen], sealed[keyHintLen+nonceLen:], s.aad)
	if err != nil || len(plain) != plainLen {
		return Label{}, false
	}
	return Label{
		Route:  binary.BigEndian.Uint32(plain[0:]),
		Minute: binary.BigEndian.Uint32(plain[4:]),
		Hint:   Hint{HintKind(plain[8]), [8]byte(plain[9:])},
	}, true
}

// Sealer seals labels to one peer. The zero value has no key.
type Sealer struct {
	days map[uint32]labelCipher
}

// NewSealer returns a sealer with the day keys of one link in its outbound direction.
// Of two keys for one day the later in the list holds.
func NewSealer(keys ...DatedKey) *Sealer {
	s := &Sealer{days: make(map[uint32]labelCipher, len(keys))}
	for _, k := range keys {
		s.days[k.Day] = newLabelCipher(k.Key)
	}
	return s
}

// Seal returns a fresh SNI for a route, never the same twice. The error wraps
// ErrNoDayKey when the day of now has no key.
func (s *Sealer) Seal(id uint32, h Hint, now time.Time) (string, error) {
	var nonce [nonceLen]byte
	rand.Read(nonce[:]) // never fails, see its doc
	return s.seal(Label{id, minuteOf(now), h}, nonce)
}

func (s *Sealer) seal(l Label, nonce [nonceLen]byte) (string, error) {
	k, ok := s.days[l.day()]
	if !ok {
		return "", fmt.Errorf("seal a label for %s: %w: wait for the controller to send newer keys",
			l.time().UTC().Format(time.DateOnly), ErrNoDayKey)
	}
	return k.seal(l, nonce), nil
}

// Keyring opens labels of all linked peers. The zero value opens none.
type Keyring struct {
	byHint map[[keyHintLen]byte][]ringKey
	// sealings has what was derived from each day key.
	sealings map[DayKey]labelCipher
}

type ringKey struct {
	link string
	day  uint32
	// until is the end of an invite's key; zero: it is a day key.
	until time.Time
	labelCipher
}

// NewKeyring returns a keyring of inbound day keys.
func NewKeyring(keys ...LinkKey) *Keyring { return new(Keyring).Renewed(keys...) }

// Renewed returns a keyring of these inbound day keys and no others. It derives nothing
// again from a day key that r has, which is most of the work.
func (r *Keyring) Renewed(keys ...LinkKey) *Keyring {
	next := &Keyring{
		byHint:   make(map[[keyHintLen]byte][]ringKey, len(keys)),
		sealings: make(map[DayKey]labelCipher, len(keys)),
	}
	for _, k := range keys {
		s, ok := r.sealings[k.Key]
		if !ok {
			s = newLabelCipher(k.Key)
		}
		next.sealings[k.Key] = s
		next.byHint[s.keyHint] = append(next.byHint[s.keyHint], ringKey{link: k.Link, day: k.Day, labelCipher: s})
	}
	return next
}

// Open returns the link that sealed an SNI and what the label says. A label must be of
// the day of its key, and its minute within Window of now; but with route Catalog any
// minute of that day will do.
//
// Errors wrap ErrNotALabel, ErrUnknownKey, ErrStale or ErrUnknownHint. With the latter
// two the link is returned too, because a holder of its key has made the label.
func (r *Keyring) Open(sni string, now time.Time) (string, Label, error) {
	sealed, err := decodeLabel(sni)
	if err != nil {
		return "", Label{}, err
	}
	for _, k := range r.byHint[[keyHintLen]byte(sealed)] {
		l, ok := k.open(sealed)
		if !ok {
			continue
		}
		return k.link, l, k.check(l, now)
	}
	return "", Label{}, ErrUnknownKey
}

// check returns what is wrong with an authentic label at the time now.
func (k ringKey) check(l Label, now time.Time) error {
	old := time.Duration(int64(minuteOf(now))-int64(l.Minute)) * time.Minute
	if !k.until.IsZero() {
		return k.checkInvite(l, now)
	}
	switch {
	case l.day() != k.day:
		return &StaleError{"label (its minute is not of its key's day)", old}
	case l.Route != Catalog && old.Abs() > Window:
		return &StaleError{"label", old}
	case !l.Hint.valid():
		return fmt.Errorf("hint of kind %d: %w", l.Hint.Kind, ErrUnknownHint)
	}
	return nil
}

// decodeLabel returns the bytes of an SNI in canonical form, in any case of letters.
func decodeLabel(sni string) ([]byte, error) {
	if len(sni) != firstLen+1+secondLen+len(Suffix) || sni[firstLen] != '.' {
		return nil, ErrNotALabel
	}
	text, suffix := []byte(sni[:firstLen]+sni[firstLen+1:firstLen+1+secondLen]), sni[firstLen+1+secondLen:]
	if !equalFoldASCII(suffix, Suffix) {
		return nil, ErrNotALabel
	}
	for i, c := range text {
		if 'A' <= c && c <= 'Z' {
			text[i] = c + ('a' - 'A')
		}
	}
	sealed := make([]byte, sealedLen)
	if n, err := labelEncoding.Decode(sealed, text); err != nil || n != sealedLen {
		return nil, ErrNotALabel
	}
	// The decoder skips line breaks and ignores the spare bit at the end: only what we
	// would write is a label.
	if !bytes.Equal(labelEncoding.AppendEncode(nil, sealed), text) {
		return nil, ErrNotALabel
	}
	return sealed, nil
}

// equalFoldASCII is strings.EqualFold without Unicode's folding of other letters onto
// ASCII ones.
func equalFoldASCII(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		if a[i] >= 0x80 {
			return false
		}
	}
	return strings.EqualFold(a, b)
}
