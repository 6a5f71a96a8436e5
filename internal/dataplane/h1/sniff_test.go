package h1

import (
	"strings"
	"testing"
)

// sniffCases are first bytes. decidedAt is how many of them decide; nothing shorter does.
var sniffCases = []struct {
	name      string
	input     string
	want      Protocol
	decidedAt int
}{
	{"request", "GET / HTTP/1.1\r\nHost: a\r\n", HTTP1, 16},
	{"request of HTTP/1.0", "GET /a%20?b=c HTTP/1.0\r\n\r\n", HTTP1, 24},
	{"absolute-form", "GET http://a/ HTTP/1.1\r\n", HTTP1, 24},
	{"absolute-form in capitals", "PUT HTTPS://a HTTP/1.1\r\n", HTTP1, 24},
	{"asterisk", "OPTIONS * HTTP/1.1\r\n", HTTP1, 20},
	{"connect", "CONNECT a.b:443 HTTP/1.1\r\n", HTTP1, 26},
	{"connect to IPv6", "CONNECT [::1]:443 HTTP/1.1\r\n", HTTP1, 28},
	{"hyphenated method", "M-SEARCH /a HTTP/1.1\r\n", HTTP1, 22},
	{"unknown method", "PURGE /a HTTP/1.1\r\n", HTTP1, 19},
	{"longest method", "ABCDEFGHIJKLMNOPQRSTUVWX / HTTP/1.1\r\n", HTTP1, 37},
	{"target of 8,000 bytes", "GET /" + strings.Repeat("a", 7999) + " HTTP/1.1\r\n", HTTP1, 8015},
	{"long target", "GET /" + strings.Repeat("a", 30000) + " HTTP/1.1\r\n", HTTP1, 8 << 10},
	{"line too long", "GET /" + strings.Repeat("a", 32<<10), HTTP1, 8 << 10},
	{"long target of ICAP", "GET /" + strings.Repeat("a", 30000) + " ICAP/1.0\r\n", HTTP1, 8 << 10},
	{"preface", Preface + "\x00\x00", HTTP2, 24},

	{"method too long", "ABCDEFGHIJKLMNOPQRSTUVWXY / HTTP/1.1\r\n", Opaque, 25},
	{"method in lower case", "get / HTTP/1.1\r\n", Opaque, 1},
	{"method with digit", "A1 LOGIN", Opaque, 2},
	{"method with unknown hyphen", "A-B / HTTP/1.1\r\n", Opaque, 2},
	{"hyphenated method with more", "M-SEARCHX /", Opaque, 9},
	{"hyphenated method cut", "M-SEAR /", Opaque, 7},
	{"long authority", "CONNECT " + strings.Repeat("a", 32<<10), Opaque, 8 + 512},
	{"long target with a control", "GET /" + strings.Repeat("a", 8000) + "\x01", Opaque, 8006},
	{"long key", "GET " + strings.Repeat("a", 32<<10), Opaque, 5},
	{"two spaces", "GET  / HTTP/1.1\r\n", Opaque, 5},
	{"space at the end", "GET / HTTP/1.1 \r\n", Opaque, 15},
	{"bare LF", "GET / HTTP/1.1\n", Opaque, 15},
	{"HTTP/0.9", "GET /\r\n", Opaque, 6},
	{"HTTP/1.2", "GET / HTTP/1.2\r\n", Opaque, 14},
	{"HTTP/2 request line", "GET / HTTP/2.0\r\n", Opaque, 12},
	{"cut preface", "PRI * HTTP/2.0\r\n\r\nXX", Opaque, 19},
	{"asterisk of another method", "KEYS *\r\n", Opaque, 6},
	{"asterisk with more", "OPTIONS *x", Opaque, 10},
	{"RTSP", "OPTIONS * RTSP/1.0\r\n", Opaque, 11},
	{"RTSP with URI", "DESCRIBE rtsp://a/b RTSP/1.0\r\n", Opaque, 10},
	{"SIP", "INVITE sip:a@b SIP/2.0\r\n", Opaque, 8},
	{"relative target", "GET hello HTTP/1.1\r\n", Opaque, 6},
	{"scheme alone", "GET http HTTP/1.1\r\n", Opaque, 9},
	{"empty line", "\r\nGET / HTTP/1.1\r\n", Opaque, 1},
	{"space", " GET / HTTP/1.1\r\n", Opaque, 1},
	{"control in the target", "GET /\x01", Opaque, 6},

	{"TLS", "\x16\x03\x01\x02\x00\x01", Opaque, 1},
	{"Redis inline", "PING\r\n", Opaque, 5},
	{"Redis inline with key", "GET key\r\n", Opaque, 5},
	{"Redis inline with path", "GET /key\r\n", Opaque, 9},
	{"RESP", "*3\r\n$3\r\nSET\r\n", Opaque, 1},
	{"Postgres startup", "\x00\x00\x00\x08\x04\xd2\x16\x2f", Opaque, 1},
	{"SMTP", "EHLO mail.example.com\r\n", Opaque, 6},
	{"SMTP quit", "QUIT\r\n", Opaque, 5},
	{"SSH", "SSH-2.0-OpenSSH_9.6\r\n", Opaque, 4},
	{"MQTT", "\x10\x0c\x00\x04MQTT", Opaque, 1},
	{"AMQP", "AMQP\x00\x00\x09\x01", Opaque, 5},
	{"MongoDB of 65 bytes", "A\x00\x00\x00", Opaque, 2},
	{"memcached", "get key\r\n", Opaque, 1},
	{"NATS", "CONNECT {\"verbose\":false}\r\n", Opaque, 9},
	{"STOMP", "CONNECT\naccept-version:1.2\n", Opaque, 8},
	{"PROXY v1", "PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n", Opaque, 7},
	{"PROXY v2", "\r\n\r\n\x00\r\nQUIT\n", Opaque, 1},
	{"IMAP", "a1 LOGIN\r\n", Opaque, 1},
	{"FTP", "USER anonymous\r\n", Opaque, 6},
	{"Kafka", "\x00\x00\x00\x2a\x00\x12", Opaque, 1},
	{"LDAP", "\x30\x0c\x02\x01", Opaque, 1},
}

func TestSniff(t *testing.T) {
	for _, tc := range sniffCases {
		t.Run(tc.name, func(t *testing.T) {
			step := 1 + len(tc.input)/1000
			for cut := 0; cut <= len(tc.input); cut += step {
				want := tc.want
				if cut < tc.decidedAt {
					want = NeedMore
				}
				if got := Sniff([]byte(tc.input[:cut]), false); got != want {
					t.Errorf("%d bytes, which end in %q: got %d, want %d", cut,
						tc.input[max(0, cut-9):cut], got, want)
				}
				if want == NeedMore {
					want = Opaque
				}
				if got := Sniff([]byte(tc.input[:cut]), true); got != want {
					t.Errorf("%d bytes and the end: got %d, want %d", cut, got, want)
				}
			}
		})
	}
}
