package route

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden vectors")

// noon is in the middle of a day, so that windows do not cross midnight.
var noon = time.Date(2026, 3, 4, 12, 0, 30, 0, time.UTC)

func key(b byte) DayKey { return DayKey(bytes.Repeat([]byte{b}, 32)) }

func ringOf(keys ...LinkKey) *Keyring { return NewKeyring(keys...) }

func dated(link string, t time.Time, k DayKey) LinkKey { return LinkKey{link, DatedKey{Day(t), k}} }

func TestOpen(t *testing.T) {
	const svc = FirstService + 7
	at := func(id uint32, made time.Time, w Hint) string {
		sni, err := NewSealer(DatedKey{Day(made), key(1)}).Seal(id, w, made)
		if err != nil {
			t.Fatal(err)
		}
		return sni
	}
	good := at(svc, noon, Hint{})
	east := dated("east", noon, key(1))
	cases := map[string]struct {
		why   string
		sni   string
		ring  *Keyring
		now   time.Time
		link  string
		label Label
		err   error
	}{
		"fresh":             {"the ordinary case", good, ringOf(east), noon, "east", Label{svc, minuteOf(noon), Hint{}}, nil},
		"upper case":        {"resolvers and middle boxes may change the case of names", strings.ToUpper(good), ringOf(east), noon, "east", Label{svc, minuteOf(noon), Hint{}}, nil},
		"endpoint":          {"wishes travel", at(svc, noon, ForEndpoint(EndpointID{1, 2})), ringOf(east), noon, "east", Label{svc, minuteOf(noon), Hint{HintEndpoint, [8]byte{1, 2}}}, nil},
		"hostname":          {"wishes travel", at(svc, noon, ForHost("DB-0")), ringOf(east), noon, "east", Label{svc, minuteOf(noon), Hint{HintHost, HostHash("db-0")}}, nil},
		"15 minutes old":    {"the edge is inside", good, ringOf(east), noon.Add(15 * time.Minute), "east", Label{svc, minuteOf(noon), Hint{}}, nil},
		"15 minutes early":  {"the edge is inside", good, ringOf(east), noon.Add(-15 * time.Minute), "east", Label{svc, minuteOf(noon), Hint{}}, nil},
		"16 minutes old":    {"a copied label must die", good, ringOf(east), noon.Add(16 * time.Minute), "east", Label{svc, minuteOf(noon), Hint{}}, ErrStale},
		"16 minutes early":  {"a label made ahead must not work yet", good, ringOf(east), noon.Add(-16 * time.Minute), "east", Label{svc, minuteOf(noon), Hint{}}, ErrStale},
		"catalog, 9 h old":  {"the catalog is where a wrong clock is found out", at(Catalog, noon, Hint{}), ringOf(east), noon.Add(9 * time.Hour), "east", Label{Catalog, minuteOf(noon), Hint{}}, nil},
		"join, 1 h old":     {"only the catalog is forgiving", at(Join, noon, Hint{}), ringOf(east), noon.Add(time.Hour), "east", Label{Join, minuteOf(noon), Hint{}}, ErrStale},
		"another's key":     {"an unlinked peer dies here", good, ringOf(dated("west", noon, key(2))), noon, "", Label{}, ErrUnknownKey},
		"no keys":           {"before the first snapshot all is refused", good, &Keyring{}, noon, "", Label{}, ErrUnknownKey},
		"key of tomorrow":   {"a stolen key dies with its day", good, ringOf(LinkKey{"east", DatedKey{Day(noon) + 1, key(1)}}), noon, "east", Label{svc, minuteOf(noon), Hint{}}, ErrStale},
		"unknown hint":      {"the label of a newer peer is not that of a stranger", at(svc, noon, Hint{Kind: 4}), ringOf(east), noon, "east", Label{svc, minuteOf(noon), Hint{Kind: 4}}, ErrUnknownHint},
		"any with argument": {"one meaning, one form", at(svc, noon, Hint{Arg: [8]byte{1}}), ringOf(east), noon, "east", Label{svc, minuteOf(noon), Hint{Arg: [8]byte{1}}}, ErrUnknownHint},
		"empty":             {"no SNI", "", ringOf(east), noon, "", Label{}, ErrNotALabel},
		"plain name":        {"a stranger's SNI", "www.example.com", ringOf(east), noon, "", Label{}, ErrNotALabel},
		"other suffix":      {"the suffix is part of the form", strings.Replace(good, "causeway", "causewaz", 1), ringOf(east), noon, "", Label{}, ErrNotALabel},
		"folded suffix":     {"Kelvin's sign folds onto k, and 'ſ' onto s", strings.Replace(good, "causeway.i", "cau\u017feway.", 1), ringOf(east), noon, "", Label{}, ErrNotALabel},
		"spare bit set":     {"one label, one text", good[:firstLen+secondLen] + string(good[firstLen+secondLen]+1) + Suffix, ringOf(east), noon, "", Label{}, ErrNotALabel},
		"line break":        {"the decoder would skip it", "\n" + good[1:], ringOf(east), noon, "", Label{}, ErrNotALabel},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			link, label, err := c.ring.Open(c.sni, c.now)
			if !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
				t.Fatalf("%s: error %v, want %v", c.why, err, c.err)
			}
			if link != c.link {
				t.Errorf("%s: link %q, want %q", c.why, link, c.link)
			}
			if d := cmp.Diff(c.label, label); d != "" {
				t.Errorf("%s: label (-want +got):\n%s", c.why, d)
			}
		})
	}
}

// A flipped bit anywhere must not open: hint, nonce, ciphertext and tag are all bound.
func TestOpenRefusesEveryFlippedBit(t *testing.T) {
	ring := ringOf(dated("east", noon, key(1)))
	sni, err := NewSealer(DatedKey{Day(noon), key(1)}).Seal(FirstService, Hint{}, noon)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := decodeLabel(sni)
	if err != nil {
		t.Fatal(err)
	}
	for bit := range len(sealed) * 8 {
		sealed[bit/8] ^= 1 << (bit % 8)
		text := labelEncoding.EncodeToString(sealed)
		sealed[bit/8] ^= 1 << (bit % 8)
		if _, _, err := ring.Open(text[:firstLen]+"."+text[firstLen:]+Suffix, noon); !errors.Is(err, ErrUnknownKey) {
			t.Fatalf("bit %d flipped: %v, want %v", bit, err, ErrUnknownKey)
		}
	}
}

// Two keys with one hint must both open, whichever was added first.
func TestOpenWithCollidingHints(t *testing.T) {
	a, b := newLabelCipher(key(1)), newLabelCipher(key(2))
	b.keyHint = a.keyHint
	b.aad = append([]byte("causeway label/1"), b.keyHint[:]...)
	ring := &Keyring{byHint: map[[keyHintLen]byte][]ringKey{
		a.keyHint: {{link: "east", day: Day(noon), labelCipher: a}, {link: "west", day: Day(noon), labelCipher: b}},
	}}
	for want, s := range map[string]labelCipher{"east": a, "west": b} {
		link, _, err := ring.Open(s.seal(Label{FirstService, minuteOf(noon), Hint{}}, [nonceLen]byte{9}), noon)
		if err != nil || link != want {
			t.Errorf("opened as %q, %v; want %q", link, err, want)
		}
	}
}

// A keyring that follows another has its own keys only, and shares what was derived
// from them.
func TestRenewedKeyring(t *testing.T) {
	east := LinkKey{Link: "east", DatedKey: DatedKey{Day(noon), key(1)}}
	west := LinkKey{Link: "west", DatedKey: DatedKey{Day(noon), key(2)}}
	renamed := LinkKey{Link: "east-2", DatedKey: east.DatedKey}
	first := NewKeyring(east, west)
	next := first.WithInvites().Renewed(renamed)
	for sealer, want := range map[*Sealer]string{NewSealer(east.DatedKey): "east-2", NewSealer(west.DatedKey): ""} {
		sni, err := sealer.Seal(FirstService, Hint{}, noon)
		if err != nil {
			t.Fatal(err)
		}
		if link, _, err := next.Open(sni, noon); link != want || (err == nil) != (want != "") {
			t.Errorf("opened as %q, %v; want %q", link, err, want)
		}
	}
	if first.sealings[east.Key].aead != next.sealings[east.Key].aead {
		t.Error("a key that both have was derived twice")
	}
}

func TestSealNeverRepeats(t *testing.T) {
	s := NewSealer(DatedKey{Day(noon), key(1)})
	seen := map[string]bool{}
	for range 1000 {
		sni, err := s.Seal(FirstService, Hint{}, noon)
		if err != nil {
			t.Fatal(err)
		}
		if seen[sni] {
			t.Fatalf("%s twice: tunnels to one service could be told to be so", sni)
		}
		seen[sni] = true
	}
}

func TestSealWithoutKey(t *testing.T) {
	for name, s := range map[string]*Sealer{"zero": {}, "yesterday's": NewSealer(DatedKey{Day(noon) - 1, key(1)})} {
		if sni, err := s.Seal(FirstService, Hint{}, noon); !errors.Is(err, ErrNoDayKey) || sni != "" {
			t.Errorf("%s sealer: %q, %v; want %v", name, sni, err, ErrNoDayKey)
		}
	}
}

func TestStaleSaysHowMuch(t *testing.T) {
	sni, err := NewSealer(DatedKey{Day(noon), key(1)}).Seal(FirstService, Hint{}, noon)
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range []time.Duration{40 * time.Minute, -2 * time.Hour} {
		_, _, err := ringOf(dated("east", noon, key(1))).Open(sni, noon.Add(off))
		var stale *StaleError
		if !errors.As(err, &stale) || stale.By != off {
			t.Errorf("opened %v off: %v, want a StaleError by %v", off, err, off)
		}
	}
}

func TestKeysNeverPrint(t *testing.T) {
	for name, k := range map[string]any{"day key": key(0xAB), "hop key": HopKey(key(0xAB)), "in a row": Backend{HopKey: HopKey(key(0xAB))}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
			if s := fmt.Sprintf(verb, k); strings.Contains(strings.ToLower(s), "ab, ") || strings.Contains(s, "171") || strings.Contains(s, "0xab") {
				t.Errorf("%s with %s prints %s", name, verb, s)
			}
		}
	}
}

// labelVector is one line of testdata/labels.json; all bytes in hex.
type labelVector struct {
	DayKey, Nonce string
	Route, Minute uint32
	WishKind      uint8
	WishArg       string
	SNI           string
}

func TestLabelVectors(t *testing.T) {
	path := filepath.Join("testdata", "labels.json")
	vectors := readGolden(t, path, []labelVector{
		{DayKey: strings.Repeat("00", 32), Nonce: strings.Repeat("00", 12), Route: 0, Minute: 0, WishArg: strings.Repeat("00", 8)},
		{DayKey: strings.Repeat("01", 32), Nonce: "000102030405060708090a0b", Route: 1024, Minute: 29543760, WishArg: strings.Repeat("00", 8)},
		{DayKey: strings.Repeat("02", 32), Nonce: "f0f1f2f3f4f5f6f7f8f9fafb", Route: 70000, Minute: 29543761, WishKind: 1, WishArg: "0011223344556677"},
		{DayKey: strings.Repeat("ff", 32), Nonce: strings.Repeat("ff", 12), Route: 4294967295, Minute: 4294967295, WishKind: 2, WishArg: hex.EncodeToString(hostHashOf("db-0"))},
		{DayKey: strings.Repeat("02", 32), Nonce: "f0f1f2f3f4f5f6f7f8f9fafc", Route: 70000, Minute: 29543761, WishKind: 3, WishArg: "0011223344556677"},
	})
	for i, v := range vectors {
		l := Label{v.Route, v.Minute, Hint{HintKind(v.WishKind), [8]byte(unhex(t, v.WishArg))}}
		k := DayKey(unhex(t, v.DayKey))
		sni := newLabelCipher(k).seal(l, [nonceLen]byte(unhex(t, v.Nonce)))
		if *update {
			vectors[i].SNI = sni
			continue
		}
		if sni != v.SNI {
			t.Errorf("vector %d: sealed as %s, want %s", i, sni, v.SNI)
		}
		link, got, err := ringOf(LinkKey{"east", DatedKey{l.day(), k}}).Open(v.SNI, l.time())
		if err != nil || link != "east" || got != l {
			t.Errorf("vector %d: opened as %q %+v, %v; want %+v", i, link, got, err, l)
		}
	}
	writeGolden(t, path, vectors)
}

// The derivations again, by RFC 5869's own words.
func TestDerivation(t *testing.T) {
	k := key(7)
	extract := hmac.New(sha256.New, make([]byte, 32))
	extract.Write(k[:])
	prk := extract.Sum(nil)
	for info, n := range map[string]int{"causeway label/1 hint": 3, "causeway label/1 key": 32} {
		m := hmac.New(sha256.New, prk)
		m.Write([]byte(info))
		m.Write([]byte{1})
		if want := m.Sum(nil)[:n]; !bytes.Equal(expand(k, info, n), want) {
			t.Errorf("%s: %x, want %x", info, expand(k, info, n), want)
		}
	}
}

func FuzzOpen(f *testing.F) {
	s := NewSealer(DatedKey{Day(noon), key(1)})
	ring := ringOf(dated("east", noon, key(1)))
	for _, w := range []Hint{{}, ForHost("a"), ForEndpoint(EndpointID{1}), ForOpen(EndpointID{1})} {
		sni, err := s.Seal(FirstService, w, noon)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(sni)
	}
	f.Add("www.example.com")
	f.Fuzz(func(t *testing.T, sni string) {
		_, l, err := ring.Open(sni, noon)
		if err != nil {
			if Reason(err) == "read_failed" {
				t.Fatalf("%q: %v is not on the closed list", sni, err)
			}
			return
		}
		sealed, err := decodeLabel(sni)
		if err != nil {
			t.Fatal(err)
		}
		again := newLabelCipher(key(1)).seal(l, [nonceLen]byte(sealed[keyHintLen:]))
		if again != strings.ToLower(sni) {
			t.Fatalf("%q opens and is sealed again as %q: two texts for one label", sni, again)
		}
	})
}

func BenchmarkOpen(b *testing.B) {
	s := NewSealer(DatedKey{Day(noon), key(1)})
	ring := ringOf(dated("east", noon, key(1)))
	sni, _ := s.Seal(FirstService, Hint{}, noon)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := ring.Open(sni, noon); err != nil {
			b.Fatal(err)
		}
	}
}

func hostHashOf(s string) []byte { h := HostHash(s); return h[:] }

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// readGolden returns the vectors of a file, or seed when they are to be made anew.
func readGolden[T any](t *testing.T, path string, seed []T) []T {
	t.Helper()
	if *update {
		return seed
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var v []T
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	if len(v) == 0 {
		t.Fatalf("%s holds no vectors", path)
	}
	return v
}

func writeGolden[T any](t *testing.T, path string, v []T) {
	t.Helper()
	if !*update {
		return
	}
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(b, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}
