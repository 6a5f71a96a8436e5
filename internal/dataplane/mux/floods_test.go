package mux

import (
	"bytes"
	"errors"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/dataplane/message"
)

// hold keeps a stream open until it is cut.
func hold(s *Stream) {
	held := make(chan struct{})
	s.OnReset(func(error) { close(held) })
	<-held
}

func TestFloodsEndTheConnection(t *testing.T) {
	big := bytes.Repeat([]byte("a"), 16000)
	cases := map[string]struct {
		// send makes one step of the flood.
		send   func(p *peer, i int)
		steps  int // after which the connection must have ended
		reason string
	}{
		"rapid reset": {func(p *peer, i int) {
			p.headers(uint32(2*i+1), getBlock(), false)
			p.fr.WriteRSTStream(uint32(2*i+1), http2.ErrCodeCancel)
		}, 102, "rapid_reset"},
		"resets that the peer provokes": {func(p *peer, i int) {
			p.headers(uint32(2*i+1), getBlock(), false)
			p.fr.WriteWindowUpdate(uint32(2*i+1), 0)
		}, 102, "rapid_reset"},
		"malformed requests": {func(p *peer, i int) {
			p.headers(uint32(2*i+1), fields("x", "1"), true)
		}, 102, "rapid_reset"},
		"streams beyond the limit": {func(p *peer, i int) {
			p.headers(uint32(2*i+1), getBlock(), false)
		}, 110, "rapid_reset"},
		"empty CONTINUATION": {func(p *peer, i int) {
			if i == 0 {
				p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: getBlock()})
			}
			p.fr.WriteContinuation(1, false, nil)
		}, 102, "continuation_flood"},
		"large CONTINUATION": {func(p *peer, i int) {
			if i == 0 {
				p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: getBlock()})
			}
			p.fr.WriteContinuation(1, false, fields("x", string(big)))
		}, 40, "head_too_large"},
		"huge field": {func(p *peer, i int) {
			if i == 0 {
				// A literal field whose value has 16 MiB.
				length := []byte{0, 1, 'x', 0x7f, 0x81, 0xff, 0xff, 0x07}
				p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: length})
				return
			}
			p.fr.WriteContinuation(1, false, big)
		}, 20, "head_too_large"},
		"SETTINGS":      {func(p *peer, i int) { p.fr.WriteSettings() }, 102, "settings_flood"},
		"SETTINGS acks": {func(p *peer, i int) { p.fr.WriteSettingsAck() }, 102, "settings_flood"},
		"PING":          {func(p *peer, i int) { p.fr.WritePing(false, [8]byte{}) }, 102, "ping_flood"},
		"PING acks":     {func(p *peer, i int) { p.fr.WritePing(true, [8]byte{}) }, 102, "ping_flood"},
		"empty DATA": {func(p *peer, i int) {
			if i == 0 {
				p.headers(1, getBlock(), false)
			}
			p.fr.WriteData(1, false, nil)
		}, 102, "empty_data_flood"},
		"PRIORITY": {func(p *peer, i int) {
			p.fr.WritePriority(1, http2.PriorityParam{StreamDep: 3})
		}, 102, "ignored_frame_flood"},
		"unknown frames": {func(p *peer, i int) {
			p.fr.WriteRawFrame(0xee, 0, 0, nil)
		}, 102, "ignored_frame_flood"},
		"tiny window updates": {func(p *peer, i int) {
			if i == 0 {
				p.headers(1, getBlock(), false)
			}
			p.fr.WriteWindowUpdate(1, 1)
		}, 102, "window_update_flood"},
		"GOAWAY": {func(p *peer, i int) { p.fr.WriteGoAway(0, 0, nil) }, 103, "goaway_flood"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := startPeer(t, Config{Handle: hold, MaxStreams: 5})
				defer p.close()
				for i := range c.steps {
					c.send(p, i)
				}
				f, ok := p.find(http2.FrameGoAway)
				if !ok || f.Code != http2.ErrCodeEnhanceYourCalm || f.Text != c.reason {
					t.Errorf("GOAWAY %v %v: want ENHANCE_YOUR_CALM and %s", ok, f, c.reason)
				}
				if got := p.conn.reason(); got != c.reason {
					t.Errorf("reason %q: want %q", got, c.reason)
				}
				for i, reason := range p.faultReasons() {
					last := i == len(p.faults)-1
					if !slices.Contains(FaultReasons(), reason) || last && reason != c.reason {
						t.Errorf("fault %d: %s", i, reason)
					}
				}
				if len(p.faults) == 0 {
					t.Error("no fault is reported")
				}
			})
		})
	}
}

// TestModerateRatesAreNoFlood sends nine control frames per second for a minute, and 90
// canceled requests per second.
func TestModerateRatesAreNoFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startPeer(t, Config{Handle: hold})
		defer p.close()
		id := uint32(1)
		for range 60 {
			for range 9 {
				p.fr.WritePing(false, [8]byte{})
			}
			for range 90 {
				p.headers(id, getBlock(), false)
				p.fr.WriteRSTStream(id, http2.ErrCodeCancel)
				id += 2
			}
			bubble.Pass(time.Second)
		}
		if p.ended() {
			t.Errorf("ended: %s", p.conn.reason())
		}
	})
}

// TestAnsweredRequestsEarnFrames: a gRPC client sends a PING and two window updates per
// response, at any rate, and cancels as many streams as it completes.
func TestAnsweredRequestsEarnFrames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startPeer(t, Config{Handle: holdOrAnswer})
		defer p.close()
		for i := range uint32(2000) {
			p.headers(4*i+1, getBlock(), true)
			p.headers(4*i+3, getBlock("x-hold", "1"), false)
			p.take()
			p.fr.WriteWindowUpdate(0, 5)
			p.fr.WritePing(false, [8]byte{})
			p.fr.WriteRSTStream(4*i+3, http2.ErrCodeCancel)
		}
		if p.ended() {
			t.Errorf("ended: %s", p.conn.reason())
		}
	})
}

// TestHeadTooLarge: a head beyond the limit that can be decoded is refused alone, and the
// compression table still agrees.
func TestHeadTooLarge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startPeer(t, Config{Handle: echo, MaxHeadBytes: 4 << 10})
		defer p.close()
		big := string(bytes.Repeat([]byte("a"), 3<<10))
		p.headers(1, getBlock("x-big", big, "x-more", "b", "x-big2", big), true)
		if f, ok := p.find(http2.FrameHeaders); !ok || f.Text != ":status=431;" {
			t.Errorf("response %v %v: want 431", ok, f)
		}
		p.take()
		p.headers(3, getBlock(), true)
		if f, ok := p.find(http2.FrameHeaders); !ok || f.Stream != 3 || f.Text != ":status=200;x-target=/;" {
			t.Errorf("response %v %v: want 200", ok, f)
		}
	})
}

func TestRawHeadTooLarge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startPeer(t, Config{Handle: echo, MaxHeadBytes: 4 << 10, Coding: rawCoding{}})
		defer p.close()
		p.headers(1, bytes.Repeat([]byte("a"), 5<<10), true)
		const refusal = "HTTP/1.1 431 Request Header Fields Too Large\r\n\r\n"
		if f, ok := p.find(http2.FrameHeaders); !ok || f.Text != refusal {
			t.Errorf("response %v %v: want 431", ok, f)
		}
		p.take()
		p.headers(3, bytes.Repeat([]byte("a"), 9<<10), true)
		if f, ok := p.find(http2.FrameGoAway); !ok || f.Text != "head_too_large" {
			t.Errorf("GOAWAY %v %v", ok, f)
		}
	})
}

// TestResponseHeadTooLarge: the reader of a response learns the reason.
func TestResponseHeadTooLarge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startPeer(t, Config{Client: true, MaxHeadBytes: 1 << 10})
		defer p.close()
		s, err := p.conn.Open(requestHead("GET", "/"), nil, true)
		if err != nil {
			t.Fatal(err)
		}
		p.headers(1, fields(":status", "200", "x", string(bytes.Repeat([]byte("a"), 1020))), true)
		if _, err := readResponse(s); !errors.Is(err, ErrHeadTooLarge) {
			t.Errorf("response: %v", err)
		}
	})
}

// TestCompressionBomb: a small block that names one table entry many times costs no
// memory and is refused.
func TestCompressionBomb(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startPeer(t, Config{Handle: echo})
		defer p.close()
		// A literal that enters the table, with a value of 3,000 bytes.
		block := append(getBlock(), 0x40, 1, 'x', 0x7f, 0xb9, 0x16)
		block = append(block, bytes.Repeat([]byte("a"), 3000)...)
		p.headers(1, block, true)
		if f, ok := p.find(http2.FrameHeaders); !ok || f.Text != ":status=200;x-target=/;" {
			t.Fatalf("response %v %v: want 200", ok, f)
		}
		p.take()
		before := allocated()
		p.headers(3, append(getBlock(), bytes.Repeat([]byte{0xbe}, 16000)...), true)
		if f, ok := p.find(http2.FrameHeaders); !ok || f.Text != ":status=431;" {
			t.Errorf("response %v %v, %v: want 431", ok, f, p.conn.end)
		}
		if grown := allocated() - before; grown > 1<<20 {
			t.Errorf("allocated %d bytes for a bomb", grown)
		}
	})
}

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

func TestStreamsBeyondTheLimitAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startPeer(t, Config{Handle: hold, MaxStreams: 2})
		defer p.close()
		for id := uint32(1); id <= 5; id += 2 {
			p.headers(id, getBlock(), false)
		}
		f, ok := p.find(http2.FrameRSTStream)
		if !ok || f.Stream != 5 || f.Code != http2.ErrCodeRefusedStream {
			t.Errorf("reset %v %v: want stream 5 refused", ok, f)
		}
	})
}

// TestHandlersAreBounded: goroutines of streams that the peer has reset count as well.
func TestHandlersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		p := startPeer(t, Config{Handle: func(*Stream) { <-release }, MaxStreams: 2})
		defer p.close()
		defer close(release)
		for id := uint32(1); id <= 9; id += 2 {
			p.headers(id, getBlock(), false)
			p.fr.WriteRSTStream(id, http2.ErrCodeCancel)
			synctest.Wait()
		}
		f, ok := p.find(http2.FrameRSTStream)
		if !ok || f.Stream != 9 || f.Code != http2.ErrCodeRefusedStream {
			t.Errorf("reset %v %v: want stream 9 refused", ok, f)
		}
	})
}

// TestPeerThatDoesNotRead causes frames and reads none. The limits of floods are lifted,
// so that the bound of the pending frames is reached.
func TestPeerThatDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startPeer(t, Config{Handle: echo})
		defer p.close()
		p.pause(true)
		defer p.pause(false)
		p.conn.mu.Lock()
		p.conn.floods.credits = 1 << 30
		p.conn.mu.Unlock()
		sent := 0
		for ; p.conn.reason() == "" && sent < 1<<20; sent++ {
			p.fr.WritePing(false, [8]byte{})
			synctest.Wait()
		}
		// The last frames cannot be sent either.
		bubble.Pass(2 * lastWriteTimeout)
		if got := p.conn.reason(); got != "peer_not_reading" {
			t.Errorf("reason %q", got)
		}
		if most := (memoryBufferSize + 2*(maxPending+maxControl)) / (8 + frameHeaderLen); sent > most {
			t.Errorf("%d PINGs were taken: want at most %d", sent, most)
		}
		<-p.err
	})
}

// TestLargeHeadIsNoFlood: while a large head waits to be written, the connection must not
// end when it answers a frame.
func TestLargeHeadIsNoFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		large := []message.Field{{Name: "x-large", Value: strings.Repeat("~", 90<<10)}}
		p := startPeer(t, Config{Handle: func(s *Stream) {
			var h message.Head
			s.ReadHead(&h)
			switch h.Target {
			case "/blocks":
				s.WriteHead(&message.Head{Status: 200}, make([]byte, 2*memoryBufferSize), true)
			case "/fills":
				s.WriteHead(&message.Head{Status: 200}, make([]byte, maxPending-1<<10), true)
			default:
				s.WriteHead(&message.Head{Status: 200, Fields: large}, nil, true)
			}
		}}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
		defer p.close()
		p.fr.WriteWindowUpdate(0, 1<<30)
		p.pause(true)
		defer p.pause(false)
		for i, path := range []string{"/blocks", "/fills", "/large"} {
			block := fields(":method", "GET", ":scheme", "http", ":authority", "app.test", ":path", path)
			p.headers(uint32(2*i+1), block, true)
			synctest.Wait()
		}
		p.fr.WritePing(false, [8]byte{})
		p.fr.WritePing(false, [8]byte{})
		synctest.Wait()
		if got := p.conn.reason(); got != "" {
			t.Errorf("the connection ended: %q", got)
		}
	})
}

// TestResetUnblocksFlusher: a stream whose goroutine writes to a stuck connection can be
// ended, which ends the connection if the write does not go on.
func TestResetUnblocksFlusher(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		done := make(chan error, 1)
		var stream *Stream
		p := startPeer(t, Config{Handle: func(s *Stream) {
			stream = s
			s.WriteHead(&message.Head{Status: 200}, nil, false)
			var err error
			for err == nil {
				_, err = s.Write(make([]byte, 16<<10), false)
			}
			done <- err
		}}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
		defer p.close()
		p.fr.WriteWindowUpdate(0, 1<<30)
		p.pause(true)
		defer p.pause(false)
		p.headers(1, getBlock(), true)
		synctest.Wait()
		stream.Reset(http2.ErrCodeCancel)
		bubble.Pass(stuckTimeout + 2*lastWriteTimeout)
		select {
		case err := <-done:
			if err == nil {
				t.Error("no error")
			}
		default:
			t.Error("the writer still waits")
		}
		if got := p.conn.reason(); got != "peer_not_reading" {
			t.Errorf("reason %q", got)
		}
	})
}

// TestManyResetsInFlight: frames on the last 1,024 streams that this end reset are no
// error, and cancels of answers that have begun are no rapid reset.
func TestManyResetsInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startPeer(t, Config{MaxStreams: 1000, Handle: func(s *Stream) {
			var h message.Head
			s.ReadHead(&h)
			if h.Target == "/early" {
				s.WriteHead(&message.Head{Status: 413}, nil, true)
				return
			}
			s.WriteHead(&message.Head{Status: 200}, nil, false)
			hold(s)
		}})
		defer p.close()
		for i := range uint32(500) {
			p.headers(2*i+1, pathBlock("/early"), false)
		}
		synctest.Wait()
		for i := range uint32(500) {
			p.fr.WriteData(2*i+1, true, make([]byte, 100))
		}
		for i := uint32(500); i < 1000; i++ {
			p.headers(2*i+1, getBlock(), true)
		}
		synctest.Wait()
		for i := uint32(500); i < 1000; i++ {
			p.fr.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
		}
		if p.ended() {
			t.Errorf("ended: %s", p.conn.reason())
		}
	})
}

func TestRecentResets(t *testing.T) {
	var r recentResets
	for id := range uint32(3000) {
		r.add(id)
	}
	if r.has(3000-maxRecentResets-1) || !r.has(3000-maxRecentResets) || !r.has(2999) {
		t.Error("the ring does not hold the last streams")
	}
	if len(r.known) != maxRecentResets {
		t.Errorf("%d streams are remembered", len(r.known))
	}
}

func TestInformationalHeadsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startPeer(t, Config{Client: true})
		defer p.close()
		s, err := p.conn.Open(requestHead("GET", "/"), nil, true)
		if err != nil {
			t.Fatal(err)
		}
		for range maxHeadQueue {
			p.headers(1, fields(":status", "103"), false)
		}
		if f, ok := p.find(http2.FrameRSTStream); ok {
			t.Errorf("reset %v within the limit", f)
		}
		p.headers(1, fields(":status", "103"), false)
		if f, ok := p.find(http2.FrameRSTStream); !ok || f.Code != http2.ErrCodeEnhanceYourCalm {
			t.Errorf("reset %v %v", ok, f)
		}
		if _, err := readResponse(s); err == nil {
			t.Error("no error")
		}
	})
}
