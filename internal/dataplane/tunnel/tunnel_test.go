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
	"math"
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
	"google.golang.org/protobuf/proto"

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

// zonedAnswer names the zones of some endpoints.
var zonedAnswer = Answer{
	Code: Code_OK, Endpoint: answer.Endpoint, Ready: []route.EndpointID{answer.Endpoint, {9}, {10}}, ReadyCount: 3,
	Generation: 77, Zones: []string{"eu-west-1a", "", "eu-west-1b"},
}

// credit is a CREDIT of a side that has taken half of the assured window.
var credit = Credit{Taken: AssuredWindow / 2, Window: 2 * AssuredWindow, Own: AssuredWindow}

func bytesOf(t testing.TB, write func(io.Writer) error) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := write(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// frame makes any frame, well-formed or not.
func frame(t Type, body []byte) []byte {
	return append(binary.BigEndian.AppendUint16([]byte{byte(t)}, uint16(len(body))), body...)
}

// reader is a connection from which only r can be read.
type reader struct {
	net.Conn
	r io.Reader
}

func (c reader) Read(b []byte) (int, error) { return c.r.Read(b) }

// reading returns a Conn that reads r.
func reading(r io.Reader) *Conn { return NewConn(reader{r: r}) }

// wantFrame takes the next frame.
func wantFrame(t *testing.T, c *Conn, want Type, body string) {
	t.Helper()
	got, n, err := c.Next()
	if err != nil || got != want {
		t.Fatalf("%v, %v; want %v", got, err, want)
	}
	c.ConsumePrefix()
	b := make([]byte, n)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != body {
		t.Fatalf("%q, %v; want %q", b, err, body)
	}
}

func TestReadersConsumeOneFrame(t *testing.T) {
	b := bytesOf(t, func(w io.Writer) error { return WriteHelloOpen(w, hello, 0, []byte("early")) })
	c := reading(iotest.OneByteReader(bytes.NewReader(append(b, "rest"...))))
	got, err := c.ReadHello()
	if err != nil || got != hello {
		t.Fatalf("%+v, %v; want %+v", got, err, hello)
	}
	if _, err := c.ReadOpen(); err != nil {
		t.Fatal(err)
	}
	wantFrame(t, c, TypeData, "early")
	if rest, _ := io.ReadAll(c); string(rest) != "rest" {
		t.Errorf("%q left", rest)
	}

	b = append(bytesOf(t, func(w io.Writer) error { return WriteHelloAnswer(w, answer) }),
		bytesOf(t, func(w io.Writer) error { return WriteOpenAnswer(w, Code_OK) })...)
	c = reading(iotest.OneByteReader(bytes.NewReader(append(b, "rest"...))))
	a, err := c.ReadHelloAnswer()
	if d := cmp.Diff(answer, a); err != nil || d != "" {
		t.Fatalf("%v (-want +got):\n%s", err, d)
	}
	if err := c.ReadOpenAnswer(); err != nil {
		t.Fatal(err)
	}
	if rest, _ := io.ReadAll(c); string(rest) != "rest" {
		t.Errorf("%q left after the answer", rest)
	}
}

// timeoutReader fails by a deadline before each byte.
type timeoutReader struct {
	r    io.Reader
	next bool
}

func (s *timeoutReader) Read(b []byte) (int, error) {
	if s.next = !s.next; s.next {
		return 0, os.ErrDeadlineExceeded
	}
	return s.r.Read(b[:1])
}

// A deadline wakes a reader between two exchanges: what it has read by then must not be
// lost.
func TestDeadlineLosesNoPrefix(t *testing.T) {
	b := bytesOf(t, func(w io.Writer) error { return WriteOpen(w, 0, []byte("early")) })
	c := reading(&timeoutReader{r: bytes.NewReader(b)})
	late := 0
	for {
		got, n, err := c.Next()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			late++
			continue
		}
		if err != nil || got != TypeOpen || n != 0 {
			t.Fatalf("%v of %d bytes, %v", got, n, err)
		}
		break
	}
	if late != PrefixLen {
		t.Errorf("%d deadlines, want %d", late, PrefixLen)
	}
	if got, _, err := c.Next(); err != nil || got != TypeOpen {
		t.Errorf("again: %v, %v; want the same frame until it is taken", got, err)
	}
}

// A RESET that crossed the other side's END belongs to the exchange that is over.
func TestReadOpenSkipsLateReset(t *testing.T) {
	reset := bytesOf(t, func(w io.Writer) error { return WriteEmpty(w, TypeReset) })
	open := bytesOf(t, func(w io.Writer) error { return WriteOpen(w, 0, nil) })
	answer := bytesOf(t, func(w io.Writer) error { return WriteOpenAnswer(w, Code_OK) })
	if _, err := reading(bytes.NewReader(slices.Concat(reset, open))).ReadOpen(); err != nil {
		t.Errorf("before OPEN: %v", err)
	}
	if err := reading(bytes.NewReader(slices.Concat(reset, answer))).ReadOpenAnswer(); err != nil {
		t.Errorf("before the answer: %v", err)
	}
	if _, err := reading(bytes.NewReader(slices.Concat(reset, reset, open))).ReadOpen(); !errors.Is(err, ErrUnexpectedFrame) {
		t.Errorf("twice: %v, want %v", err, ErrUnexpectedFrame)
	}
}

// CREDIT that crossed the other side's last frame is of no use any more. A side that has
// nothing else to say is not waited for.
func TestReadersSkipLateCredit(t *testing.T) {
	late := bytesOf(t, func(w io.Writer) error { return WriteCredit(w, credit) })
	reset := bytesOf(t, func(w io.Writer) error { return WriteEmpty(w, TypeReset) })
	open := bytesOf(t, func(w io.Writer) error { return WriteOpen(w, 0, nil) })
	idle := bytesOf(t, func(w io.Writer) error { return WriteEmpty(w, TypeIdle) })
	if _, err := reading(bytes.NewReader(slices.Concat(late, reset, late, open))).ReadOpen(); err != nil {
		t.Errorf("before OPEN: %v", err)
	}
	if err := reading(bytes.NewReader(slices.Concat(late, late, late, idle))).ReadIdle(); err != nil {
		t.Errorf("before IDLE: %v", err)
	}
	many := bytes.Repeat(late, maxLateCredits+1)
	if _, err := reading(bytes.NewReader(slices.Concat(many, open))).ReadOpen(); !errors.Is(err, ErrUnexpectedFrame) {
		t.Errorf("too often: %v, want %v", err, ErrUnexpectedFrame)
	}
}

func TestCredit(t *testing.T) {
	got, err := reading(bytes.NewReader(bytesOf(t, func(w io.Writer) error { return WriteCredit(w, credit) }))).ReadCredit()
	if err != nil || got != credit {
		t.Errorf("%+v, %v; want %+v", got, err, credit)
	}
	for name, bad := range map[string]Credit{
		"no window":     {Window: AssuredWindow - 1, Own: AssuredWindow},
		"no own window": {Window: AssuredWindow, Own: 0},
		"too much":      {Window: 1 << 31, Own: AssuredWindow},
		"too much taken": {
			Taken:  1 << 31,
			Window: AssuredWindow,
			Own:    AssuredWindow,
		},
	} {
		if err := WriteCredit(io.Discard, bad); !errors.Is(err, ErrBadFrame) {
			t.Errorf("write %s: %v, want %v", name, err, ErrBadFrame)
		}
		b := binary.BigEndian.AppendUint32(nil, bad.Taken)
		b = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b, bad.Window), bad.Own)
		if _, err := reading(bytes.NewReader(frame(TypeCredit, b))).ReadCredit(); !errors.Is(err, ErrBadFrame) {
			t.Errorf("read %s: %v, want %v", name, err, ErrBadFrame)
		}
	}
	for name, b := range map[string][]byte{
		"short": frame(TypeCredit, make([]byte, 11)),
		"cut":   frame(TypeCredit, make([]byte, 12))[:9],
		"other": frame(TypeEnd, nil),
	} {
		if _, err := reading(bytes.NewReader(b)).ReadCredit(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func FuzzReadCredit(f *testing.F) {
	f.Add(bytesOf(f, func(w io.Writer) error { return WriteCredit(w, credit) }))
	f.Add(frame(TypeCredit, make([]byte, 12)))
	f.Add(frame(TypeCredit, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		c, err := reading(r).ReadCredit()
		if read := len(b) - r.Len(); read > PrefixLen+creditLen {
			t.Fatalf("%d bytes read", read)
		}
		if err != nil {
			return
		}
		if again := bytesOf(t, func(w io.Writer) error { return WriteCredit(w, c) }); !bytes.Equal(again, b[:len(again)]) {
			t.Fatalf("%+v from %x is %x again", c, b, again)
		}
		// Late frames before OPEN: the reader ends.
		reading(bytes.NewReader(b)).ReadOpen()
	})
}

type countWrites struct{ n int }

func (c *countWrites) Write(b []byte) (int, error) { c.n++; return len(b), nil }

func TestHelloAndOpenUseOneWrite(t *testing.T) {
	var w countWrites
	if err := WriteHelloOpen(&w, hello, 0, []byte("GET /")); err != nil || w.n != 1 {
		t.Errorf("%d writes, %v; each write is a TLS record and perhaps a segment", w.n, err)
	}
}

func varintField(n protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, n, protowire.VarintType), v)
}

func bytesField(n protowire.Number, v string) []byte {
	return protowire.AppendString(protowire.AppendTag(nil, n, protowire.BytesType), v)
}

func TestReadersRejectBadFrames(t *testing.T) {
	good := bytesOf(t, func(w io.Writer) error { return WriteHello(w, hello) })
	readHello := func(c *Conn) error { _, err := c.ReadHello(); return err }
	readAnswer := func(c *Conn) error { _, err := c.ReadHelloAnswer(); return err }
	readOpen := func(c *Conn) error { _, err := c.ReadOpen(); return err }
	ok := varintField(1, uint64(Code_OK))
	cases := map[string]struct {
		why  string
		in   []byte
		read func(*Conn) error
		err  error
	}{
		"other type":         {"frames come in one order", frame(TypeOpen, nil), readHello, ErrUnexpectedFrame},
		"unknown type":       {"what is not known is not guessed", frame(TypeRenewAnswer+1, nil), readHello, ErrUnexpectedFrame},
		"HTTP":               {"an application's bytes are no frame", []byte("GET / HTTP/1.1\r\n"), readHello, ErrUnexpectedFrame},
		"too long":           {"memory is bounded", frame(TypeHello, make([]byte, MaxFrame+1)), readHello, ErrFrameTooLong},
		"END with a body":    {"it has none", frame(TypeEnd, []byte{1}), readOpen, ErrFrameTooLong},
		"much DATA":          {"four records", frame(TypeData, make([]byte, MaxData+1)), readOpen, ErrFrameTooLong},
		"not protobuf":       {"strangers' bytes", frame(TypeHello, []byte{0xff}), readHello, ErrBadFrame},
		"cut in the prefix":  {"an end is not a frame", good[:2], readHello, io.ErrUnexpectedEOF},
		"cut before body":    {"an end is not a frame", good[:3], readHello, io.ErrUnexpectedEOF},
		"cut in the body":    {"an end is not a frame", good[:5], readHello, io.ErrUnexpectedEOF},
		"end":                {"a session that nobody wants any more", nil, readOpen, io.EOF},
		"empty HELLO":        {"nothing is named", frame(TypeHello, nil), readHello, ErrBadFrame},
		"port 0":             {"no such port", frame(TypeHello, append(bytesField(1, "shop"), bytesField(2, "bar")...)), readHello, ErrBadFrame},
		"port 65536":         {"no such port", frame(TypeHello, slices.Concat(bytesField(1, "shop"), bytesField(2, "bar"), varintField(3, 65536))), readHello, ErrBadFrame},
		"escape in a name":   {"peers' text reaches logs and terminals", frame(TypeHello, slices.Concat(bytesField(1, "shop\x1b[2J"), bytesField(2, "bar"), varintField(3, 80))), readHello, ErrBadFrame},
		"slash in a name":    {"ns/service must have one reading", frame(TypeHello, slices.Concat(bytesField(1, "a/b"), bytesField(2, "bar"), varintField(3, 80))), readHello, ErrBadFrame},
		"no code":            {"an answer without a code is broken", frame(TypeHelloAnswer, nil), readAnswer, ErrBadFrame},
		"unknown code":       {"the list is closed", frame(TypeHelloAnswer, varintField(1, 99)), readAnswer, ErrBadFrame},
		"unknown speaker":    {"the list is closed", frame(TypeHelloAnswer, slices.Concat(ok, varintField(7, 3))), readAnswer, ErrBadFrame},
		"short id":           {"ids have 8 bytes", frame(TypeHelloAnswer, slices.Concat(ok, bytesField(2, "1234567"))), readAnswer, ErrBadFrame},
		"short ready id":     {"ids have 8 bytes", frame(TypeHelloAnswer, slices.Concat(ok, bytesField(3, "1"))), readAnswer, ErrBadFrame},
		"65 ready ids":       {"a peer's word is bounded", frame(TypeHelloAnswer, slices.Concat(ok, slices.Repeat(bytesField(3, "12345678"), 65))), readAnswer, ErrBadFrame},
		"OPEN without code":  {"an answer without a code is broken", frame(TypeOpenAnswer, nil), (*Conn).ReadOpenAnswer, ErrBadFrame},
		"OPEN, unknown code": {"the list is closed", frame(TypeOpenAnswer, varintField(1, 99)), (*Conn).ReadOpenAnswer, ErrBadFrame},
	}
	for name, c := range cases {
		if err := c.read(reading(bytes.NewReader(c.in))); !errors.Is(err, c.err) {
			t.Errorf("%s: %v, want %v (%s)", name, err, c.err, c.why)
		}
	}
}

func TestWritersRejectBadValues(t *testing.T) {
	for name, write := range map[string]func(io.Writer) error{
		"HELLO without a name":  func(w io.Writer) error { return WriteHello(w, Hello{Port: 1}) },
		"answer without a code": func(w io.Writer) error { return WriteHelloAnswer(w, Answer{}) },
		"65 ready ids": func(w io.Writer) error {
			return WriteHelloAnswer(w, Answer{Code: Code_OK, Ready: make([]route.EndpointID, 65)})
		},
		"OPEN answer, no code":   func(w io.Writer) error { return WriteOpenAnswer(w, Code_CODE_UNSPECIFIED) },
		"OPEN answer, odd code":  func(w io.Writer) error { return WriteOpenAnswer(w, 99) },
		"HELLO with a long name": func(w io.Writer) error { return WriteHelloOpen(w, Hello{strings.Repeat("a", 64), "b", 1}, 0, nil) },
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
	got, err := reading(bytes.NewReader(b)).ReadHelloAnswer()
	if d := cmp.Diff(a, got); err != nil || d != "" {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
}

// A field added by a later version is passed over; a later meaning of an old field is
// not.
func TestReadersIgnoreUnknownFields(t *testing.T) {
	body := slices.Concat(bytesField(1, "shop"), bytesField(2, "bar"), varintField(3, 80), bytesField(15, "new"))
	got, err := reading(bytes.NewReader(frame(TypeHello, body))).ReadHello()
	if err != nil || got != hello {
		t.Errorf("%+v, %v; want %+v", got, err, hello)
	}
	body = slices.Concat(varintField(1, uint64(Code_OK)), varintField(6, 7), bytesField(15, "new"))
	if got, err := reading(bytes.NewReader(frame(TypeHelloAnswer, body))).ReadHelloAnswer(); err != nil || got.Budget != 7 {
		t.Errorf("HELLO answer: %+v, %v", got, err)
	}
	body = slices.Concat(varintField(1, 3000), bytesField(15, "new"))
	if got, err := reading(bytes.NewReader(frame(TypeOpen, body))).ReadOpen(); err != nil || got.AppTimeout != 3*time.Second {
		t.Errorf("OPEN: %+v, %v", got, err)
	}
	body = slices.Concat(varintField(1, uint64(Code_OK)), bytesField(15, "new"))
	if err := reading(bytes.NewReader(frame(TypeOpenAnswer, body))).ReadOpenAnswer(); err != nil {
		t.Errorf("OPEN answer: %v", err)
	}
}

// serve plays the server at the end of a pipe.
func serve(t *testing.T, do func(*Conn) error) *Conn {
	client, server := net.Pipe()
	done := make(chan error, 1)
	go func() { done <- do(NewConn(server)) }()
	t.Cleanup(func() {
		client.Close()
		server.Close()
		if err := <-done; err != nil {
			t.Errorf("server: %v", err)
		}
	})
	return NewConn(client)
}

// readEarly reads OPEN and the first bytes.
func readEarly(c *Conn, want string) error {
	if open, err := c.ReadOpen(); err != nil || open.AppTimeout != 3*time.Second {
		return errors.Join(err, errors.New("wrong patience"))
	}
	t, n, err := c.Next()
	if err != nil || t != TypeData || n != len(want) {
		return errors.Join(err, errors.New("no first bytes"))
	}
	c.ConsumePrefix()
	return readString(c, want)
}

func TestOpen(t *testing.T) {
	refusal := Answer{Code: Code_DENIED}
	cases := map[string]struct {
		why      string
		server   func(*Conn) error
		answer   Answer
		code     Code
		reusable bool
	}{
		"served": {"the ordinary case", func(c *Conn) error {
			h, err := c.ReadHello()
			if err != nil || h != hello {
				return errors.Join(err, errors.New("wrong HELLO"))
			}
			return errors.Join(readEarly(c, "first"), WriteHelloAnswer(c, answer), WriteOpenAnswer(c, Code_OK))
		}, answer, Code_OK, false},
		"refused at HELLO": {"the reason reaches the caller's agent", func(c *Conn) error {
			_, err := c.ReadHello()
			return errors.Join(err, readEarly(c, "first"), WriteHelloAnswer(c, refusal))
		}, refusal, Code_DENIED, false},
		"HELLO refused by a code of OPEN's": {"after a refused HELLO the server closes", func(c *Conn) error {
			_, err := c.ReadHello()
			return errors.Join(err, readEarly(c, "first"), WriteHelloAnswer(c, Answer{Code: Code_POD_REFUSED}))
		}, Answer{Code: Code_POD_REFUSED}, Code_POD_REFUSED, false},
		"refused at OPEN": {"the session can be used again", func(c *Conn) error {
			_, err := c.ReadHello()
			return errors.Join(err, readEarly(c, "first"), WriteHelloAnswer(c, answer), WriteOpenAnswer(c, Code_POD_REFUSED),
				c.Discard(100, time.Now().Add(time.Minute)))
		}, answer, Code_POD_REFUSED, true},
		"refused at OPEN for good": {"the caller may not call any more", func(c *Conn) error {
			_, err := c.ReadHello()
			return errors.Join(err, readEarly(c, "first"), WriteHelloAnswer(c, answer), WriteOpenAnswer(c, Code_DENIED))
		}, answer, Code_DENIED, false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := serve(t, c.server).Open(t.Context(), hello, 3*time.Second, []byte("first"))
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
			if Reusable(err) != c.reusable {
				t.Errorf("%s: reusable %v after %v", c.why, !c.reusable, err)
			}
		})
	}
}

func TestExchangeHelloThenOpenNext(t *testing.T) {
	client := serve(t, func(c *Conn) error {
		_, err := c.ReadHello()
		return errors.Join(err, WriteHelloAnswer(c, answer), readEarly(c, "first"), WriteOpenAnswer(c, Code_OK))
	})
	if a, err := client.ExchangeHello(t.Context(), hello); err != nil || !cmp.Equal(a, answer) {
		t.Fatalf("%+v, %v", a, err)
	}
	if err := client.OpenNext(t.Context(), 3*time.Second, []byte("first")); err != nil {
		t.Fatal(err)
	}
}

func TestDiscard(t *testing.T) {
	data := frame(TypeData, []byte("0123456789"))
	cases := map[string]struct {
		in []byte
		ok bool
	}{
		"nothing":     {frame(TypeReset, nil), true},
		"END":         {slices.Concat(data, frame(TypeEnd, nil)), true},
		"some":        {slices.Concat(data, data, frame(TypeReset, nil)), true},
		"too much":    {slices.Concat(data, data, data, frame(TypeReset, nil)), false},
		"other frame": {frame(TypeHello, nil), false},
		"cut":         {data[:5], false},
	}
	for name, c := range cases {
		client, server := net.Pipe()
		go func() { client.Write(c.in); client.Close() }()
		if err := NewConn(server).Discard(20, time.Now().Add(time.Minute)); (err == nil) != c.ok {
			t.Errorf("%s: %v, want success: %v", name, err, c.ok)
		}
		server.Close()
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
func TestOpenEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		defer client.Close()
		defer server.Close()
		go io.Copy(io.Discard, server)
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		start := time.Now()
		_, err := NewConn(client).Open(ctx, hello, 0, nil)
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 3*time.Second {
			t.Errorf("%v after %v, want %v after 3s", err, time.Since(start), context.DeadlineExceeded)
		}
	})
}

// After Open the connection has no deadline left: it carries an application's bytes for
// months.
func TestOpenLeavesNoDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		defer client.Close()
		defer server.Close()
		go func() {
			c := NewConn(server)
			c.ReadHello()
			c.ReadOpen()
			WriteHelloAnswer(server, answer)
			WriteOpenAnswer(server, Code_OK)
			<-time.After(time.Hour)
			server.Write([]byte("late"))
		}()
		client.SetDeadline(time.Now().Add(5 * time.Second)) // the handshake's, say
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		if _, err := NewConn(client).Open(ctx, hello, 0, nil); err != nil {
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
		{"HELLO shop/bar:80, OPEN, DATA abc", func(w io.Writer) error { return WriteHelloOpen(w, hello, 0, []byte("abc")) }},
		{"HELLO answer OK", func(w io.Writer) error { return WriteHelloAnswer(w, answer) }},
		{"HELLO answer OK with zones", func(w io.Writer) error { return WriteHelloAnswer(w, zonedAnswer) }},
		{"HELLO answer DENIED", func(w io.Writer) error { return WriteHelloAnswer(w, Answer{Code: Code_DENIED}) }},
		{"OPEN", func(w io.Writer) error { return WriteOpen(w, 0, nil) }},
		{"OPEN with a patience of 3 s", func(w io.Writer) error { return WriteOpen(w, 3*time.Second, nil) }},
		{"OPEN, DATA abc", func(w io.Writer) error { return WriteOpen(w, 0, []byte("abc")) }},
		{"END", func(w io.Writer) error { return WriteEmpty(w, TypeEnd) }},
		{"IDLE", func(w io.Writer) error { return WriteEmpty(w, TypeIdle) }},
		{"RESET", func(w io.Writer) error { return WriteEmpty(w, TypeReset) }},
		{"CREDIT for 32 KiB, windows of 128 and 64 KiB", func(w io.Writer) error { return WriteCredit(w, credit) }},
		{"OPEN answer OK", func(w io.Writer) error { return WriteOpenAnswer(w, Code_OK) }},
		{"RENEW of two sessions", func(w io.Writer) error { return WriteRenew(w, renewals) }},
		{"RENEW answer OK, one is unknown", func(w io.Writer) error { return WriteRenewAnswer(w, Code_OK, proofs) }},
		{"RENEW answer OVERLOADED", func(w io.Writer) error { return WriteRenewAnswer(w, Code_OVERLOADED, nil) }},
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
	f.Add(bytesOf(f, func(w io.Writer) error { return WriteHelloOpen(w, hello, 0, []byte("abc")) }))
	f.Add(bytesOf(f, func(w io.Writer) error { return WriteHelloAnswer(w, answer) }))
	f.Add(bytesOf(f, func(w io.Writer) error { return WriteHelloAnswer(w, zonedAnswer) }))
	f.Add(bytesOf(f, func(w io.Writer) error { return WriteOpenAnswer(w, Code_OVERLOADED) }))
	f.Add(bytesOf(f, func(w io.Writer) error { return WriteEmpty(w, TypeReset) }))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		if h, err := reading(r).ReadHello(); err == nil {
			again, err := reading(bytes.NewReader(bytesOf(t, func(w io.Writer) error { return WriteHello(w, h) }))).ReadHello()
			if err != nil || again != h {
				t.Fatalf("%+v again is %+v, %v", h, again, err)
			}
		}
		if read := len(b) - r.Len(); read > PrefixLen+MaxFrame {
			t.Fatalf("%d bytes read for a frame", read)
		}
		var refused *Refused
		if a, err := reading(bytes.NewReader(b)).ReadHelloAnswer(); err == nil || errors.As(err, &refused) {
			again, _ := reading(bytes.NewReader(bytesOf(t, func(w io.Writer) error { return WriteHelloAnswer(w, a) }))).ReadHelloAnswer()
			if d := cmp.Diff(a, again, cmpopts.EquateEmpty()); d != "" {
				t.Fatalf("(-want +got):\n%s", d)
			}
		}
		reading(bytes.NewReader(b)).ReadOpen()
		reading(bytes.NewReader(b)).ReadOpenAnswer()
	})
}

// FuzzDiscard feeds what follows a refused OPEN: whatever it is, its reader ends, and
// takes no more than it was told.
func FuzzDiscard(f *testing.F) {
	f.Add(slices.Concat(frame(TypeData, []byte("abc")), frame(TypeReset, nil)))
	f.Fuzz(func(t *testing.T, b []byte) {
		const most = 100
		r := bytes.NewReader(b)
		err := NewConn(noDeadlineReader{reader{r: r}}).Discard(most, time.Time{})
		read := len(b) - r.Len()
		if frames := read/PrefixLen + 1; read > most+frames*PrefixLen {
			t.Fatalf("%d bytes read, %v", read, err)
		}
	})
}

// noDeadlineReader takes deadlines and forgets them.
type noDeadlineReader struct{ reader }

func (noDeadlineReader) SetReadDeadline(time.Time) error { return nil }

// The zones in an answer are bounded, and an invalid name counts as an unknown zone.
func TestZonesOfAnswer(t *testing.T) {
	ready := [][]byte{make([]byte, 8), make([]byte, 8)}
	read := func(m *HelloAnswer) (Answer, error) {
		m.Code, m.ReadyIds = Code_OK, ready
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return reading(bytes.NewReader(frame(TypeHelloAnswer, b))).ReadHelloAnswer()
	}
	cases := map[string]struct {
		message *HelloAnswer
		want    []string
		broken  bool
	}{
		"none":            {message: &HelloAnswer{}},
		"names alone":     {message: &HelloAnswer{Zones: []string{"a"}}},
		"known":           {message: &HelloAnswer{Zones: []string{"a"}, ReadyZones: []byte{0, 1}}, want: []string{"", "a"}},
		"out of range":    {message: &HelloAnswer{Zones: []string{"a"}, ReadyZones: []byte{1, 2}}, want: []string{"a", ""}},
		"long":            {message: &HelloAnswer{Zones: []string{strings.Repeat("z", 64), "b"}, ReadyZones: []byte{1, 2}}, want: []string{"", "b"}},
		"strange":         {message: &HelloAnswer{Zones: []string{"a\nb"}, ReadyZones: []byte{1, 1}}},
		"too few for ids": {message: &HelloAnswer{Zones: []string{"a"}, ReadyZones: []byte{1}}, broken: true},
		"more than ids":   {message: &HelloAnswer{Zones: []string{"a"}, ReadyZones: []byte{1, 1, 1}}, broken: true},
	}
	for name, c := range cases {
		a, err := read(c.message)
		if errors.Is(err, ErrBadFrame) != c.broken || !slices.Equal(a.Zones, c.want) {
			t.Errorf("%s: %q, %v; want %q, broken %v", name, a.Zones, err, c.want, c.broken)
		}
	}
	full := Answer{Code: Code_OK, ReadyCount: math.MaxUint32, Generation: math.MaxUint64, Budget: math.MaxUint32}
	for i := range route.MaxReadyIDs {
		full.Ready = append(full.Ready, route.EndpointID{255, byte(i)})
		full.Zones = append(full.Zones, strings.Repeat(string(rune('a'+i%route.MaxZones)), 63))
	}
	b := bytesOf(t, func(w io.Writer) error { return WriteHelloAnswer(w, full) })
	if a, err := reading(bytes.NewReader(b)).ReadHelloAnswer(); err != nil || !slices.Equal(a.Zones, full.Zones) {
		t.Errorf("the longest answer: %d zones, %v", len(a.Zones), err)
	}
}
