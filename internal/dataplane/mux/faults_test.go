package mux

import (
	"strings"
	"testing"
	"testing/synctest"

	"golang.org/x/net/http2"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
)

// reason returns why the connection ended. It is empty while the connection is open.
func (c *Conn) reason() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.end == nil {
		return ""
	}
	return c.end.reason
}

func (p *peer) faultReasons() (out []string) {
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.faults {
		out = append(out, f.Reason)
	}
	return out
}

// TestFaults: what a peer does wrong is reported, and nothing else.
func TestFaults(t *testing.T) {
	client := Config{Client: true}
	open := func(p *peer) {
		h := &message.Head{Method: "GET", Scheme: "http", Target: "/"}
		if _, err := p.conn.Open(h, nil, true); err != nil {
			p.t.Error(err)
		}
		synctest.Wait()
	}
	large := getBlock("x", string(make([]byte, 80)))
	bomb := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	cases := map[string]struct {
		cfg  Config
		send func(p *peer)
		want string // the reasons
	}{
		"request": {Config{}, func(p *peer) { p.headers(1, getBlock(), true) }, ""},
		"malformed request": {Config{}, func(p *peer) {
			p.headers(1, fields("x", "1"), true)
		}, "malformed_head"},
		"malformed trailers": {Config{}, func(p *peer) {
			p.headers(1, getBlock(), false)
			p.headers(1, fields(":path", "/"), true)
		}, "malformed_head"},
		"two heads": {Config{}, func(p *peer) {
			p.headers(1, getBlock(), false)
			p.headers(1, fields("x", "1"), false)
		}, "protocol_error"},
		"head too large": {Config{MaxHeadBytes: 100}, func(p *peer) {
			p.headers(1, large, true)
		}, "head_too_large"},
		"streams beyond the limit": {Config{MaxStreams: 1}, func(p *peer) {
			p.headers(1, getBlock(), false)
			p.headers(3, getBlock(), true)
		}, "too_many_streams"},
		"canceled request": {Config{}, func(p *peer) {
			p.headers(1, getBlock(), false)
			p.fr.WriteRSTStream(1, http2.ErrCodeCancel)
		}, ""},
		"DATA on an idle stream": {Config{}, func(p *peer) {
			p.fr.WriteData(1, true, nil)
		}, "protocol_error"},
		"bad HPACK": {Config{}, func(p *peer) { p.headers(1, bomb, true) }, "compression"},
		"malformed response": {client, func(p *peer) {
			open(p)
			p.headers(1, fields("x", "1"), true)
		}, "malformed_head"},
		"the end of the peer": {Config{}, func(p *peer) {
			p.headers(1, getBlock(), false)
			p.nc.Close()
		}, ""},
		"GOAWAY of the peer": {client, func(p *peer) {
			p.fr.WriteGoAway(0, http2.ErrCodeNo, nil)
		}, ""},
		"end by this side": {Config{}, func(p *peer) { p.conn.GoAway() }, ""},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tc.cfg.Handle = hold
				p := startPeer(t, tc.cfg)
				defer p.close()
				tc.send(p)
				if got := strings.Join(p.faultReasons(), " "); got != tc.want {
					t.Errorf("faults %q, want %q", got, tc.want)
				}
			})
		})
	}
}

// TestMalformedTrailersAreAFault: raw trailers are parsed by their reader.
func TestMalformedTrailersAreAFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startPeer(t, Config{Coding: rawCoding{}, Handle: func(s *Stream) {
			var h message.Head
			s.ReadHead(&h)
			s.Read(make([]byte, 1))
			if s.Trailers(&h) {
				t.Errorf("trailers %v", h.Fields)
			}
		}})
		defer p.close()
		p.headers(1, []byte("GET / HTTP/1.1\r\n\r\n"), false)
		p.headers(1, []byte("bad"), true)
		if got := strings.Join(p.faultReasons(), " "); got != "malformed_head" {
			t.Errorf("faults %q", got)
		}
	})
}

// TestRefusalFields: the response to a head that is too large says who has made it.
func TestRefusalFields(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		by := []message.Field{{Name: "proxy-status", Value: "a"}}
		p := startPeer(t, Config{Handle: echo, MaxHeadBytes: 100, RefusalFields: by})
		defer p.close()
		p.headers(1, getBlock("x", string(make([]byte, 80))), true)
		if f, ok := p.find(http2.FrameHeaders); !ok || f.Text != ":status=431;proxy-status=a;" {
			t.Errorf("response %v %v", ok, f)
		}
	})
}
