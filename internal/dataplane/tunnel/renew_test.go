package tunnel

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

var (
	renewals = []Renewal{{SessionName{1, 2, 3}, SessionProof{4, 5, 6}}, {SessionName{7}, SessionProof{8}}}
	proofs   = []SessionProof{{9, 10, 11}, {}}
)

func TestRenew(t *testing.T) {
	got, err := serve(t, func(c *Conn) error {
		if renew, err := c.IsRenew(); err != nil || !renew {
			return errors.Join(err, errors.New("it is not RENEW"))
		}
		asked, err := c.ReadRenew()
		if d := cmp.Diff(renewals, asked); d != "" {
			return errors.Join(err, errors.New(d))
		}
		return WriteRenewAnswer(c, Code_OK, proofs)
	}).Renew(t.Context(), renewals)
	if d := cmp.Diff(proofs, got); d != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
}

func TestIsRenewLeavesHello(t *testing.T) {
	c := reading(bytes.NewReader(bytesOf(t, func(w io.Writer) error { return WriteHello(w, hello) })))
	if renew, err := c.IsRenew(); renew || err != nil {
		t.Fatalf("%v, %v", renew, err)
	}
	if h, err := c.ReadHello(); h != hello || err != nil {
		t.Errorf("%v, %v", h, err)
	}
}

// A client sends the sessions of one frame at most, and that fits.
func TestLargestRenewFits(t *testing.T) {
	most := slices.Repeat(renewals[:1], MaxRenewals)
	b := bytesOf(t, func(w io.Writer) error { return WriteRenew(w, most) })
	if got, err := reading(bytes.NewReader(b)).ReadRenew(); err != nil || len(got) != MaxRenewals {
		t.Errorf("%d, %v", len(got), err)
	}
	b = bytesOf(t, func(w io.Writer) error { return WriteRenewAnswer(w, Code_OK, slices.Repeat(proofs[:1], MaxRenewals)) })
	if got, err := reading(bytes.NewReader(b)).ReadRenewAnswer(); err != nil || len(got) != MaxRenewals {
		t.Errorf("answer: %d, %v", len(got), err)
	}
}

func TestRenewReadersRefuse(t *testing.T) {
	readRenew := func(c *Conn) error { _, err := c.ReadRenew(); return err }
	readAnswer := func(c *Conn) error { _, err := c.ReadRenewAnswer(); return err }
	ok, denied := varintField(1, uint64(Code_OK)), varintField(1, uint64(Code_DENIED))
	session, proof := bytesField(1, strings.Repeat("s", 48)), bytesField(2, strings.Repeat("p", 32))
	cases := map[string]struct {
		why  string
		in   []byte
		read func(*Conn) error
		err  error
	}{
		"other type":            {"frames come in one order", frame(TypeHello, nil), readRenew, ErrUnexpectedFrame},
		"no session":            {"nothing is asked", frame(TypeRenew, nil), readRenew, ErrBadFrame},
		"65 sessions":           {"a peer's word is bounded", frame(TypeRenew, slices.Repeat(session, MaxRenewals+1)), readRenew, ErrBadFrame},
		"short session":         {"sessions have 48 bytes", frame(TypeRenew, bytesField(1, "s")), readRenew, ErrBadFrame},
		"long session":          {"sessions have 48 bytes", frame(TypeRenew, bytesField(1, strings.Repeat("s", 49))), readRenew, ErrBadFrame},
		"too long":              {"memory is bounded", frame(TypeRenew, make([]byte, MaxFrame+1)), readRenew, ErrFrameTooLong},
		"cut":                   {"an end is not a frame", frame(TypeRenew, session)[:20], readRenew, io.ErrUnexpectedEOF},
		"not protobuf":          {"strangers' bytes", frame(TypeRenew, []byte{0xff}), readRenew, ErrBadFrame},
		"answer: no code":       {"an answer without a code is broken", frame(TypeRenewAnswer, proof), readAnswer, ErrBadFrame},
		"answer: unknown code":  {"the list is closed", frame(TypeRenewAnswer, slices.Concat(varintField(1, 99), proof)), readAnswer, ErrBadFrame},
		"answer: no proof":      {"it answers for each session", frame(TypeRenewAnswer, ok), readAnswer, ErrBadFrame},
		"answer: 65 proofs":     {"a peer's word is bounded", frame(TypeRenewAnswer, slices.Concat(ok, slices.Repeat(proof, 65))), readAnswer, ErrBadFrame},
		"answer: short proof":   {"proofs have 32 bytes", frame(TypeRenewAnswer, slices.Concat(ok, bytesField(2, "p"))), readAnswer, ErrBadFrame},
		"answer: DENIED, proof": {"a refusal proves nothing", frame(TypeRenewAnswer, slices.Concat(denied, proof)), readAnswer, ErrBadFrame},
	}
	for name, c := range cases {
		if err := c.read(reading(bytes.NewReader(c.in))); !errors.Is(err, c.err) {
			t.Errorf("%s: %v, want %v (%s)", name, err, c.err, c.why)
		}
	}
	var refused *Refused
	if err := readAnswer(reading(bytes.NewReader(frame(TypeRenewAnswer, denied)))); !errors.As(err, &refused) || refused.Code != Code_DENIED {
		t.Errorf("a refusal: %v", err)
	}
}

func TestRenewWritersRefuse(t *testing.T) {
	for name, write := range map[string]func(io.Writer) error{
		"no session":              func(w io.Writer) error { return WriteRenew(w, nil) },
		"65 sessions":             func(w io.Writer) error { return WriteRenew(w, make([]Renewal, 65)) },
		"answer without a code":   func(w io.Writer) error { return WriteRenewAnswer(w, 0, proofs) },
		"answer without a proof":  func(w io.Writer) error { return WriteRenewAnswer(w, Code_OK, nil) },
		"refusal with a proof":    func(w io.Writer) error { return WriteRenewAnswer(w, Code_DENIED, proofs) },
		"answer with 65 sessions": func(w io.Writer) error { return WriteRenewAnswer(w, Code_OK, make([]SessionProof, 65)) },
	} {
		var b bytes.Buffer
		if err := write(&b); !errors.Is(err, ErrBadFrame) || b.Len() != 0 {
			t.Errorf("%s: %v and %d bytes, want %v and none", name, err, b.Len(), ErrBadFrame)
		}
	}
}

// A server that answers for fewer sessions than it was asked would have one stand for another.
func TestRenewCountsProofs(t *testing.T) {
	_, err := serve(t, func(c *Conn) error {
		_, err := c.ReadRenew()
		return errors.Join(err, WriteRenewAnswer(c, Code_OK, proofs[:1]))
	}).Renew(t.Context(), renewals)
	if !errors.Is(err, ErrBadFrame) {
		t.Errorf("%v, want %v", err, ErrBadFrame)
	}
}

func TestRenewEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		defer client.Close()
		defer server.Close()
		go io.Copy(io.Discard, server)
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if _, err := NewConn(client).Renew(ctx, renewals); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, want %v", err, context.DeadlineExceeded)
		}
	})
}

// Both ends of a session compute the same name and proofs, and no other session has them.
func TestSessionSecrets(t *testing.T) {
	c1, s1 := handshake(t)
	c2, s2 := handshake(t)
	if c1 != s1 || c2 != s2 {
		t.Fatal("the ends of a session differ")
	}
	if c1.Name() == c2.Name() || c1.key == c2.key {
		t.Error("two sessions have one secret")
	}
	if c1.ClientProof(&c2) != s1.ClientProof(&s2) || c1.ServerProof(&c2) != s1.ServerProof(&s2) {
		t.Error("the ends' proofs differ")
	}
	all := map[SessionProof]bool{}
	for _, p := range []SessionProof{c1.ClientProof(&c2), c1.ServerProof(&c2), c2.ClientProof(&c1), c2.ServerProof(&c1), c1.ClientProof(&c1)} {
		if all[p] || p.Equal(SessionProof{}) {
			t.Error("one proof stands for two")
		}
		all[p] = true
	}
	if p := c1.ClientProof(&c2); !p.Equal(s1.ClientProof(&s2)) || p.Equal(c1.ServerProof(&c2)) {
		t.Error("Equal is wrong")
	}
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		if said := fmt.Sprintf(format, c1); !strings.Contains(said, "hidden") {
			t.Errorf("%s prints %s", format, said)
		}
	}
}

// The golden values of docs/design/0002-tunnel-frames.md.
func TestSessionProofVectors(t *testing.T) {
	older, newer := SessionSecret{}, SessionSecret{}
	for i := range older.key {
		older.key[i], newer.key[i] = byte(i), byte(0xff-i)
	}
	for what, p := range map[string]SessionProof{
		"CLIENT": older.ClientProof(&newer),
		"SERVER": older.ServerProof(&newer),
	} {
		if got := hex.EncodeToString(p[:]); got != golden[what] {
			t.Errorf("the %s proof is %s, want %s", what, got, golden[what])
		}
	}
}

var golden = map[string]string{
	"CLIENT": "c3b82f836b0e899440a8eaa8028da873cbb0038a544db6fac37255fcd0fb68e0",
	"SERVER": "e7cf42965900c74a3356beb7e2e53b72e4d1ad409ddb411afa77fdfbea9cedd2",
}

// handshake returns what the two ends of a TLS 1.3 session have in common.
func handshake(t *testing.T) (client, server SessionSecret) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	c := tls.Client(near, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
	s := tls.Server(far, &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, SessionTicketsDisabled: true,
	})
	done := make(chan error, 1)
	go func() { done <- s.Handshake() }()
	if err := errors.Join(c.Handshake(), <-done); err != nil {
		t.Fatal(err)
	}
	if client, err = NewSessionSecret(c.ConnectionState()); err != nil {
		t.Fatal(err)
	}
	if server, err = NewSessionSecret(s.ConnectionState()); err != nil {
		t.Fatal(err)
	}
	return client, server
}

func FuzzRenew(f *testing.F) {
	f.Add(bytesOf(f, func(w io.Writer) error { return WriteRenew(w, renewals) }))
	f.Add(bytesOf(f, func(w io.Writer) error { return WriteRenewAnswer(w, Code_OK, proofs) }))
	f.Add(bytesOf(f, func(w io.Writer) error { return WriteRenewAnswer(w, Code_NOT_READY, nil) }))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		if asked, err := reading(r).ReadRenew(); err == nil {
			again, err := reading(bytes.NewReader(bytesOf(t, func(w io.Writer) error { return WriteRenew(w, asked) }))).ReadRenew()
			if d := cmp.Diff(asked, again); err != nil || d != "" {
				t.Fatalf("%v (-want +got):\n%s", err, d)
			}
		}
		if read := len(b) - r.Len(); read > PrefixLen+MaxFrame {
			t.Fatalf("%d bytes read for a frame", read)
		}
		if got, err := reading(bytes.NewReader(b)).ReadRenewAnswer(); err == nil {
			answer := bytesOf(t, func(w io.Writer) error { return WriteRenewAnswer(w, Code_OK, got) })
			again, err := reading(bytes.NewReader(answer)).ReadRenewAnswer()
			if d := cmp.Diff(got, again); err != nil || d != "" {
				t.Fatalf("%v (-want +got):\n%s", err, d)
			}
		}
	})
}
