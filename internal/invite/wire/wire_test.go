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

// The encoding must not change, because joiner and inviter may have different versions.
func TestFrameVectors(t *testing.T) {
	request, err := proto.Marshal(&Request{
		Version:       "v1",
		Invite:        "west",
		As:            "west",
		LinkPublicKey: []byte{1, 2},
	})
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
	for name, v := range map[string]struct {
		got  []byte
		want string
	}{
		"request": {
			frame(t, request, []byte{9}),
			"000000190a140a0276311204776573741a047765737422020102120109",
		},
		"answer":  {frame(t, answer, []byte{9}), "0000000c0a070a027631220103120109"},
		"refusal": {frame(t, refusal, nil), "0000000c0a0a1204557365641a026e6f"},
	} {
		if got := fmt.Sprintf("%x", v.got); got != v.want {
			t.Errorf("%s = %s, want %s", name, got, v.want)
		}
	}
}

func TestReadFrameRejects(t *testing.T) {
	long := binary.BigEndian.AppendUint32(nil, MaxFrame+1)
	for name, c := range map[string]struct {
		why   string
		bytes []byte
		want  error
	}{
		"too long":    {"the length is checked before memory is allocated", long, ErrFrame},
		"no protobuf": {"the peer may use another protocol", []byte{0, 0, 0, 2, 0xff, 0xff}, ErrFrame},
		"truncated": {
			"the connection ended within a frame",
			frame(t, []byte("body"), nil)[:5],
			io.ErrUnexpectedEOF,
		},
		"empty": {"the connection ended before a frame", nil, io.EOF},
	} {
		if _, err := readFrame(bytes.NewReader(c.bytes)); !errors.Is(err, c.want) {
			t.Errorf("%s: error %v, want %v: %s", name, err, c.want, c.why)
		}
	}
	if err := writeFrame(io.Discard, make([]byte, MaxFrame), nil); !errors.Is(err, ErrFrame) {
		t.Errorf("writeFrame of a frame that is too long: error %v, want ErrFrame", err)
	}
}

// stream is a connection with a given answer.
type stream struct {
	io.Reader
	io.Writer
}

func TestExchangeRequiresProof(t *testing.T) {
	secret, on := invite.NewSecret(), invite.Session{Exporter: [32]byte{1}}
	req := &Request{Invite: "west"}
	sent, err := proto.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := proto.Marshal(&Answer{LinkPublicKey: []byte{3}})
	if err != nil {
		t.Fatal(err)
	}
	exchange := func(proof []byte) error {
		_, err := roundTrip(stream{bytes.NewReader(frame(t, answer, proof)), io.Discard}, secret, on, req)
		return err
	}
	if err := exchange(secret.ProveAnswer(on, sent, answer)); err != nil {
		t.Error(err)
	}
	for name, proof := range map[string][]byte{
		"no proof":           nil,
		"another request":    secret.ProveAnswer(on, []byte("x"), answer),
		"another connection": secret.ProveAnswer(invite.Session{}, sent, answer),
		"request proof":      secret.ProveRequest(on, answer),
	} {
		if err := exchange(proof); !errors.Is(err, ErrProof) {
			t.Errorf("%s: error %v, want ErrProof", name, err)
		}
	}
}

func TestResultsContainAllReasons(t *testing.T) {
	seen := make(map[string]bool)
	for _, r := range Results() {
		if seen[r] {
			t.Errorf("%s is listed twice", r)
		}
		seen[r] = true
	}
	for _, r := range invite.Reasons() {
		if !seen[string(r)] {
			t.Errorf("%s is not listed", r)
		}
	}
}

func TestExplain(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"unreachable": {&net.OpError{Op: "dial", Err: errors.New("refused")}, "cannot be reached"},
		"alert": {
			fmt.Errorf("%w: %w", ErrHandshake, &net.OpError{
				Op:  "remote error",
				Err: errors.New("tls: alert"),
			}),
			"does not accept the token",
		},
		"proof":  {ErrProof, "secret"},
		"frame":  {fmt.Errorf("read answer: %w", ErrFrame), "another version"},
		"closed": {io.EOF, "closed the connection"},
	} {
		if got := Explain(c.err); !strings.Contains(got, c.want) {
			t.Errorf("%s: Explain = %q, want it to contain %q", name, got, c.want)
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
			t.Fatalf("readFrame read %d bytes", read)
		}
		// A stranger sends the content of the frame. Code that checks it must not panic.
		var req Request
		if proto.Unmarshal(got.Body, &req) == nil {
			invite.IsName(req.Invite)
		}
		var answer Answer
		if proto.Unmarshal(got.Body, &answer) == nil {
			if r := invite.ReceivedRefusal(answer.Refused, answer.Message,
				maxMessage); len(r.Message) > maxMessage {
				t.Fatal("the message is too long")
			}
		}
	})
}
