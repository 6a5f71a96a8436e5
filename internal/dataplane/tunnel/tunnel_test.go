package tunnel

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/causeway-mesh/causeway/internal/dataplane/route"
)

var update = flag.Bool("update", false, "rewrite the golden vectors")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	hello  = Hello{"shop", "bar", 80}
	answer = Answer{
		Code: Code_OK, Endpoint: route.EndpointID{1, 2, 3, 4, 5, 6, 7, 8},
		Ready: []route.EndpointID{{1, 2, 3, 4, 5, 6, 7, 8}, {9}}, ReadyCount: 2, Generation: 77, Budget: 500, First: FirstSpeaker_CLIENT,
	}
)

func bytesOf(t testing.TB, write func(io.Writer) error) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := write(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// frame makes any frame, well-formed or not.
func frame(t frameType, body []byte) []byte {
	return append(binary.BigEndian.AppendUint16([]byte{byte(t)}, uint16(len(body))), body...)
}

func TestNoByteBeyondAFrame(t *testing.T) {
	b := bytesOf(t, func(w io.Writer) error { return WriteHelloOpen(w, hello, []byte("early")) })
	r := iotest.OneByteReader(bytes.NewReader(b))
	got, err := ReadHello(r)
	if err != nil || got != hello {
		t.Fatalf("%+v, %v; want %+v", got, err, hello)
	}
	if err := ReadOpen(r); err != nil {
		t.Fatal(err)
	}
	if rest, _ := io.ReadAll(r); string(rest) != "early" {
		t.Errorf("%q left after OPEN, want the caller's bytes", rest)
	}

	b = append(bytesOf(t, func(w io.Writer) error { return WriteHelloAnswer(w, answer) }),
		bytesOf(t, func(w io.Writer) error { return WriteOpenAnswer(w, Code_OK) })...)
	r = iotest.OneByteReader(bytes.NewReader(append(b, "220 ready"...)))
	a, err := ReadHelloAnswer(r)
	if d := cmp.Diff(answer, a); err != nil || d != "" {
		t.Fatalf("%v (-want +got):\n%s", err, d)
	}
	if err := ReadOpenAnswer(r); err != nil {
		t.Fatal(err)
	}
	if rest, _ := io.ReadAll(r); string(rest) != "220 ready" {
		t.Errorf("%q left after the answer, want the application's bytes", rest)
	}
}

type countWrites struct{ n int }

func (c *countWrites) Write(b []byte) (int, error) { c.n++; return len(b), nil }

func TestHelloAndOpenGoInOneWrite(t *testing.T) {
	var w countWrites
	if err := WriteHelloOpen(&w, hello, []byte("GET /")); err != nil || w.n != 1 {
		t.Errorf("%d writes, %v; each write is a TLS record and perhaps a segment", w.n, err)
	}
}

func varintField(n protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, n, protowire.VarintType), v)
}

func bytesField(n protowire.Number, v string) []byte {
	return protowire.AppendString(protowire.AppendTag(nil, n, protowire.BytesType), v)
}

func TestReadersRefuse(t *testing.T) {
	good := bytesOf(t, func(w io.Writer) error { return WriteHello(w, hello) })
	readHello := func(r io.Reader) error { _, err := ReadHello(r); return err }
	readAnswer := func(r io.Reader) error { _, err := ReadHelloAnswer(r); return err }
	ok := varintField(1, uint64(Code_OK))
	cases := map[string]struct {
		why  string
		in   []byte
		read func(io.Reader) error
		err  error
	}{
		"other type":         {"frames come in one order", frame(typeOpen, nil), readHello, ErrUnexpectedFrame},
		"unknown type":       {"what is not known is not guessed", frame(9, nil), readHello, ErrUnexpectedFrame},
		"HTTP":               {"an application's bytes are no frame", []byte("GET / HTTP/1.1\r\n"), readHello, ErrUnexpectedFrame},
		"too long":           {"memory is bounded", frame(typeHello, make([]byte, MaxFrame+1)), readHello, ErrFrameTooLong},
		"not protobuf":       {"strangers' bytes", frame(typeHello, []byte{0xff}), readHello, ErrBadFrame},
		"cut in the prefix":  {"an end is not a frame", good[:2], readHello, io.ErrUnexpectedEOF},
		"cut before body":    {"an end is not a frame", good[:3], readHello, io.ErrUnexpectedEOF},
		"cut in the body":    {"an end is not a frame", good[:5], readHello, io.ErrUnexpectedEOF},
		"end":                {"a warm tunnel that nobody wanted", nil, ReadOpen, io.EOF},
		"empty HELLO":        {"nothing is named", frame(typeHello, nil), readHello, ErrBadFrame},
		"port 0":             {"no such port", frame(typeHello, append(bytesField(1, "shop"), bytesField(2, "bar")...)), readHello, ErrBadFrame},
		"port 65536":         {"no such port", frame(typeHello, slices.Concat(bytesField(1, "shop"), bytesField(2, "bar"), varintField(3, 65536))), readHello, ErrBadFrame},
		"escape in a name":   {"peers' text reaches logs and terminals", frame(typeHello, slices.Concat(bytesField(1, "shop\x1b[2J"), bytesField(2, "bar"), varintField(3, 80))), readHello, ErrBadFrame},
		"slash in a name":    {"ns/service must have one reading", frame(typeHello, slices.Concat(bytesField(1, "a/b"), bytesField(2, "bar"), varintField(3, 80))), readHello, ErrBadFrame},
		"no code":            {"an answer without a code is broken", frame(typeHelloAnswer, nil), readAnswer, ErrBadFrame},
		"unknown code":       {"the list is closed", frame(typeHelloAnswer, varintField(1, 99)), readAnswer, ErrBadFrame},
		"unknown speaker":    {"the list is closed", frame(typeHelloAnswer, slices.Concat(ok, varintField(7, 3))), readAnswer, ErrBadFrame},
		"short id":           {"ids have 8 bytes", frame(typeHelloAnswer, slices.Concat(ok, bytesField(2, "1234567"))), readAnswer, ErrBadFrame},
		"short ready id":     {"ids have 8 bytes", frame(typeHelloAnswer, slices.Concat(ok, bytesField(3, "1"))), readAnswer, ErrBadFrame},
		"65 ready ids":       {"a peer's word is bounded", frame(typeHelloAnswer, slices.Concat(ok, slices.Repeat(bytesField(3, "12345678"), 65))), readAnswer, ErrBadFrame},
		"OPEN without code":  {"an answer without a code is broken", frame(typeOpenAnswer, nil), ReadOpenAnswer, ErrBadFrame},
		"OPEN, unknown code": {"the list is closed", frame(typeOpenAnswer, varintField(1, 99)), ReadOpenAnswer, ErrBadFrame},
	}
	for name, c := range cases {
		if err := c.read(bytes.NewReader(c.in)); !errors.Is(err, c.err) {
			t.Errorf("%s: %v, want %v (%s)", name, err, c.err, c.why)
		}
	}
}

func TestWritersRefuse(t *testing.T) {
	for name, write := range map[string]func(io.Writer) error{
		"HELLO without a name":  func(w io.Writer) error { return WriteHello(w, Hello{Port: 1}) },
		"answer without a code": func(w io.Writer) error { return WriteHelloAnswer(w, Answer{}) },
		"65 ready ids": func(w io.Writer) error {
			return WriteHelloAnswer(w, Answer{Code: Code_OK, Ready: make([]route.EndpointID, 65)})
		},
		"OPEN answer, no code":   func(w io.Writer) error { return WriteOpenAnswer(w, Code_CODE_UNSPECIFIED) },
		"OPEN answer, odd code":  func(w io.Writer) error { return WriteOpenAnswer(w, 99) },
		"HELLO with a long name": func(w io.Writer) error { return WriteHelloOpen(w, Hello{strings.Repeat("a", 64), "b", 1}, nil) },
	} {
		var b bytes.Buffer
		if err := write(&b); !errors.Is(err, ErrBadFrame) || b.Len() != 0 {
			t.Errorf("%s: %v and %d bytes, want %v and none", name, err, b.Len(), ErrBadFrame)
		}
	}
}

// An answer at all bounds at once still fits a frame.
func TestLargestAnswerFits(t *testing.T) {
	a := answer
	a.Ready = slices.Repeat([]route.EndpointID{{0xff}}, route.MaxReadyIDs)
	a.ReadyCount, a.Generation, a.Budget = 1<<32-1, 1<<64-1, 1<<32-1
	b := bytesOf(t, func(w io.Writer) error { return WriteHelloAnswer(w, a) })
	got, err := ReadHelloAnswer(bytes.NewReader(b))
	if d := cmp.Diff(a, got); err != nil || d != "" {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
}

// A field added by a later version is passed over; a later meaning of an old field is not.
func TestUnknownFieldsArePassedOver(t *testing.T) {
	body := slices.Concat(bytesField(1, "shop"), bytesField(2, "bar"), varintField(3, 80), bytesField(15, "new"))
	got, err := ReadHello(bytes.NewReader(frame(typeHello, body)))
	if err != nil || got != hello {
		t.Errorf("%+v, %v; want %+v", got, err, hello)
	}
}

// serve plays the server at the end of a pipe.
func serve(t *testing.T, do func(net.Conn) error) net.Conn {
	client, server := net.Pipe()
	done := make(chan error, 1)
	go func() { done <- do(server) }()
	t.Cleanup(func() {
		client.Close()
		server.Close()
		if err := <-done; err != nil {
			t.Errorf("server: %v", err)
		}
	})
	return client
}

func TestOpen(t *testing.T) {
	refusal := Answer{Code: Code_DENIED}
	cases := map[string]struct {
		why    string
		server func(net.Conn) error
		answer Answer
		code   Code
	}{
		"served": {"the ordinary case", func(c net.Conn) error {
			h, err := ReadHello(c)
			if err != nil || h != hello {
				return errors.Join(err, errors.New("wrong HELLO"))
			}
			return errors.Join(ReadOpen(c), readString(c, "first"), WriteHelloAnswer(c, answer), WriteOpenAnswer(c, Code_OK))
		}, answer, Code_OK},
		"refused at HELLO": {"the reason reaches the caller's agent", func(c net.Conn) error {
			_, err := ReadHello(c)
			return errors.Join(err, ReadOpen(c), readString(c, "first"), WriteHelloAnswer(c, refusal))
		}, refusal, Code_DENIED},
		"refused at OPEN": {"what HELLO taught is kept", func(c net.Conn) error {
			_, err := ReadHello(c)
			return errors.Join(err, ReadOpen(c), readString(c, "first"), WriteHelloAnswer(c, answer), WriteOpenAnswer(c, Code_POD_REFUSED))
		}, answer, Code_POD_REFUSED},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := Open(t.Context(), serve(t, c.server), hello, []byte("first"))
			if d := cmp.Diff(c.answer, got); d != "" {
				t.Errorf("%s (-want +got):\n%s", c.why, d)
			}
			var refused *Refused
			switch {
			case c.code == Code_OK && err != nil:
				t.Errorf("%s: %v", c.why, err)
			case c.code != Code_OK && (!errors.As(err, &refused) || refused.Code != c.code):
				t.Errorf("%s: %v, want code %v", c.why, err, c.code)
			}
		})
	}
}

func TestWarmThenAttach(t *testing.T) {
	client := serve(t, func(c net.Conn) error {
		_, err := ReadHello(c)
		return errors.Join(err, WriteHelloAnswer(c, answer), ReadOpen(c), readString(c, "first"), WriteOpenAnswer(c, Code_OK))
	})
	if a, err := Warm(t.Context(), client, hello); err != nil || !cmp.Equal(a, answer) {
		t.Fatalf("%+v, %v", a, err)
	}
	if err := Attach(t.Context(), client, []byte("first")); err != nil {
		t.Fatal(err)
	}
}

func readString(r io.Reader, want string) error {
	b := make([]byte, len(want))
	if _, err := io.ReadFull(r, b); err != nil || string(b) != want {
		return errors.Join(err, errors.New("read "+string(b)))
	}
	return nil
}

// A server that never answers holds a caller no longer than its context.
func TestOpenEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		defer client.Close()
		defer server.Close()
		go io.Copy(io.Discard, server)
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		start := time.Now()
		_, err := Open(ctx, client, hello, nil)
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 3*time.Second {
			t.Errorf("%v after %v, want %v after 3s", err, time.Since(start), context.DeadlineExceeded)
		}
	})
}

// After Open the connection has no deadline left: it carries an application's bytes for months.
func TestOpenLeavesNoDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		defer client.Close()
		defer server.Close()
		go func() {
			ReadHello(server)
			ReadOpen(server)
			WriteHelloAnswer(server, answer)
			WriteOpenAnswer(server, Code_OK)
			<-time.After(time.Hour)
			server.Write([]byte("late"))
		}()
		client.SetDeadline(time.Now().Add(5 * time.Second)) // the handshake's, say
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		if _, err := Open(ctx, client, hello, nil); err != nil {
			t.Fatal(err)
		}
		cancel()
		if err := readString(client, "late"); err != nil {
			t.Errorf("an hour later: %v", err)
		}
	})
}

// vector is one line of testdata/frames.json; bytes in hex.
type vector struct {
	Name, Bytes string
}

func TestFrameVectors(t *testing.T) {
	frames := []struct {
		name  string
		write func(io.Writer) error
	}{
		{"HELLO shop/bar:80", func(w io.Writer) error { return WriteHello(w, hello) }},
		{"HELLO shop/bar:80, OPEN, early data abc", func(w io.Writer) error { return WriteHelloOpen(w, hello, []byte("abc")) }},
		{"HELLO answer OK", func(w io.Writer) error { return WriteHelloAnswer(w, answer) }},
		{"HELLO answer DENIED", func(w io.Writer) error { return WriteHelloAnswer(w, Answer{Code: Code_DENIED}) }},
		{"OPEN", func(w io.Writer) error { return WriteOpen(w, nil) }},
		{"OPEN answer OK", func(w io.Writer) error { return WriteOpenAnswer(w, Code_OK) }},
		{"OPEN answer POD_TIMEOUT", func(w io.Writer) error { return WriteOpenAnswer(w, Code_POD_TIMEOUT) }},
	}
	var got []vector
	for _, f := range frames {
		got = append(got, vector{f.name, hex.EncodeToString(bytesOf(t, f.write))})
	}
	path := filepath.Join("testdata", "frames.json")
	if *update {
		b, _ := json.MarshalIndent(got, "", "  ")
		if err := os.WriteFile(path, append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var want []vector
	if err := json.Unmarshal(b, &want); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("the wire has changed (-want +got):\n%s", d)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(bytesOf(f, func(w io.Writer) error { return WriteHelloOpen(w, hello, []byte("abc")) }))
	f.Add(bytesOf(f, func(w io.Writer) error { return WriteHelloAnswer(w, answer) }))
	f.Add(bytesOf(f, func(w io.Writer) error { return WriteOpenAnswer(w, Code_OVERLOADED) }))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		if h, err := ReadHello(r); err == nil {
			again, err := ReadHello(bytes.NewReader(bytesOf(t, func(w io.Writer) error { return WriteHello(w, h) })))
			if err != nil || again != h {
				t.Fatalf("%+v again is %+v, %v", h, again, err)
			}
		}
		if read := len(b) - r.Len(); read > prefixLen+MaxFrame {
			t.Fatalf("%d bytes read for a frame", read)
		}
		var refused *Refused
		if a, err := ReadHelloAnswer(bytes.NewReader(b)); err == nil || errors.As(err, &refused) {
			again, _ := ReadHelloAnswer(bytes.NewReader(bytesOf(t, func(w io.Writer) error { return WriteHelloAnswer(w, a) })))
			if d := cmp.Diff(a, again, cmpopts.EquateEmpty()); d != "" {
				t.Fatalf("(-want +got):\n%s", d)
			}
		}
		ReadOpen(bytes.NewReader(b))
		ReadOpenAnswer(bytes.NewReader(b))
	})
}
