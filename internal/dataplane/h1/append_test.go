package h1

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
)

func request(version message.Version, lines ...string) *message.Head {
	return &message.Head{Version: version, Method: "POST", Target: "/%7e?", Fields: fields(lines...)}
}

func response(version message.Version, status int, lines ...string) *message.Head {
	return &message.Head{Version: version, Status: status, Reason: "Fine", Fields: fields(lines...)}
}

func TestAppendRequest(t *testing.T) {
	for name, tc := range map[string]struct {
		head    *message.Head
		framing Framing
		want    string
	}{
		"no body": {
			head: request(message.HTTP11, "hOST: a", "X: ", "x: \xff"),
			want: "POST /%7e? HTTP/1.1\r\nhOST: a\r\nX: \r\nx: \xff\r\n\r\n",
		},
		"HTTP/1.0": {
			head: request(message.HTTP10),
			want: "POST /%7e? HTTP/1.0\r\n\r\n",
		},
		"length that is there": {
			head:    request(message.HTTP11, "Host: a", "content-length: 03"),
			framing: Framing{Kind: Length, Length: 3},
			want:    "POST /%7e? HTTP/1.1\r\nHost: a\r\ncontent-length: 03\r\n\r\n",
		},
		"length that is new": {
			head:    request(message.HTTP11, "Host: a"),
			framing: Framing{Kind: Length, Length: 3},
			want:    "POST /%7e? HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n",
		},
		"chunked": {
			head:    request(message.HTTP11, "Host: a"),
			framing: Framing{Kind: Chunked},
			want:    "POST /%7e? HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
		},
		"chunked drops the length": {
			head:    request(message.HTTP11, "Content-Length: 3", "Host: a"),
			framing: Framing{Kind: Chunked},
			want:    "POST /%7e? HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
		},
		"upgrade": {
			head: request(message.HTTP11, "Host: a", "Connection: Upgrade", "Upgrade: websocket"),
			want: "POST /%7e? HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if got := string(AppendRequest([]byte("<"), tc.head, tc.framing)); got != "<"+tc.want {
				t.Errorf("got  %q\nwant %q", got, "<"+tc.want)
			}
		})
	}
}

func TestAppendResponse(t *testing.T) {
	for name, tc := range map[string]struct {
		head      *message.Head
		framing   Framing
		keepAlive bool
		want      string
	}{
		"keep-alive in HTTP/1.1": {
			head:      response(message.HTTP11, 200, "Content-Length: 0"),
			framing:   Framing{Kind: Length},
			keepAlive: true,
			want:      "HTTP/1.1 200 Fine\r\nContent-Length: 0\r\n\r\n",
		},
		"close in HTTP/1.1": {
			head:    response(message.HTTP11, 200),
			framing: Framing{Kind: Chunked},
			want:    "HTTP/1.1 200 Fine\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n",
		},
		"until close": {
			head:      response(message.HTTP11, 200),
			framing:   Framing{Kind: UntilClose},
			keepAlive: true,
			want:      "HTTP/1.1 200 Fine\r\nConnection: close\r\n\r\n",
		},
		"keep-alive in HTTP/1.0": {
			head:      response(message.HTTP10, 404),
			framing:   Framing{Kind: Length, Length: 12},
			keepAlive: true,
			want:      "HTTP/1.0 404 Fine\r\nContent-Length: 12\r\nConnection: keep-alive\r\n\r\n",
		},
		"the caller's Connection": {
			head:      response(message.HTTP11, 204, "Connection: keep-alive"),
			keepAlive: true,
			want:      "HTTP/1.1 204 Fine\r\nConnection: keep-alive\r\n\r\n",
		},
		"1xx": {
			head: response(message.HTTP11, 103, "Link: </a>"),
			want: "HTTP/1.1 103 Fine\r\nLink: </a>\r\n\r\n",
		},
		"answer to HEAD": {
			head:      response(message.HTTP11, 200, "Content-Length: 9"),
			keepAlive: true,
			want:      "HTTP/1.1 200 Fine\r\nContent-Length: 9\r\n\r\n",
		},
		"no reason": {
			head:      &message.Head{Version: message.HTTP11, Status: 304},
			keepAlive: true,
			want:      "HTTP/1.1 304 \r\n\r\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if got := string(AppendResponse(nil, tc.head, tc.framing, tc.keepAlive)); got != tc.want {
				t.Errorf("got  %q\nwant %q", got, tc.want)
			}
		})
	}
}

func TestAppendChunks(t *testing.T) {
	var out []byte
	out = AppendChunk(out, nil)
	out = AppendChunk(out, []byte(strings.Repeat("x", 26)))
	out = AppendLastChunk(out, nil)
	if want := "1a\r\n" + strings.Repeat("x", 26) + "\r\n0\r\n\r\n"; string(out) != want {
		t.Errorf("got %q, want %q", out, want)
	}
	if got := string(AppendLastChunk(nil, fields("A: b"))); got != "0\r\nA: b\r\n\r\n" {
		t.Errorf("got %q", got)
	}
}

// TestBlockGolden reads the vectors that docs/design/0023-http1.md shows.
func TestBlockGolden(t *testing.T) {
	record, err := os.ReadFile("../../../docs/design/0023-http1.md")
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		head  message.Head
		block string
		parse func([]byte, *message.Head, Limits) error
	}{
		"request": {
			head: message.Head{
				Version: message.HTTP11,
				Method:  "GET",
				Target:  "/a%2Fb?c",
				Fields:  fields("hOST: bar-east", "X-Empty: ", "TE: trailers"),
			},
			block: "GET /a%2Fb?c HTTP/1.1\r\nhOST: bar-east\r\nX-Empty: \r\nTE: trailers\r\n",
			parse: ParseRequestBlock,
		},
		"response": {
			head: message.Head{
				Version: message.HTTP10,
				Status:  404,
				Reason:  "Nope",
				Fields:  fields("content-length: 3"),
			},
			block: "HTTP/1.0 404 Nope\r\ncontent-length: 3\r\n",
			parse: ParseResponseBlock,
		},
		"trailers": {
			head:  message.Head{Fields: fields("Digest: x")},
			block: "Digest: x\r\n",
			parse: ParseTrailerBlock,
		},
		"no trailers": {
			parse: ParseTrailerBlock,
		},
	} {
		t.Run(name, func(t *testing.T) {
			if got := string(AppendBlock(nil, &tc.head)); got != tc.block {
				t.Errorf("got %q, want %q", got, tc.block)
			}
			for line := range strings.Lines(tc.block) {
				quoted := strings.NewReplacer("\r", `\r`, "\n", `\n`).Replace(line)
				if !strings.Contains(string(record), quoted) {
					t.Errorf("the record does not show %s", quoted)
				}
			}
			var h message.Head
			if err := tc.parse([]byte(tc.block), &h, Limits{}); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.head, h, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestBlocksAreRefused(t *testing.T) {
	const line = "GET / HTTP/1.1\r\nHost: a\r\n"
	const status = "HTTP/1.1 200 OK\r\n"
	limits := Limits{Head: 200, StartLine: 100, Fields: 4, Trailers: 50}
	for name, tc := range map[string]struct {
		parse func([]byte, *message.Head, Limits) error
		block string
		want  string
	}{
		"empty":              {ParseRequestBlock, "", "400 bare_cr"},
		"no line end":        {ParseRequestBlock, "GET / HTTP/1.1", "400 bare_cr"},
		"bare LF":            {ParseRequestBlock, "GET / HTTP/1.1\nHost: a\r\n", "400 bare_lf"},
		"bare LF at the end": {ParseRequestBlock, "GET / HTTP/1.1\r\nHost: a\n", "400 bare_lf"},
		"cut value":          {ParseRequestBlock, "GET / HTTP/1.1\r\nHost: a", "400 invalid_field_value"},
		"cut CRLF":           {ParseRequestBlock, "GET / HTTP/1.1\r\nHost: a\r", "400 bare_cr"},
		"cut name":           {ParseRequestBlock, "GET / HTTP/1.1\r\nHost", "400 invalid_field_name"},
		"empty line at end":  {ParseRequestBlock, line + "\r\n", "400 invalid_field_name"},
		"smuggled request": {
			ParseRequestBlock,
			line + "\r\nGET /2 HTTP/1.1\r\n",
			"400 invalid_field_name",
		},
		"empty line first": {ParseRequestBlock, "\r\n" + line, "400 invalid_request_line"},
		"no host":          {ParseRequestBlock, "GET / HTTP/1.1\r\n", "400 missing_host"},
		"coding": {
			ParseRequestBlock,
			line + "Transfer-Encoding: chunked\r\n",
			"400 hop_by_hop_field",
		},
		"connection": {ParseRequestBlock, line + "Connection: close\r\n", "400 hop_by_hop_field"},
		"connection of host": {
			ParseRequestBlock,
			line + "Connection: Host\r\n",
			"400 end_to_end_connection_option",
		},
		"keep-alive": {ParseRequestBlock, line + "Keep-Alive: 1\r\n", "400 hop_by_hop_field"},
		"proxy connection": {
			ParseRequestBlock,
			line + "Proxy-Connection: close\r\n",
			"400 hop_by_hop_field",
		},
		"upgrade": {ParseRequestBlock, line + "Upgrade: a\r\n", "400 hop_by_hop_field"},
		"TE":      {ParseRequestBlock, line + "TE: gzip\r\n", "400 hop_by_hop_field"},
		"two lengths": {
			ParseRequestBlock,
			line + "Content-Length: 1\r\nContent-Length: 1\r\n",
			"400 several_lengths",
		},
		"invalid length": {ParseRequestBlock, line + "Content-Length: 1a\r\n", "400 invalid_length"},
		"too many fields": {
			ParseRequestBlock,
			line + strings.Repeat("A: b\r\n", 4),
			"431 too_many_fields",
		},
		"too large": {
			ParseRequestBlock,
			line + "A: " + strings.Repeat("b", 200) + "\r\n",
			"431 head_too_large",
		},
		"long line": {
			ParseRequestBlock,
			"GET /" + strings.Repeat("b", 100) + " HTTP/1.1\r\nHost: a\r\n",
			"414 start_line_too_long",
		},
		"a response": {ParseRequestBlock, status, "400 invalid_method"},
		"a request":  {ParseResponseBlock, line, "502 invalid_version"},
		"response coding": {
			ParseResponseBlock,
			status + "Transfer-Encoding: chunked\r\n",
			"502 hop_by_hop_field",
		},
		"response upgrade": {ParseResponseBlock, status + "Upgrade: h2c\r\n", "502 hop_by_hop_field"},
		"426 with upgrade": {ParseResponseBlock, "HTTP/1.1 426 A\r\nUpgrade: h2c\r\n", ""},
		"101":              {ParseResponseBlock, "HTTP/1.1 101 A\r\n", "502 hop_by_hop_field"},
		"204 with length": {
			ParseResponseBlock,
			"HTTP/1.1 204 A\r\nContent-Length: 1\r\n",
			"502 forbidden_length",
		},
		"response too large": {ParseResponseBlock, status + strings.Repeat("b", 200), "502 head_too_large"},
		"trailer length":     {ParseTrailerBlock, "Content-Length: 1\r\n", "400 forbidden_trailer"},
		"trailers of a head": {ParseTrailerBlock, line, "400 space_before_colon"},
		"trailers too large": {
			ParseTrailerBlock,
			"A: " + strings.Repeat("b", 50) + "\r\n",
			"431 trailers_too_large",
		},
		"trailers with a line": {ParseTrailerBlock, "\r\n", "400 invalid_field_name"},
	} {
		t.Run(name, func(t *testing.T) {
			var h message.Head
			got := ""
			if err := tc.parse([]byte(tc.block), &h, limits); err != nil {
				if !IsMalformed(err) {
					t.Error("not malformed")
				}
				got = describe(err)
			}
			if got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestBlockFraming(t *testing.T) {
	const v10, v11 = message.HTTP10, message.HTTP11
	connect := request(v11)
	connect.Method = "CONNECT"
	for name, tc := range map[string]struct {
		head   *message.Head
		end    bool
		method string // of the request; empty for a request
		client message.Version
		want   Framing
		reason string
	}{
		"request that ends":                {head: request(v11), end: true},
		"request of unknown length":        {head: request(v11), want: Framing{Kind: Chunked}},
		"request of unknown length in 1.0": {head: request(v10), reason: "400 forbidden_coding"},
		"request of length": {
			head: request(v11, "Content-Length: 3"),
			want: Framing{Length, 3},
		},
		"request of length 0": {
			head: request(v11, "Content-Length: 0"),
			end:  true,
			want: Framing{Length, 0},
		},
		"request of length that ends": {
			head:   request(v11, "Content-Length: 3"),
			end:    true,
			reason: "400 invalid_length",
		},
		"request of invalid length": {
			head:   request(v11, "Content-Length: x"),
			end:    true,
			reason: "400 invalid_length",
		},
		"connect with body": {head: connect, reason: "400 forbidden_length"},

		"response of length": {
			head:   response(v11, 200, "Content-Length: 3"),
			method: "GET",
			client: v11,
			want:   Framing{Length, 3},
		},
		"response that ends": {
			head:   response(v11, 200),
			end:    true,
			method: "GET",
			client: v11,
			want:   Framing{Length, 0},
		},
		"response too short": {
			head:   response(v11, 200, "Content-Length: 3"),
			end:    true,
			method: "GET",
			client: v11,
			reason: "502 invalid_length",
		},
		"response of two lengths": {
			head:   response(v11, 200, "Content-Length: 3", "Content-Length: 3"),
			method: "GET",
			client: v11,
			reason: "502 several_lengths",
		},
		"response of unknown length": {
			head:   response(v11, 200),
			method: "GET",
			client: v11,
			want:   Framing{Kind: Chunked},
		},
		"response to 1.0": {
			head:   response(v11, 200),
			method: "GET",
			client: v10,
			want:   Framing{Kind: UntilClose},
		},
		"response of 1.0": {
			head:   response(v10, 200),
			method: "GET",
			client: v11,
			want:   Framing{Kind: UntilClose},
		},
		"response to HEAD": {
			head:   response(v11, 200, "Content-Length: 3"),
			end:    true,
			method: "HEAD",
			client: v11,
		},
		"304": {
			head:   response(v11, 304, "Content-Length: 3"),
			end:    true,
			method: "GET",
			client: v11,
		},
		"204": {head: response(v11, 204), end: true, method: "GET", client: v11},
		"103": {head: response(v11, 103), method: "GET", client: v11},
	} {
		t.Run(name, func(t *testing.T) {
			var got Framing
			var err error
			if tc.method == "" {
				got, err = RequestFraming(tc.head, tc.end)
			} else {
				got, err = ResponseFraming(tc.head, tc.method, tc.end, tc.client)
			}
			reason := ""
			if e := (*Error)(nil); errors.As(err, &e) {
				reason = describe(e)
			}
			if got != tc.want || reason != tc.reason {
				t.Errorf("got %v %q, want %v %q", got, reason, tc.want, tc.reason)
			}
		})
	}
}
