package h1

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
)

// fields makes fields of lines such as "Name: value".
func fields(lines ...string) []message.Field {
	var out []message.Field
	for _, line := range lines {
		name, value, _ := strings.Cut(line, ": ")
		out = append(out, message.Field{Name: name, Value: value})
	}
	return out
}

func TestStripHop(t *testing.T) {
	for name, tc := range map[string]struct {
		status   int
		in, want []message.Field
	}{
		"nothing to remove": {
			in:   fields("Host: a", "Content-Length: 3", "Trailer: X", "Expect: 100-continue"),
			want: fields("Host: a", "Content-Length: 3", "Trailer: X", "Expect: 100-continue"),
		},
		"known fields": {
			in: fields("Host: a", "connection: close", "Keep-Alive: timeout=5", "Proxy-Connection: close",
				"Transfer-Encoding: chunked", "Upgrade: h2c", "X: y"),
			want: fields("Host: a", "X: y"),
		},
		"fields that Connection names": {
			in: fields(
				"X-Hop: 1",
				"Connection: close, x-hop",
				"Connection: ,http2-settings",
				"HTTP2-Settings: a",
				"X: y",
			),
			want: fields("X: y"),
		},
		"end-to-end fields that Connection names": {
			in: fields(
				"Host: a",
				"Connection: Host, Content-Length,authorization",
				"Content-Length: 3",
				"Authorization: b",
			),
			want: fields("Host: a", "Content-Length: 3", "Authorization: b"),
		},
		"options that are no fields": {
			in:   fields("Connection: close", "Close: 1"),
			want: fields("Close: 1"),
		},
		"TE keeps trailers": {
			in:   fields("TE: trailers", "Connection: TE"),
			want: fields("TE: trailers"),
		},
		"TE loses codings": {
			in:   fields("TE: gzip;q=0.5, Trailers , deflate", "Te: gzip"),
			want: fields("TE: Trailers"),
		},
		"proxy credentials stay": {
			in:   fields("Proxy-Authorization: Basic a", "Proxy-Authenticate: Basic"),
			want: fields("Proxy-Authorization: Basic a", "Proxy-Authenticate: Basic"),
		},
		"Upgrade in 426": {
			status: 426,
			in:     fields("Upgrade: h2c", "Connection: Upgrade"),
			want:   fields("Upgrade: h2c"),
		},
		"Upgrade in 200": {
			status: 200,
			in:     fields("Upgrade: h2,h2c", "Connection: Upgrade, Keep-Alive"),
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := &message.Head{Status: tc.status, Fields: tc.in}
			StripHop(h)
			if diff := cmp.Diff(tc.want, h.Fields, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestKeepAlive(t *testing.T) {
	for _, tc := range []struct {
		version    message.Version
		connection string
		want       bool
	}{
		{message.HTTP11, "", true},
		{message.HTTP11, "keep-alive", true},
		{message.HTTP11, "close", false},
		{message.HTTP11, "X, Close", false},
		{message.HTTP11, "keep-alive, close", false},
		{message.HTTP11, "closed", true},
		{message.HTTP10, "", false},
		{message.HTTP10, "Keep-Alive", true},
		{message.HTTP10, "close", false},
		{message.HTTP10, "keep-alive, close", false},
	} {
		h := &message.Head{Version: tc.version, Fields: fields("Connection: " + tc.connection)}
		if got := KeepAlive(h); got != tc.want {
			t.Errorf("%v %q: got %v", tc.version, tc.connection, got)
		}
	}
}

func TestIsUpgrade(t *testing.T) {
	for name, tc := range map[string]struct {
		head message.Head
		want bool
	}{
		"WebSocket": {
			head: message.Head{
				Version: message.HTTP11,
				Fields:  fields("Connection: keep-alive, Upgrade", "Upgrade: websocket"),
			},
			want: true,
		},
		"without the option": {
			head: message.Head{Version: message.HTTP11, Fields: fields("Upgrade: websocket")},
		},
		"without the field": {
			head: message.Head{Version: message.HTTP11, Fields: fields("Connection: Upgrade")},
		},
		"in HTTP/1.0": {
			head: message.Head{
				Version: message.HTTP10,
				Fields:  fields("Connection: Upgrade", "Upgrade: websocket"),
			},
		},
		"h2c alone": {
			head: message.Head{
				Version: message.HTTP11,
				Fields:  fields("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c"),
			},
		},
		"h2c and another": {
			head: message.Head{
				Version: message.HTTP11,
				Fields:  fields("Connection: Upgrade", "Upgrade: h2c, websocket"),
			},
			want: true,
		},
		"101": {
			head: message.Head{Version: message.HTTP11, Status: 101},
			want: true,
		},
		"200 that offers": {
			head: message.Head{
				Version: message.HTTP11,
				Status:  200,
				Fields:  fields("Connection: Upgrade", "Upgrade: websocket"),
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if got := IsUpgrade(&tc.head); got != tc.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

func TestNeedsPinning(t *testing.T) {
	for _, tc := range []struct {
		status int
		field  string
		want   bool
	}{
		{0, "Authorization: NTLM TlRMTVNTUAAB", true},
		{0, "authorization: negotiate YII=", true},
		{0, "Proxy-Authorization: Negotiate YII=", true},
		{0, "Authorization: Bearer NTLM", false},
		{0, "Authorization: NTLMv3 x", false},
		{0, "WWW-Authenticate: NTLM", false},
		{401, "WWW-Authenticate: NTLM", true},
		{401, "WWW-Authenticate: Basic realm=\"a\", Negotiate", true},
		{407, "Proxy-Authenticate: negotiate", true},
		{200, "WWW-Authenticate: Negotiate oRQ=", true},
		{401, "WWW-Authenticate: Basic realm=\"Negotiate\"", false},
		{401, "Authorization: NTLM", false},
	} {
		h := &message.Head{Status: tc.status, Fields: fields(tc.field)}
		if got := NeedsPinning(h); got != tc.want {
			t.Errorf("%d %q: got %v", tc.status, tc.field, got)
		}
	}
}
