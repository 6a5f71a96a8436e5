package h1

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
)

// steps is a connection whose reads return its parts one after the other. An empty part
// is an expired deadline.
type steps struct {
	parts   []string
	waits   int
	waiting func() // is called while the Reader waits, if not nil
	failure error  // of ReadWhenReady
}

func (s *steps) Read(p []byte) (int, error) {
	if len(s.parts) == 0 {
		return 0, io.EOF
	}
	if s.parts[0] == "" {
		s.parts = s.parts[1:]
		return 0, os.ErrDeadlineExceeded
	}
	n := copy(p, s.parts[0])
	if s.parts[0] = s.parts[0][n:]; s.parts[0] == "" {
		s.parts = s.parts[1:]
	}
	return n, nil
}

func (s *steps) ReadWhenReady(memory func() []byte, drop func()) (int, error) {
	memory()
	drop() // nothing was there
	s.waits++
	if s.waiting != nil {
		s.waiting()
	}
	if s.failure != nil {
		return 0, s.failure
	}
	return s.Read(memory())
}

func mustReadRequest(t *testing.T, r *Reader, h *message.Head) Framing {
	t.Helper()
	f, err := r.ReadRequest(h)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestReaderHoldsNoBufferWhileIdle(t *testing.T) {
	const get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
	const post = " / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nab"
	c := &steps{parts: []string{get, get + "POST", post, "c"}}
	r := NewReader(c, Limits{})
	c.waiting = func() {
		if r.HasBuffer() {
			t.Error("the Reader holds a buffer while it waits")
		}
	}
	var h message.Head
	mustReadRequest(t, r, &h)
	if r.HasBuffer() || c.waits != 1 {
		t.Errorf("after a request: buffer %v, %d waits", r.HasBuffer(), c.waits)
	}
	mustReadRequest(t, r, &h)
	if !r.HasBuffer() || string(r.Buffered()) != "POST" {
		t.Errorf("in a pipeline: buffer %v, %q", r.HasBuffer(), r.Buffered())
	}
	mustReadRequest(t, r, &h)
	if c.waits != 2 {
		t.Errorf("%d waits, though there were bytes", c.waits)
	}
	p := make([]byte, 10)
	if n, err := r.ReadBody(p); string(p[:n]) != "ab" || err != nil || r.HasBuffer() {
		t.Errorf("body: %q, %v, buffer %v", p[:n], err, r.HasBuffer())
	}
	if n, err := r.ReadBody(p); string(p[:n]) != "c" || err != io.EOF || r.HasBuffer() {
		t.Errorf("body: %q, %v, buffer %v", p[:n], err, r.HasBuffer())
	}
	if _, err := r.ReadRequest(&h); err != io.EOF || r.HasBuffer() {
		t.Errorf("end: %v, buffer %v", err, r.HasBuffer())
	}
	c.failure = os.ErrDeadlineExceeded
	if _, err := r.ReadRequest(&h); !errors.Is(err, os.ErrDeadlineExceeded) || r.HasBuffer() {
		t.Errorf("failed wait: %v, buffer %v", err, r.HasBuffer())
	}
}

func TestReaderGoesOnAfterADeadline(t *testing.T) {
	c := &steps{parts: []string{
		"", "\r", "", "\nPOST / HTTP/1.1\r\nHost: a\r", "", "\nTransfer-Encoding: chunked\r\n\r", "",
		"\n3", "", ";x\r\na", "", "bc\r", "", "\n0\r\nA: ", "", "b\r\n\r", "", "\n",
	}}
	r := NewReader(c, Limits{})
	var h message.Head
	deadlines := 0
	for {
		_, err := r.ReadRequest(&h)
		if err == nil {
			break
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		deadlines++
	}
	body := ""
	for p := make([]byte, 8); ; {
		n, err := r.ReadBody(p)
		body += string(p[:n])
		if err == io.EOF {
			break
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		if err != nil {
			deadlines++
		}
	}
	if body != "abc" || deadlines != 9 {
		t.Errorf("body %q after %d deadlines", body, deadlines)
	}
	if diff := cmp.Diff(fields("A: b"), r.Trailers()); diff != "" {
		t.Errorf("trailers (-want +got):\n%s", diff)
	}
}

func TestReaderReadsPipelinedRequests(t *testing.T) {
	input := "POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab" +
		"\r\nPOST /2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nc\r\n0\r\nT: 1\r\n\r\n" +
		"GET /3 HTTP/1.0\r\n\r\n"
	for name, c := range map[string]io.Reader{
		"whole":                strings.NewReader(input),
		"single bytes":         iotest.OneByteReader(strings.NewReader(input)),
		"the end with bytes":   iotest.DataErrReader(strings.NewReader(input)),
		"halves of the buffer": iotest.HalfReader(strings.NewReader(input)),
	} {
		t.Run(name, func(t *testing.T) {
			r := NewReader(c, Limits{})
			var h message.Head
			var got []string
			for {
				_, err := r.ReadRequest(&h)
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				body := ""
				for p := make([]byte, 2); !r.BodyDone(); {
					n, err := r.ReadBody(p)
					if body += string(p[:n]); err != nil && err != io.EOF {
						t.Fatal(err)
					}
				}
				got = append(got, h.Target+" "+body+" "+string(rune('0'+len(r.Trailers()))))
			}
			if diff := cmp.Diff([]string{"/1 ab 0", "/2 c 1", "/3  0"}, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestReadBufferedDoesNotRead(t *testing.T) {
	for name, tc := range map[string]struct {
		parts    []string
		buffered int
		want     string
		end      bool
	}{
		"length, whole": {[]string{"Content-Length: 3\r\n\r\nabcd"}, 3, "abc", true},
		"length, part":  {[]string{"Content-Length: 3\r\n\r\nab", "c"}, 2, "ab", false},
		"length, none":  {[]string{"Content-Length: 3\r\n\r\n", "abc"}, 0, "", false},
		"chunked, whole": {
			[]string{"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n"},
			18,
			"abc",
			true,
		},
		"chunked, part": {
			[]string{"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n2\r\nb", "c\r\n"},
			10,
			"ab",
			false,
		},
		"chunked, size": {[]string{"Transfer-Encoding: chunked\r\n\r\n1", "\r\na\r\n"}, 1, "", false},
		"until close":   {[]string{"\r\nab", "c"}, 2, "ab", false},
		"no body":       {[]string{"Content-Length: 0\r\n\r\nab"}, 0, "", true},
	} {
		t.Run(name, func(t *testing.T) {
			tc.parts[0] = "HTTP/1.1 200 OK\r\n" + tc.parts[0]
			c := &steps{parts: tc.parts}
			r := NewReader(c, Limits{})
			var h message.Head
			if _, err := r.ReadResponse(&h, "GET"); err != nil {
				t.Fatal(err)
			}
			left := len(c.parts)
			if n := r.BodyBuffered(); n != tc.buffered {
				t.Errorf("%d bytes are buffered, want %d", n, tc.buffered)
			}
			p := make([]byte, 10)
			n, err := r.ReadBuffered(p)
			if string(p[:n]) != tc.want || (err == io.EOF) != tc.end || err != nil && err != io.EOF {
				t.Errorf("got %q, %v", p[:n], err)
			}
			if r.BodyDone() != tc.end || len(c.parts) != left {
				t.Errorf("done %v, %d parts left of %d", r.BodyDone(), len(c.parts), left)
			}
			if !tc.end {
				if n, err := r.ReadBuffered(p); n != 0 || err != nil {
					t.Errorf("once more: %d, %v", n, err)
				}
			}
		})
	}
}

func TestResponseFramingByRequest(t *testing.T) {
	for name, tc := range map[string]struct {
		input, method string
		want          Framing
		rest          string
	}{
		"HEAD with length": {"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nHTTP", "HEAD", Framing{}, "HTTP"},
		"HEAD with coding": {
			"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nHTTP",
			"HEAD",
			Framing{},
			"HTTP",
		},
		"HEAD with nothing": {"HTTP/1.1 200 OK\r\n\r\nHTTP", "HEAD", Framing{}, "HTTP"},
		"CONNECT": {
			"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n\x16\x03",
			"CONNECT",
			Framing{},
			"\x16\x03",
		},
		"refused CONNECT": {
			"HTTP/1.1 403 No\r\nContent-Length: 3\r\n\r\nabcH",
			"CONNECT",
			Framing{Length, 3},
			"H",
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := read(tc.input, tc.method, nil, Limits{})
			if o.Error != "" || o.Framing != tc.want || o.Rest != tc.rest {
				t.Errorf("got %+v", o)
			}
		})
	}
}

func TestHeadIsReadAsSent(t *testing.T) {
	o := read("pATCH /%7E//..?%zz HTTP/1.0\r\nhOST: A:80\r\nX:\t a  b \t\r\nx:\r\n\r\n", "", nil, Limits{})
	want := message.Head{
		Version: message.HTTP10,
		Method:  "pATCH",
		Target:  "/%7E//..?%zz",
		Fields:  fields("hOST: A:80", "X: a  b", "x: "),
	}
	if diff := cmp.Diff(want, o.Head); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	o = read("HTTP/1.1 404  Not  \xe9 \r\n\r\n", "GET", nil, Limits{})
	want = message.Head{Version: message.HTTP11, Status: 404, Reason: " Not  \xe9 "}
	if diff := cmp.Diff(want, o.Head, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestLimits(t *testing.T) {
	const start, end = "GET / HTTP/1.1\r\nHost: a\r\n", "\r\n"
	// value makes a head of exactly n bytes without its empty line.
	value := func(n int) string {
		return start + "A: " + strings.Repeat("v", n-len(start)-len("A: \r\n")) + "\r\n" + end
	}
	target := func(n int) string {
		const line, version = "GET /", " HTTP/1.1"
		return line + strings.Repeat("a", n-len(line)-len(version)) + version + "\r\nHost: a\r\n\r\n"
	}
	chunked := start + "Transfer-Encoding: chunked\r\n\r\n0\r\n"
	trailer := func(n int) string {
		return chunked + "A: " + strings.Repeat("v", n-len("A: \r\n")) + "\r\n\r\n"
	}
	for name, tc := range map[string]struct {
		input, want string
		limits      Limits
	}{
		"head as large as may be": {input: value(100 << 10)},
		"head too large":          {input: value(100<<10 + 1), want: "431 head_too_large"},
		"head without end": {
			input: strings.TrimSuffix(value(200<<10), "\r\n\r\n"),
			want:  "431 head_too_large",
		},
		"small head limit": {
			input:  value(201),
			want:   "431 head_too_large",
			limits: Limits{Head: 200},
		},
		"line as long as may be": {input: target(32 << 10)},
		"line too long":          {input: target(32<<10 + 1), want: "414 start_line_too_long"},
		"line without end": {
			input: "GET /" + strings.Repeat("a", 40<<10),
			want:  "414 start_line_too_long",
		},
		"as many fields as may be": {input: start + strings.Repeat("A: b\r\n", 255) + end},
		"too many fields": {
			input: start + strings.Repeat("A: b\r\n", 256) + end,
			want:  "431 too_many_fields",
		},
		"trailers as large as may be": {input: trailer(16 << 10)},
		"trailers too large":          {input: trailer(16<<10 + 1), want: "431 trailers_too_large"},
		"trailers without end": {
			input: chunked + "A: " + strings.Repeat("v", 20<<10),
			want:  "431 trailers_too_large",
		},
		"too many trailers": {
			input: chunked + strings.Repeat("A: b\r\n", 257) + end,
			want:  "431 too_many_fields",
		},
		"chunk line without end": {
			input: strings.TrimSuffix(chunked, "0\r\n") + "1;" + strings.Repeat("a", 300),
			want:  "400 chunk_line_too_long",
		},
		"no empty lines": {
			input:  end + start + end,
			want:   "400 empty_lines",
			limits: Limits{EmptyLines: -1},
		},
		"a limit counts for each head": {input: end + end + start + end},
	} {
		t.Run(name, func(t *testing.T) {
			if got := read(tc.input, "", nil, tc.limits).Error; got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			if got := read(tc.input, "", []byte{1, 200, 255, 13}, tc.limits).Error; got != tc.want {
				t.Errorf("in parts: got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestLargeHeadLeavesItsBuffer(t *testing.T) {
	large := "GET / HTTP/1.1\r\nHost: a\r\nA: " + strings.Repeat("v", 90<<10) + "\r\n\r\n"
	r := NewReader(strings.NewReader(large+large+"rest"), Limits{})
	var h message.Head
	for range 2 {
		mustReadRequest(t, r, &h)
		if v, _ := h.Get("A"); len(v) != 90<<10 {
			t.Fatalf("the value has %d bytes", len(v))
		}
	}
	p := string(r.Buffered())
	for p != "rest" {
		if err := r.Fill(); err != nil {
			t.Fatal(err)
		}
		p = string(r.Buffered())
	}
	r.Close()
	if r.HasBuffer() || len(r.Buffered()) != 0 {
		t.Error("the Reader holds a buffer after Close")
	}
}

func TestErrorsStay(t *testing.T) {
	r := NewReader(strings.NewReader("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n"), Limits{})
	var h message.Head
	if _, err := r.ReadResponse(&h, "GET"); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 1)
	for range 2 {
		if _, err := r.ReadBody(p); describe(err) != "502 invalid_chunk_size" {
			t.Errorf("got %v", err)
		}
	}
	if _, err := r.ReadResponse(&h, "GET"); describe(err) != "502 invalid_chunk_size" {
		t.Errorf("got %v", err)
	}
}

func TestUnreadBodyIsAMistake(t *testing.T) {
	r := NewReader(strings.NewReader("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"), Limits{})
	var h message.Head
	mustReadRequest(t, r, &h)
	if _, err := r.ReadRequest(&h); err == nil || IsMalformed(err) {
		t.Errorf("got %v", err)
	}
}

func TestReaderEndsEndlessEmptyReads(t *testing.T) {
	r := NewReader(emptyReads{}, Limits{})
	var h message.Head
	if _, err := r.ReadRequest(&h); err != io.ErrNoProgress {
		t.Errorf("got %v", err)
	}
}

type emptyReads struct{}

func (emptyReads) Read([]byte) (int, error) { return 0, nil }

func TestSniffThroughAReader(t *testing.T) {
	c := &steps{parts: []string{" / HTTP", "/1.1\r\n", "Host: a\r\n\r\n"}}
	r := NewReader(c, Limits{})
	r.Prepend(nil)
	r.Prepend([]byte("GET"))
	for Sniff(r.Buffered(), false) == NeedMore {
		if err := r.Fill(); err != nil {
			t.Fatal(err)
		}
	}
	if got := Sniff(r.Buffered(), false); got != HTTP1 {
		t.Fatalf("got %d", got)
	}
	var h message.Head
	mustReadRequest(t, r, &h)
	if h.Target != "/" {
		t.Errorf("got %q", h.Target)
	}

	large := strings.Repeat("a", 40<<10)
	r = NewReader(strings.NewReader("end"), Limits{})
	r.Prepend([]byte("tail"))
	r.Prepend([]byte(large))
	if got := string(r.Buffered()); got != large+"tail" {
		t.Errorf("got %d bytes", len(got))
	}
	for r.Fill() == nil {
	}
	if got := string(r.Buffered()); got != large+"tailend" {
		t.Errorf("got %d bytes", len(got))
	}
	r = NewReader(repeated{[]byte("a")}, Limits{Head: 100, Trailers: 100})
	var err error
	for err == nil {
		err = r.Fill()
	}
	if describe(err) != "431 head_too_large" || len(r.Buffered()) != bufferSize {
		t.Errorf("got %v after %d bytes", err, len(r.Buffered()))
	}
}

func TestRequestIsOneAllocation(t *testing.T) {
	r := NewReader(repeated{[]byte(typicalRequest)}, Limits{})
	var h message.Head
	mustReadRequest(t, r, &h)
	if n := testing.AllocsPerRun(100, func() { _, _ = r.ReadRequest(&h) }); n > 1 {
		t.Errorf("%v allocations", n)
	}
}

func TestIsMalformed(t *testing.T) {
	if !IsMalformed(errors.Join(errBareCR)) || IsMalformed(io.EOF) || IsMalformed(nil) {
		t.Error("IsMalformed")
	}
	if got := errBareCR.Error(); got != "malformed HTTP/1 message: bare_cr" {
		t.Errorf("got %q", got)
	}
}
