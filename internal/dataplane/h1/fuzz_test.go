package h1

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
)

func addSeeds(f *testing.F, file string, add func(input string)) {
	for _, c := range loadCorpus(f, file) {
		add(c.input)
	}
}

// exceptions are what net/http refuses and a Reader accepts, as parts of net/http's
// errors.
var exceptions = map[string]string{
	"invalid URL escape":        "targets are forwarded as sent, and only NormalPath refuses them",
	"bad trailer key":           "the field Trailer only announces; trailers themselves are checked",
	"suspiciously long trailer": "net/http wants trailers to fit its buffer",
	"too much non-data":         "net/http bounds extensions in total, a Reader bounds each line",
}

func isException(err error) bool {
	for text := range exceptions {
		if strings.Contains(err.Error(), text) {
			return true
		}
	}
	return false
}

// FuzzRequestDifferential holds a Reader against net/http: what a Reader accepts,
// net/http accepts too, with the same meaning and the same end, except for the
// exceptions. The other way round nothing is demanded, because a Reader is stricter.
func FuzzRequestDifferential(f *testing.F) {
	addSeeds(f, "requests.txt", func(input string) { f.Add(input) })
	f.Fuzz(func(t *testing.T, input string) {
		ours := read(input, "", nil, Limits{})
		if !ours.HeadOK || strings.HasPrefix(input, "\r\n") { // net/http accepts no empty lines
			return
		}
		theirs := bufio.NewReaderSize(strings.NewReader(input), 64<<10)
		req, err := http.ReadRequest(theirs)
		if err != nil {
			if !isException(err) {
				t.Fatalf("net/http refuses the head: %v", err)
			}
			return
		}
		h := &ours.Head
		if req.Method != h.Method || req.RequestURI != h.Target || req.Proto != h.Version.String() {
			t.Fatalf("net/http reads %q %q %q", req.Method, req.RequestURI, req.Proto)
		}
		if host, _ := h.Get("Host"); h.Target[0] == '/' && req.Host != host {
			t.Fatalf("net/http reads the host %q", req.Host)
		}
		if KeepAlive(h) == req.Close {
			t.Fatalf("KeepAlive is %v", KeepAlive(h))
		}
		compareFields(t, req.Header, h)
		if req.ContentLength != contentLength(ours.Framing) {
			t.Fatalf("net/http reads the length %d", req.ContentLength)
		}
		compareBody(t, req.Body, func() http.Header { return req.Trailer }, ours, theirs)
	})
}

// FuzzResponseDifferential is FuzzRequestDifferential for responses.
func FuzzResponseDifferential(f *testing.F) {
	addSeeds(f, "responses.txt", func(input string) {
		f.Add(input, false)
		f.Add(input, true)
	})
	f.Fuzz(func(t *testing.T, input string, head bool) {
		method := http.MethodGet
		if head {
			method = http.MethodHead
		}
		ours := read(input, method, nil, Limits{})
		if !ours.HeadOK {
			return
		}
		theirs := bufio.NewReaderSize(strings.NewReader(input), 64<<10)
		resp, err := http.ReadResponse(theirs, &http.Request{Method: method})
		if err != nil {
			if !isException(err) {
				t.Fatalf("net/http refuses the head: %v", err)
			}
			return
		}
		h := &ours.Head
		status := strings.TrimLeft(fmt.Sprintf("%03d %s", h.Status, h.Reason), " ")
		if resp.StatusCode != h.Status || resp.Proto != h.Version.String() ||
			strings.TrimRight(resp.Status, " \t") != strings.TrimRight(status, " \t") {
			t.Fatalf("net/http reads %q %q", resp.Proto, resp.Status)
		}
		compareFields(t, resp.Header, h)
		if !head && resp.ContentLength != contentLength(ours.Framing) {
			t.Fatalf("net/http reads the length %d", resp.ContentLength)
		}
		compareBody(t, resp.Body, func() http.Header { return resp.Trailer }, ours, theirs)
	})
}

func contentLength(f Framing) int64 {
	if f.Kind == Chunked || f.Kind == UntilClose {
		return -1
	}
	return f.Length
}

// compareFields leaves out the fields that net/http moves to fields of its structs or
// makes up.
func compareFields(t *testing.T, theirs http.Header, h *message.Head) {
	t.Helper()
	moved := []string{"Host", "Transfer-Encoding", "Trailer"}
	ours := http.Header{}
	for _, f := range h.Fields {
		name := textproto.CanonicalMIMEHeaderKey(f.Name)
		if !slices.Contains(moved, name) || h.Status != 0 && name == "Host" {
			ours[name] = append(ours[name], f.Value)
		}
	}
	theirs = theirs.Clone()
	theirs.Del("Trailer")
	if _, had := ours["Cache-Control"]; !had && ours.Get("Pragma") == "no-cache" {
		theirs.Del("Cache-Control") // net/http makes one of the older field Pragma
	}
	if diff := cmp.Diff(ours, theirs, cmpopts.EquateEmpty()); diff != "" {
		t.Fatalf("fields (-ours +net/http):\n%s", diff)
	}
}

func compareBody(t *testing.T, body io.ReadCloser, trailer func() http.Header, ours outcome,
	theirs *bufio.Reader) {
	t.Helper()
	got, err := io.ReadAll(body)
	if ours.Error != "" {
		if !strings.HasPrefix(string(got), ours.Body) {
			t.Fatalf("net/http reads the body %q, ours begins with %q", got, ours.Body)
		}
		return
	}
	if err != nil {
		if !isException(err) {
			t.Fatalf("net/http refuses the body: %v", err)
		}
		return
	}
	if string(got) != ours.Body {
		t.Fatalf("net/http reads the body %q, ours is %q", got, ours.Body)
	}
	trailers := http.Header{}
	for _, f := range ours.Trailers {
		name := textproto.CanonicalMIMEHeaderKey(f.Name)
		trailers[name] = append(trailers[name], f.Value)
	}
	announced := trailer().Clone()
	for name, values := range announced {
		if values == nil {
			delete(announced, name)
		}
	}
	if diff := cmp.Diff(trailers, announced, cmpopts.EquateEmpty()); diff != "" {
		t.Fatalf("trailers (-ours +net/http):\n%s", diff)
	}
	rest, err := io.ReadAll(theirs)
	if err != nil || string(rest) != ours.Rest {
		t.Fatalf("net/http ends the message before %q (%v), ours before %q", rest, err, ours.Rest)
	}
}

// FuzzSplit proves that a message's meaning does not depend on how it is cut into reads.
func FuzzSplit(f *testing.F) {
	addSeeds(f, "requests.txt", func(input string) {
		f.Add(input, "", []byte{1, 1, 1, 1, 20, 1, 1, 1, 1, 30, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1})
	})
	addSeeds(f, "responses.txt", func(input string) { f.Add(input, "GET", []byte{9, 1, 1, 1, 15, 1, 1}) })
	small := Limits{Head: 512, Fields: 8, StartLine: 64, Trailers: 64, ChunkLine: 16}
	f.Fuzz(func(t *testing.T, input, method string, sizes []byte) {
		for _, limits := range []Limits{{}, small} {
			whole := read(input, method, nil, limits)
			split := read(input, method, sizes, limits)
			if diff := cmp.Diff(whole, split); diff != "" {
				t.Fatalf("(-whole +split):\n%s", diff)
			}
			single := read(input, method, make([]byte, len(input)), limits)
			if diff := cmp.Diff(whole, single); diff != "" {
				t.Fatalf("(-whole +single bytes):\n%s", diff)
			}
		}
	})
}

// FuzzRoundTrip proves that what is written is read again as what it was, on a connection
// and as a block, and that a message ends where it was meant to end.
func FuzzRoundTrip(f *testing.F) {
	addSeeds(f, "requests.txt", func(input string) { f.Add(input, "") })
	addSeeds(f, "responses.txt", func(input string) { f.Add(input, "GET") })
	f.Fuzz(func(t *testing.T, input, method string) {
		first := read(input, method, nil, Limits{})
		if first.Error != "" {
			return
		}
		h := &first.Head
		StripHop(h)
		kept := slices.Clone(h.Fields)

		var again message.Head
		block := AppendBlock(nil, h)
		parse := ParseRequestBlock
		if method != "" {
			parse = ParseResponseBlock
		}
		if err := parse(block, &again, Limits{}); err != nil {
			if h.Status == 101 {
				return
			}
			t.Fatalf("the block %q is refused: %v", block, err)
		}
		if diff := cmp.Diff(h, &again, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("block (-sent +received):\n%s", diff)
		}

		out := appendMessage(h, first.Framing, first.Body, first.Trailers)
		const next = "GET /next HTTP/1.1\r\n"
		if first.Framing.Kind != UntilClose {
			out += next
		}
		second := read(out, method, nil, Limits{})
		if second.Error != "" {
			t.Fatalf("%q is refused: %s", out, second.Error)
		}
		if first.Framing.Kind != UntilClose && second.Rest != next {
			t.Fatalf("%q ends before %q", out, second.Rest)
		}
		StripHop(&second.Head)
		h.Fields = kept
		second.Rest, first.Rest = "", ""
		if diff := cmp.Diff(first, second, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("message (-first +second):\n%s", diff)
		}
	})
}

func appendMessage(h *message.Head, f Framing, body string, trailers []message.Field) string {
	var out []byte
	if h.Status == 0 {
		out = AppendRequest(nil, h, f)
	} else {
		out = AppendResponse(nil, h, f, true)
	}
	if f.Kind != Chunked {
		return string(out) + body
	}
	out = AppendChunk(out, []byte(body))
	return string(AppendLastChunk(out, trailers))
}

// FuzzBlock proves that a hostile peer cannot smuggle: each accepted block is
// written to a connection as exactly one message, with the framing that its sender chose.
func FuzzBlock(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\nHost: a\r\n"), false, true)
	f.Add([]byte("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n"), false, false)
	f.Add([]byte("POST / HTTP/1.0\r\nContent-Length: 3\r\n"), false, false)
	f.Add([]byte("HTTP/1.1 200 OK\r\nServer: a\r\n"), true, false)
	f.Add([]byte("HTTP/1.0 204 \r\n"), true, true)
	f.Fuzz(func(t *testing.T, block []byte, response, end bool) {
		var h message.Head
		var framing Framing
		var err error
		method := ""
		if response {
			method = "GET"
			if err = ParseResponseBlock(block, &h, Limits{}); err == nil {
				framing, err = ResponseFraming(&h, method, end, message.HTTP11)
			}
		} else if err = ParseRequestBlock(block, &h, Limits{}); err == nil {
			framing, err = RequestFraming(&h, end)
		}
		if err != nil {
			if !IsMalformed(err) {
				t.Fatal(err)
			}
			return
		}
		body := ""
		if framing.Kind == Chunked || framing.Kind == UntilClose {
			body = "0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n"
		} else if framing.Length > 1<<16 {
			return
		} else {
			body = strings.Repeat("x", int(framing.Length))
		}
		out := appendMessage(&h, framing, body, nil)
		const next = "GET /next HTTP/1.1\r\n"
		if framing.Kind != UntilClose {
			out += next
		}
		got := read(out, method, nil, Limits{})
		if got.Error != "" || got.Body != body || framing.Kind != UntilClose && got.Rest != next {
			t.Fatalf("%q is read as %+v", out, got)
		}
	})
}

// FuzzSniff proves that a decision is final, and that what is taken for HTTP/1 has a
// valid request line for a Reader.
func FuzzSniff(f *testing.F) {
	for _, c := range sniffCases {
		f.Add([]byte(c.input))
	}
	lineErrors := []string{
		errRequestLine.Reason,
		errMethod.Reason,
		errVersion.Reason,
		errVersionUnknown.Reason,
		errEmptyLines.Reason,
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		decided := NeedMore
		step := 1 + len(input)/1000
		for cut := len(input) % step; cut <= len(input); cut += step {
			p := Sniff(input[:cut], false)
			if decided != NeedMore && p != decided {
				t.Fatalf("%q is %d, and was %d before", input[:cut], p, decided)
			}
			decided = p
		}
		if Sniff(input, true) == NeedMore {
			t.Fatal("undecided at the end")
		}
		if !bytes.Contains(input[:min(len(input), MaxSniffed)], []byte("\n")) {
			return // Sniff has not seen the whole line
		}
		if decided != HTTP1 {
			return
		}
		err := read(string(input), "", nil, Limits{}).Error
		for _, reason := range lineErrors {
			if strings.HasSuffix(err, " "+reason) {
				t.Fatalf("a Reader refuses the line: %s", err)
			}
		}
	})
}
