package mux

import (
	"io"
	"strings"
	"testing"
	"testing/synctest"

	"golang.org/x/net/http2"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
)

// outcome is what a mistake of the peer causes.
type outcome struct {
	goAway http2.ErrCode // of the connection
	reset  http2.ErrCode // of the stream, if the connection goes on
	ok     bool          // it is no mistake
}

var (
	protocol    = outcome{goAway: http2.ErrCodeProtocol}
	frameSize   = outcome{goAway: http2.ErrCodeFrameSize}
	flowControl = outcome{goAway: http2.ErrCodeFlowControl}
	compression = outcome{goAway: http2.ErrCodeCompression}
	accepted    = outcome{ok: true}
)

func resets(code http2.ErrCode) outcome { return outcome{reset: code} }

// TestServerConformance sends what RFC 9113 forbids or permits to a server end. The
// section is in each name.
func TestServerConformance(t *testing.T) {
	malformed := resets(http2.ErrCodeProtocol)
	cases := map[string]struct {
		send func(p *peer)
		want outcome
	}{
		"3.4 second SETTINGS": {func(p *peer) { p.fr.WriteSettings() }, accepted},
		"4.1 unknown frame type": {func(p *peer) {
			p.fr.WriteRawFrame(0xfe, 0xff, 0, []byte("x"))
		}, accepted},
		"4.1 undefined flags": {func(p *peer) {
			p.fr.WriteRawFrame(http2.FramePing, 0xfe, 0, make([]byte, 8))
		}, accepted},
		"4.2 frame of the largest size": {func(p *peer) {
			p.headers(1, getBlock(), false)
			p.fr.WriteData(1, true, make([]byte, 16384))
		}, accepted},
		"4.2 frame beyond the largest size": {func(p *peer) {
			p.headers(1, getBlock(), false)
			p.fr.WriteData(1, true, make([]byte, 16385))
		}, frameSize},
		"4.3 invalid block": {func(p *peer) {
			p.headers(1, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, true)
		}, compression},
		"4.3 truncated block": {func(p *peer) { p.headers(1, getBlock()[:9], true) }, compression},
		"4.3 table size beyond the limit": {func(p *peer) {
			p.headers(1, append([]byte{0x3f, 0xe1, 0xff, 0x03}, getBlock()...), true)
		}, compression},
		"4.3 frame between header frames": {func(p *peer) {
			p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: getBlock()})
			p.fr.WriteData(1, true, nil)
		}, protocol},
		"4.3 CONTINUATION of another stream": {func(p *peer) {
			p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: getBlock()})
			p.fr.WriteContinuation(3, true, nil)
		}, protocol},
		"5.1 DATA on idle":          {func(p *peer) { p.fr.WriteData(1, true, nil) }, protocol},
		"5.1 RST_STREAM on idle":    {func(p *peer) { p.fr.WriteRSTStream(1, 0) }, protocol},
		"5.1 WINDOW_UPDATE on idle": {func(p *peer) { p.fr.WriteWindowUpdate(1, 100) }, protocol},
		"5.1 PRIORITY on idle": {func(p *peer) {
			p.fr.WritePriority(1, http2.PriorityParam{StreamDep: 5})
		}, accepted},
		"5.1 CONTINUATION alone": {func(p *peer) { p.fr.WriteContinuation(1, true, nil) }, protocol},
		"8.3.1 empty block":      {func(p *peer) { p.headers(1, nil, true) }, malformed},
		"5.1 DATA on half-closed": {func(p *peer) {
			p.headers(1, getBlock("x-hold", "1"), true)
			p.fr.WriteData(1, true, []byte("x"))
		}, resets(http2.ErrCodeStreamClosed)},
		"5.1 HEADERS on half-closed": {func(p *peer) {
			p.headers(1, getBlock("x-hold", "1"), true)
			p.headers(1, getBlock(), true)
		}, resets(http2.ErrCodeStreamClosed)},
		"5.1 WINDOW_UPDATE on half-closed": {func(p *peer) {
			p.headers(1, getBlock("x-hold", "1"), true)
			p.fr.WriteWindowUpdate(1, 10)
		}, accepted},
		"5.1 DATA after the peer's reset": {func(p *peer) {
			p.headers(1, getBlock("x-hold", "1"), false)
			p.fr.WriteRSTStream(1, http2.ErrCodeCancel)
			p.fr.WriteData(1, true, []byte("x"))
		}, resets(http2.ErrCodeStreamClosed)},
		"5.1 WINDOW_UPDATE on closed": {func(p *peer) {
			p.headers(1, getBlock(), true)
			p.take()
			p.fr.WriteWindowUpdate(1, 10)
		}, accepted},
		"5.1.1 even stream": {func(p *peer) { p.headers(2, getBlock(), true) }, protocol},
		"5.1.1 lower stream": {func(p *peer) {
			p.headers(5, getBlock(), true)
			p.take()
			p.headers(3, getBlock(), true)
		}, resets(http2.ErrCodeStreamClosed)},
		"6.1 DATA on stream 0": {func(p *peer) {
			p.fr.WriteRawFrame(http2.FrameData, 0, 0, []byte("x"))
		}, protocol},
		"6.1 padding": {func(p *peer) {
			p.headers(1, getBlock(), false)
			p.fr.WriteDataPadded(1, true, []byte("hello"), make([]byte, 200))
		}, accepted},
		"6.1 padding beyond the frame": {func(p *peer) {
			p.headers(1, getBlock(), false)
			p.fr.WriteRawFrame(http2.FrameData, http2.FlagDataPadded, 1, []byte{6, 1, 2, 3, 4, 5})
		}, protocol},
		"6.1 padded without a length": {func(p *peer) {
			p.headers(1, getBlock(), false)
			p.fr.WriteRawFrame(http2.FrameData, http2.FlagDataPadded, 1, nil)
		}, frameSize},
		"6.2 HEADERS on stream 0": {func(p *peer) { p.headers(0, getBlock(), true) }, protocol},
		"6.2 padding and priority": {func(p *peer) {
			p.fr.WriteHeaders(http2.HeadersFrameParam{
				StreamID:      1,
				BlockFragment: getBlock(),
				EndStream:     true,
				EndHeaders:    true,
				PadLength:     10,
				Priority:      http2.PriorityParam{StreamDep: 3, Weight: 7},
			})
		}, accepted},
		"6.2 padding beyond the frame": {func(p *peer) {
			flags := http2.FlagHeadersPadded | http2.FlagHeadersEndHeaders
			p.fr.WriteRawFrame(http2.FrameHeaders, flags, 1, []byte{9, 1})
		}, protocol},
		"6.2 priority cut": {func(p *peer) {
			flags := http2.FlagHeadersPriority | http2.FlagHeadersEndHeaders
			p.fr.WriteRawFrame(http2.FrameHeaders, flags, 1, []byte{9, 1})
		}, frameSize},
		"6.3 PRIORITY of a wrong size": {func(p *peer) {
			p.fr.WriteRawFrame(http2.FramePriority, 0, 1, make([]byte, 4))
		}, frameSize},
		"6.3 PRIORITY on stream 0": {func(p *peer) {
			p.fr.WriteRawFrame(http2.FramePriority, 0, 0, make([]byte, 5))
		}, protocol},
		"6.4 RST_STREAM on stream 0": {func(p *peer) { p.fr.WriteRSTStream(0, 0) }, protocol},
		"6.4 RST_STREAM of a wrong size": {func(p *peer) {
			p.headers(1, getBlock("x-hold", "1"), true)
			p.fr.WriteRawFrame(http2.FrameRSTStream, 0, 1, make([]byte, 3))
		}, frameSize},
		"6.5 SETTINGS ack with payload": {func(p *peer) {
			p.fr.WriteRawFrame(http2.FrameSettings, http2.FlagSettingsAck, 0, make([]byte, 6))
		}, frameSize},
		"6.5 SETTINGS on a stream": {func(p *peer) {
			p.fr.WriteRawFrame(http2.FrameSettings, 0, 1, nil)
		}, protocol},
		"6.5 SETTINGS of a wrong size": {func(p *peer) {
			p.fr.WriteRawFrame(http2.FrameSettings, 0, 0, make([]byte, 5))
		}, frameSize},
		"6.5.2 ENABLE_PUSH 2": {func(p *peer) {
			p.fr.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 2})
		}, protocol},
		"6.5.2 INITIAL_WINDOW_SIZE too large": {func(p *peer) {
			p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31})
		}, flowControl},
		"6.5.2 MAX_FRAME_SIZE too small": {func(p *peer) {
			p.fr.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 16383})
		}, protocol},
		"6.5.2 MAX_FRAME_SIZE too large": {func(p *peer) {
			p.fr.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1 << 24})
		}, protocol},
		"6.5.2 unknown setting": {func(p *peer) {
			p.fr.WriteSettings(http2.Setting{ID: 0xff, Val: 9})
		}, accepted},
		"6.6 PUSH_PROMISE": {func(p *peer) {
			p.fr.WritePushPromise(http2.PushPromiseParam{
				StreamID:      1,
				PromiseID:     2,
				BlockFragment: getBlock(),
				EndHeaders:    true,
			})
		}, protocol},
		"6.7 PING ack not asked for": {func(p *peer) {
			p.fr.WritePing(true, [8]byte{1})
		}, accepted},
		"6.7 PING on a stream": {func(p *peer) {
			p.fr.WriteRawFrame(http2.FramePing, 0, 1, make([]byte, 8))
		}, protocol},
		"6.7 PING of a wrong size": {func(p *peer) {
			p.fr.WriteRawFrame(http2.FramePing, 0, 0, make([]byte, 6))
		}, frameSize},
		"6.8 GOAWAY on a stream": {func(p *peer) {
			p.fr.WriteRawFrame(http2.FrameGoAway, 0, 1, make([]byte, 8))
		}, protocol},
		"6.9 increment of 0 for the connection": {func(p *peer) { p.fr.WriteWindowUpdate(0, 0) }, protocol},
		"6.9 increment of 0 for a stream": {func(p *peer) {
			p.headers(1, getBlock("x-hold", "1"), false)
			p.fr.WriteWindowUpdate(1, 0)
		}, malformed},
		"6.9 WINDOW_UPDATE of a wrong size": {func(p *peer) {
			p.fr.WriteRawFrame(http2.FrameWindowUpdate, 0, 0, make([]byte, 3))
		}, frameSize},
		"6.9.1 window of the connection overflows": {func(p *peer) {
			p.fr.WriteWindowUpdate(0, 1<<31-1)
		}, flowControl},
		"6.9.1 window of a stream overflows": {func(p *peer) {
			p.headers(1, getBlock("x-hold", "1"), false)
			p.fr.WriteWindowUpdate(1, 1<<31-1)
		}, resets(http2.ErrCodeFlowControl)},
		"6.9.2 window of a stream overflows by SETTINGS": {func(p *peer) {
			p.headers(1, getBlock("x-hold", "1"), false)
			p.fr.WriteWindowUpdate(1, 1<<31-1-65535)
			p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 65536})
		}, flowControl},
		"6.9.1 DATA beyond the stream's window": {func(p *peer) {
			p.headers(1, getBlock("x-hold", "1"), false)
			for range 5 {
				p.fr.WriteData(1, false, make([]byte, 16384))
			}
		}, flowControl},
		"6.10 CONTINUATION frames": {func(p *peer) {
			block := getBlock()
			p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:3], EndStream: true})
			p.fr.WriteContinuation(1, false, block[3:7])
			p.fr.WriteContinuation(1, true, block[7:])
		}, accepted},
		"8.1 trailers": {func(p *peer) {
			p.headers(1, getBlock(), false)
			p.fr.WriteData(1, false, []byte("x"))
			p.headers(1, fields("x-sum", "1"), true)
		}, accepted},
		"8.1 trailers without END_STREAM": {func(p *peer) {
			p.headers(1, getBlock("x-hold", "1"), false)
			p.headers(1, fields("x-sum", "1"), false)
		}, malformed},
		"8.1 trailers with a pseudo-header": {func(p *peer) {
			p.headers(1, getBlock("x-hold", "1"), false)
			p.headers(1, fields(":method", "GET"), true)
		}, malformed},
		"8.1.1 content-length": {func(p *peer) {
			p.headers(1, getBlock("content-length", "5"), false)
			p.fr.WriteData(1, true, []byte("hello"))
		}, accepted},
		"8.1.1 body shorter than content-length": {func(p *peer) {
			p.headers(1, getBlock("x-hold", "1", "content-length", "5"), false)
			p.fr.WriteData(1, true, []byte("x"))
		}, malformed},
		"8.1.1 body longer than content-length": {func(p *peer) {
			p.headers(1, getBlock("x-hold", "1", "content-length", "1"), false)
			p.fr.WriteData(1, false, []byte("xx"))
		}, malformed},
		"8.1.1 content-length without a body": {func(p *peer) {
			p.headers(1, getBlock("x-hold", "1", "content-length", "1"), true)
		}, malformed},
		"8.1.1 two content-lengths": {func(p *peer) {
			p.headers(1, getBlock("content-length", "1", "content-length", "2"), false)
		}, malformed},
		"8.1.1 content-length with a sign": {func(p *peer) {
			p.headers(1, getBlock("content-length", "+1"), false)
		}, malformed},
		"8.2.1 upper-case name": {func(p *peer) { p.headers(1, getBlock("X-A", "1"), true) }, malformed},
		"8.2.1 space in a name": {func(p *peer) { p.headers(1, getBlock("x a", "1"), true) }, malformed},
		"8.2.1 empty name":      {func(p *peer) { p.headers(1, getBlock("", "1"), true) }, malformed},
		"8.2.1 newline in a value": {func(p *peer) {
			p.headers(1, getBlock("x", "1\r\ny: 2"), true)
		}, malformed},
		"8.2.1 space around a value": {func(p *peer) { p.headers(1, getBlock("x", " 1"), true) }, malformed},
		"8.2.2 connection": {func(p *peer) {
			p.headers(1, getBlock("connection", "close"), true)
		}, malformed},
		"8.2.2 transfer-encoding": {func(p *peer) {
			p.headers(1, getBlock("transfer-encoding", "chunked"), false)
		}, malformed},
		"8.2.2 te": {func(p *peer) {
			p.headers(1, getBlock("te", "gzip"), true)
		}, malformed},
		"8.2.2 te trailers": {func(p *peer) {
			p.headers(1, getBlock("te", "trailers"), true)
		}, accepted},
		"8.2.3 cookie crumbs": {func(p *peer) {
			p.headers(1, getBlock("cookie", "a=1", "cookie", "b=2"), true)
		}, accepted},
		"8.3 pseudo-header after a field": {func(p *peer) {
			p.headers(1, fields(":method", "GET", ":scheme", "http", "x", "1", ":path", "/"), true)
		}, malformed},
		"8.3 unknown pseudo-header": {func(p *peer) {
			p.headers(1, fields(":method", "GET", ":scheme", "http", ":path", "/", ":x", "1"), true)
		}, malformed},
		"8.3 response's pseudo-header": {func(p *peer) {
			p.headers(1, fields(":method", "GET", ":scheme", "http", ":path", "/", ":status", "200"), true)
		}, malformed},
		"8.3.1 empty path": {func(p *peer) {
			p.headers(1, fields(":method", "GET", ":scheme", "http", ":path", ""), true)
		}, malformed},
		"8.3.1 no path": {func(p *peer) {
			p.headers(1, fields(":method", "GET", ":scheme", "http"), true)
		}, malformed},
		"8.3.1 no method": {func(p *peer) {
			p.headers(1, fields(":path", "/", ":scheme", "http"), true)
		}, malformed},
		"8.3.1 no scheme": {func(p *peer) {
			p.headers(1, fields(":method", "GET", ":path", "/"), true)
		}, malformed},
		"8.3.1 two paths": {func(p *peer) {
			p.headers(1, fields(":method", "GET", ":scheme", "http", ":path", "/", ":path", "/"), true)
		}, malformed},
		"8.3.1 space in the path": {func(p *peer) {
			p.headers(1, fields(":method", "GET", ":scheme", "http", ":path", "/a b"), true)
		}, malformed},
		"8.3.1 OPTIONS *": {func(p *peer) {
			p.headers(1, fields(":method", "OPTIONS", ":scheme", "http", ":path", "*"), true)
		}, accepted},
		"8.3.1 GET *": {func(p *peer) {
			p.headers(1, fields(":method", "GET", ":scheme", "http", ":path", "*"), true)
		}, malformed},
		"8.3.1 host differs": {func(p *peer) {
			p.headers(1, getBlock("host", "other.test"), true)
		}, malformed},
		"8.3.1 host agrees": {func(p *peer) { p.headers(1, getBlock("host", "App.Test"), true) }, accepted},
		"8.3.1 user in the authority": {func(p *peer) {
			p.headers(1, fields(":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a@b"), true)
		}, malformed},
		"8.5 CONNECT": {func(p *peer) {
			p.headers(1, fields(":method", "CONNECT", ":authority", "a:1"), true)
		}, accepted},
		"8.5 CONNECT with a path": {func(p *peer) {
			p.headers(1, fields(":method", "CONNECT", ":authority", "a:1", ":path", "/"), true)
		}, malformed},
		"8.5 CONNECT without authority": {func(p *peer) {
			p.headers(1, fields(":method", "CONNECT"), true)
		}, malformed},
		"RFC 8441 :protocol is not enabled": {func(p *peer) {
			p.headers(1, fields(":method", "CONNECT", ":scheme", "http", ":path", "/", ":authority", "a",
				":protocol", "websocket"), true)
		}, malformed},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := startPeer(t, Config{Handle: holdOrAnswer})
				defer p.close()
				c.send(p)
				checkOutcome(t, p, c.want)
			})
		})
	}
}

// holdOrAnswer answers at once, or for the field x-hold once the request has ended.
func holdOrAnswer(s *Stream) {
	var h message.Head
	if _, err := s.ReadHead(&h); err != nil {
		return
	}
	if _, hold := h.Get("x-hold"); hold {
		held := make(chan struct{})
		s.OnReset(func(error) { close(held) })
		<-held
		return
	}
	if _, err := readAll(s); err != nil {
		return
	}
	s.WriteHead(&message.Head{Status: 200}, []byte("hello"), true)
}

func checkOutcome(t *testing.T, p *peer, want outcome) {
	t.Helper()
	goAway, away := p.find(http2.FrameGoAway)
	reset, cut := p.find(http2.FrameRSTStream)
	switch {
	case want.ok && (away || cut):
		t.Errorf("GOAWAY %v %v, reset %v %v: want none", away, goAway, cut, reset)
	case want.goAway != 0 && (!away || goAway.Code != want.goAway):
		t.Errorf("GOAWAY %v %v: want %v", away, goAway, want.goAway)
	case want.goAway != 0 && !p.ended():
		t.Error("the connection is still open")
	case want.reset != 0 && (away || !cut || reset.Code != want.reset):
		t.Errorf("GOAWAY %v %v, reset %v %v: want a reset with %v", away, goAway, cut, reset, want.reset)
	}
	if want.goAway == 0 {
		// The connection still works.
		p.take()
		p.headers(99, getBlock(), true)
		f, ok := p.find(http2.FrameHeaders)
		if !ok || f.Stream != 99 || !strings.HasPrefix(f.Text, ":status=200") {
			t.Errorf("next request: %v %v", ok, f)
		}
	}
}

func TestServerRefusesWrongPreface(t *testing.T) {
	for name, first := range map[string]string{
		"HTTP/1":   "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"no frame": http2.ClientPreface + "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"PING":     http2.ClientPreface + "\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPeer(t, Config{Handle: echo})
				defer p.close()
				io.WriteString(p.nc, first)
				if f, ok := p.find(http2.FrameGoAway); !ok || f.Code == 0 {
					t.Errorf("GOAWAY %v %v", ok, f)
				}
			})
		})
	}
}

// TestClientConformance sends what RFC 9113 forbids or permits to a client end with one
// open request, on stream 1.
func TestClientConformance(t *testing.T) {
	malformed := resets(http2.ErrCodeProtocol)
	ok := func(more ...string) []byte { return fields(append([]string{":status", "200"}, more...)...) }
	cases := map[string]struct {
		send func(p *peer)
		want outcome
	}{
		"5.1 DATA before HEADERS":    {func(p *peer) { p.fr.WriteData(1, true, []byte("x")) }, malformed},
		"5.1 HEADERS on idle":        {func(p *peer) { p.headers(3, ok(), true) }, protocol},
		"5.1.1 stream of the server": {func(p *peer) { p.headers(2, ok(), true) }, protocol},
		"6.5.2 ENABLE_PUSH 1": {func(p *peer) {
			p.fr.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 1})
		}, protocol},
		"6.6 PUSH_PROMISE": {func(p *peer) {
			p.fr.WritePushPromise(http2.PushPromiseParam{
				StreamID:      1,
				PromiseID:     2,
				BlockFragment: getBlock(),
				EndHeaders:    true,
			})
		}, protocol},
		"6.8 GOAWAY raises the last stream": {func(p *peer) {
			p.fr.WriteGoAway(1, 0, nil)
			p.fr.WriteGoAway(3, 0, nil)
		}, protocol},
		"8.1 response": {func(p *peer) { p.headers(1, ok(), true) }, accepted},
		"8.1 informational, then final": {func(p *peer) {
			p.headers(1, fields(":status", "103"), false)
			p.headers(1, ok(), true)
		}, accepted},
		"8.1 informational ends the stream": {func(p *peer) {
			p.headers(1, fields(":status", "103"), true)
		}, malformed},
		"8.1.1 content-length": {func(p *peer) {
			p.headers(1, ok("content-length", "3"), true)
		}, malformed},
		"8.1.1 content-length of 304": {func(p *peer) {
			p.headers(1, fields(":status", "304", "content-length", "3"), true)
		}, accepted},
		"8.3.2 no status": {func(p *peer) { p.headers(1, fields("x", "1"), true) }, malformed},
		"8.3.2 status of 2 digits": {func(p *peer) {
			p.headers(1, fields(":status", "20"), true)
		}, malformed},
		"8.3.2 request's pseudo-header": {func(p *peer) {
			p.headers(1, ok(":path", "/"), true)
		}, malformed},
		"8.6 status 101": {func(p *peer) { p.headers(1, fields(":status", "101"), false) }, malformed},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := startPeer(t, Config{Client: true})
				defer p.close()
				s, err := p.conn.Open(requestHead("GET", "/"), nil, true)
				if err != nil {
					t.Fatal(err)
				}
				p.take()
				c.send(p)
				goAway, away := p.find(http2.FrameGoAway)
				reset, cut := p.find(http2.FrameRSTStream)
				switch want := c.want; {
				case want.ok && (away || cut):
					t.Errorf("GOAWAY %v %v, reset %v %v: want none", away, goAway, cut, reset)
				case want.goAway != 0 && (!away || goAway.Code != want.goAway):
					t.Errorf("GOAWAY %v %v: want %v", away, goAway, want.goAway)
				case want.reset != 0 && (away || !cut || reset.Code != want.reset):
					t.Errorf("GOAWAY %v %v, reset %v %v: want a reset with %v",
						away, goAway, cut, reset, want.reset)
				}
				_, err = readResponse(s)
				if (err == nil) != c.want.ok {
					t.Errorf("response: %v", err)
				}
			})
		})
	}
}

// readResponse returns the status of the final head after reading to the end.
func readResponse(s *Stream) (int, error) {
	status, _, err := readBody(s)
	return status, err
}

func readBody(s *Stream) (status int, body []byte, err error) {
	var h message.Head
	for h.Status < 200 {
		if _, err := s.ReadHead(&h); err != nil {
			return 0, nil, err
		}
	}
	body, err = readAll(s)
	return h.Status, body, err
}
