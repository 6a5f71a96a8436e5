package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/causeway-mesh/causeway/internal/invite"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func frame(t testing.TB, body, proof []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := writeFrame(&b, body, proof); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Joiner and inviter may be of different versions.
func TestVectors(t *testing.T) {
	request, err := proto.Marshal(&Request{Version: "v1", Invite: "west", As: "west", LinkPublicKey: []byte{1, 2}})
	if err != nil {
		t.Fatal(err)
	}
	answer, err := proto.Marshal(&Answer{Version: "v1", LinkPublicKey: []byte{3}})
	if err != nil {
		t.Fatal(err)
	}
	refusal, err := proto.Marshal(&Answer{Refused: "Used", Message: "no"})
	if err != nil {
		t.Fatal(err)
	}
	for what, v := range map[string]struct {
		got  []byte
		want string
	}{
		"request": {frame(t, request, []byte{9}), "000000190a140a0276311204776573741a047765737422020102120109"},
		"answer":  {frame(t, answer, []byte{9}), "0000000c0a070a027631220103120109"},
		"refusal": {frame(t, refusal, nil), "0000000c0a0a1204557365641a026e6f"},
	} {
		if got := fmt.Sprintf("%x", v.got); got != v.want {
			t.Errorf("%s is %s, want %s", what, got, v.want)
		}
	}
}

func TestReadFrameRefuses(t *testing.T) {
	long := binary.BigEndian.AppendUint32(nil, MaxFrame+1)
	for name, c := range map[string]struct {
		why   string
		bytes []byte
		want  error
	}{
		"too long":    {"the length is looked at before anything is made for it", long, ErrFrame},
		"no protobuf": {"another protocol", []byte{0, 0, 0, 2, 0xff, 0xff}, ErrFrame},
		"cut":         {"half a frame", frame(t, []byte("body"), nil)[:5], io.ErrUnexpectedEOF},
		"nothing":     {"an end is an end", nil, io.EOF},
	} {
		if _, err := readFrame(bytes.NewReader(c.bytes)); !errors.Is(err, c.want) {
			t.Errorf("%s: %s: %v", name, c.why, err)
		}
	}
	if err := writeFrame(io.Discard, make([]byte, MaxFrame), nil); !errors.Is(err, ErrFrame) {
		t.Errorf("what nobody would read is written: %v", err)
	}
}

// talk is a stream whose answers are given.
type talk struct {
	io.Reader
	io.Writer
}

func TestAskBelievesAProofAlone(t *testing.T) {
	secret, on := invite.NewSecret(), invite.Session{Exporter: [32]byte{1}}
	req := &Request{Invite: "west"}
	asked, err := proto.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := proto.Marshal(&Answer{LinkPublicKey: []byte{3}})
	if err != nil {
		t.Fatal(err)
	}
	say := func(proof []byte) error {
		_, err := ask(talk{bytes.NewReader(frame(t, answer, proof)), io.Discard}, secret, on, req)
		return err
	}
	if err := say(secret.ProveAnswer(on, asked, answer)); err != nil {
		t.Error(err)
	}
	for name, proof := range map[string][]byte{
		"none":               nil,
		"of another request": secret.ProveAnswer(on, []byte("x"), answer),
		"another connection": secret.ProveAnswer(invite.Session{}, asked, answer),
		"echoed":             secret.ProveRequest(on, answer),
	} {
		if err := say(proof); !errors.Is(err, ErrProof) {
			t.Errorf("a proof %s is believed: %v", name, err)
		}
	}
}

func TestResultsAreClosed(t *testing.T) {
	seen := make(map[string]bool)
	for _, r := range Results() {
		if seen[r] {
			t.Errorf("%s is counted twice", r)
		}
		seen[r] = true
	}
	for _, r := range invite.Reasons() {
		if !seen[string(r)] {
			t.Errorf("%s is not counted from zero", r)
		}
	}
}

func TestExplain(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"unreachable": {&net.OpError{Op: "dial", Err: errors.New("refused")}, "cannot be reached"},
		"alert":       {fmt.Errorf("%w: %w", ErrHandshake, &net.OpError{Op: "remote error", Err: errors.New("tls: alert")}), "does not take the token"},
		"proof":       {ErrProof, "secret"},
		"frame":       {fmt.Errorf("hear: %w", ErrFrame), "another version"},
		"broken off":  {io.EOF, "broke off"},
	} {
		if got := Explain(c.err); !strings.Contains(got, c.want) {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0})
	f.Add(binary.BigEndian.AppendUint32(nil, 1<<31))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		got, err := readFrame(r)
		if err != nil {
			return
		}
		if read := len(b) - r.Len(); read > MaxFrame+4 || len(got.Body) > MaxFrame {
			t.Fatalf("%d bytes were read", read)
		}
		// What a stranger says of itself must not break who judges it.
		var req Request
		if proto.Unmarshal(got.Body, &req) == nil {
			invite.IsName(req.Invite)
		}
		var answer Answer
		if proto.Unmarshal(got.Body, &answer) == nil {
			if r := invite.Heard(answer.Refused, answer.Message, maxSentence); len(r.Message) > maxSentence {
				t.Fatal("a sentence without bound")
			}
		}
	})
}
