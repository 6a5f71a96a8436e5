package invite

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// seq returns consecutive bytes.
func seq(from byte) (out [32]byte) {
	for i := range out {
		out[i] = from + byte(i)
	}
	return out
}

func goldenToken() Token {
	return Token{
		Root:     seq(0),
		Secret:   Secret{raw: seq(100)},
		Expires:  time.Date(2026, 1, 2, 12, 15, 0, 0, time.UTC),
		Peer:     "west",
		Inviter:  "east",
		Gateways: []string{"198.51.100.7:4143", "gw.east.example:4143"},
	}
}

var compareSecrets = cmp.Comparer(func(a, b Secret) bool { return a.raw == b.raw })

// Another version must be able to parse a token.
func TestTokenVector(t *testing.T) {
	want, err := os.ReadFile("testdata/token.txt")
	if err != nil {
		t.Fatal(err)
	}
	got, err := goldenToken().Text()
	if err != nil || got != strings.TrimSpace(string(want)) {
		t.Fatalf("Text = %s, %v, want %s", got, err, want)
	}
	parsed, err := ParseToken(string(want))
	if diff := cmp.Diff(goldenToken(), parsed, compareSecrets); err != nil || diff != "" {
		t.Errorf("ParseToken: error %v (-want +got):\n%s", err, diff)
	}
	// Chats and terminals break lines.
	if _, err := ParseToken(" " + got[:40] + "\r\n\t" + got[40:] + "\n"); err != nil {
		t.Errorf("ParseToken of a token with white space: %v", err)
	}
}

func TestParseTokenRejects(t *testing.T) {
	good, err := goldenToken().Text()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ why, text string }{
		"empty":      {"empty input is not a token", ""},
		"other text": {"a kubeconfig is not a token", "apiVersion: v1"},
		"cut off":    {"the user copied only a part", good[:len(good)-9]},
		"one letter": {"a typing error must not select another cluster", good[:60] + "A" + good[61:]},
		"two tokens": {"one text holds one token", good + good},
		"too long": {
			"the length is checked before the text is decoded",
			TokenPrefix + strings.Repeat("A", 3*MaxToken),
		},
		"next version": {"the prefix contains the version", "causeway-join-2." + good[len(TokenPrefix):]},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseToken(c.text)
			if !errors.Is(err, ErrToken) {
				t.Errorf("error %v, want ErrToken: %s", err, c.why)
			}
			if err != nil && len(c.text) > 40 && strings.Contains(err.Error(), c.text[20:40]) {
				t.Errorf("the error contains a part of the token: %v", err)
			}
		})
	}
}

func TestTextRejectsInvalidFields(t *testing.T) {
	for name, edit := range map[string]func(*Token){
		"no gateway":    func(t *Token) { t.Gateways = nil },
		"bad gateway":   func(t *Token) { t.Gateways = []string{"gw"} },
		"nine gateways": func(t *Token) { t.Gateways = strings.Split(strings.Repeat("a:1 ", 9), " ")[:9] },
		"invalid peer":  func(t *Token) { t.Peer = "West" },
		"no inviter":    func(t *Token) { t.Inviter = "" },
		"no expiry":     func(t *Token) { t.Expires = time.Time{} },
	} {
		t.Run(name, func(t *testing.T) {
			token := goldenToken()
			edit(&token)
			if text, err := token.Text(); err == nil {
				t.Errorf("Text = %s, want an error", text)
			}
		})
	}
}

func TestFmtDoesNotPrintSecrets(t *testing.T) {
	token := goldenToken()
	for _, verb := range []string{"%v", "%+v", "%s", "%x", "%q"} {
		for _, text := range []string{
			fmt.Sprintf(verb, token),
			fmt.Sprintf(verb, token.Secret),
			fmt.Sprintf(verb, &token),
		} {
			if strings.Contains(text, "6465666768") || strings.Contains(text, "defgh") ||
				strings.Contains(text, "100 101") {
				t.Errorf("%s prints the secret: %s", verb, text)
			}
		}
	}
}

// The derived keys must not change, because joiner and inviter may have different
// versions.
func TestDerivedVectors(t *testing.T) {
	s := Secret{raw: seq(100)}
	on := Session{Exporter: seq(1), Inviter: seq(2), Joiner: seq(3)}
	label := s.LabelKey()
	for name, v := range map[string]struct {
		got  []byte
		want string
	}{
		"label key": {label[:], "74a67b7cd600ef6b969a40755a1a69d89364377db4e7e2891f5e325f5b485056"},
		"request proof": {
			s.ProveRequest(on, []byte("request")),
			"6219f69ac24272f3b905010919f02f71f8323028c1e4a569769b9472bfc5ab76",
		},
		"answer proof": {
			s.ProveAnswer(on, []byte("request"), []byte("answer")),
			"42fc4b7b58eec4bb2d06217dd9147de5a102a0d7b082fbd640dc84ced21cf2ab",
		},
	} {
		if got := fmt.Sprintf("%x", v.got); got != v.want {
			t.Errorf("%s = %s, want %s", name, got, v.want)
		}
	}
}

// A proof is not valid on another connection, for other clusters, or for other messages.
func TestProofBindsExchange(t *testing.T) {
	s := NewSecret()
	on := Session{Exporter: seq(1), Inviter: seq(2), Joiner: seq(3)}
	proof := s.ProveAnswer(on, []byte("request"), []byte("answer"))
	for name, other := range map[string][]byte{
		"another connection": s.ProveAnswer(Session{
			seq(9),
			on.Inviter,
			on.Joiner,
		}, []byte("request"), []byte("answer")),
		"another inviter": s.ProveAnswer(Session{
			on.Exporter,
			seq(9),
			on.Joiner,
		}, []byte("request"), []byte("answer")),
		"another joiner": s.ProveAnswer(Session{
			on.Exporter,
			on.Inviter,
			seq(9),
		}, []byte("request"), []byte("answer")),
		"shifted boundary": s.ProveAnswer(on, []byte("requesta"), []byte("nswer")),
		"other direction":  s.ProveRequest(on, []byte("requestanswer")),
		"another secret":   NewSecret().ProveAnswer(on, []byte("request"), []byte("answer")),
	} {
		if Equal(proof, other) {
			t.Errorf("the proof is the same for %s", name)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	good, err := goldenToken().Text()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(TokenPrefix)
	f.Fuzz(func(t *testing.T, s string) {
		token, err := ParseToken(s)
		if err != nil {
			return
		}
		text, err := token.Text()
		if err != nil {
			t.Fatalf("Text of a parsed token: %v", err)
		}
		if parsed, err := ParseToken(text); err != nil || !cmp.Equal(token, parsed, compareSecrets) {
			t.Fatalf("ParseToken of the text of a parsed token: %v", err)
		}
	})
}

// FuzzParseFields skips the checksum, which a fuzzer cannot guess.
func FuzzParseFields(f *testing.F) {
	text, err := goldenToken().Text()
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(text))
	f.Add(bytes.Repeat([]byte{1}, 80))
	f.Fuzz(func(t *testing.T, b []byte) {
		if token, err := parseFields(b); err == nil && token.check() != nil {
			t.Fatal("parseFields accepts invalid fields")
		}
	})
}
