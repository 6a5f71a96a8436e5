package mux

import (
	"bytes"
	"context"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
)

// frameBytes returns the frames that f writes.
func frameBytes(f func(fr *http2.Framer)) []byte {
	var out bytes.Buffer
	fr := http2.NewFramer(&out, nil)
	fr.AllowIllegalWrites = true
	f(fr)
	return out.Bytes()
}

func headersParam(id uint32, block []byte, end bool) http2.HeadersFrameParam {
	return http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndStream: end, EndHeaders: true}
}

func addFrameSeeds(f *testing.F, block []byte) {
	f.Add(frameBytes(func(fr *http2.Framer) {
		fr.WriteSettings()
		fr.WriteHeaders(headersParam(1, block, false))
		fr.WriteData(1, true, []byte("hello"))
	}))
	f.Add(frameBytes(func(fr *http2.Framer) {
		fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1})
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:2]})
		fr.WriteContinuation(1, true, block[2:])
		fr.WriteWindowUpdate(1, 100)
		fr.WriteHeaders(headersParam(1, fields("x", "1"), true))
		fr.WritePing(false, [8]byte{})
	}))
	f.Add(frameBytes(func(fr *http2.Framer) {
		fr.WriteSettings()
		fr.WriteHeaders(headersParam(1, block, true))
		fr.WriteRSTStream(1, http2.ErrCodeCancel)
		fr.WriteGoAway(1, 0, nil)
		fr.WriteDataPadded(1, true, []byte("x"), make([]byte, 9))
	}))
}

// fuzzConn feeds bytes to a connection, then closes. The connection must end without a
// panic, and its buffers must be within the limits.
func fuzzConn(t *testing.T, cfg Config, preface string, data []byte, use func(c *Conn)) {
	synctest.Test(t, func(t *testing.T) {
		far, near := newMemoryPair()
		c := New(near, cfg)
		done := make(chan struct{})
		go func() {
			defer close(done)
			c.Run(context.Background())
		}()
		go io.Copy(io.Discard, far)
		if use != nil {
			go use(c)
		}
		io.WriteString(far, preface)
		for len(data) > 0 {
			n := min(len(data), 1000)
			if _, err := far.Write(data[:n]); err != nil {
				break
			}
			data = data[n:]
			synctest.Wait()
			c.mu.Lock()
			unread := 0
			for _, s := range c.streams {
				unread += s.buffer.n
			}
			most := len(c.streams) * streamWindow
			if unread > most || c.out.len() > 2*(maxPending+maxControl) {
				t.Errorf("%d bytes unread of at most %d, %d pending", unread, most, c.out.len())
			}
			c.mu.Unlock()
		}
		far.Close()
		select {
		case <-done:
		case <-time.After(time.Minute):
			t.Error("the connection has not ended")
		}
		synctest.Wait()
		if n := c.Load(); n != 0 {
			t.Errorf("%d streams are left", n)
		}
	})
}

func FuzzServerFrames(f *testing.F) {
	addFrameSeeds(f, getBlock())
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg := Config{Handle: echo, MaxStreams: 10, MaxHeadBytes: 1 << 10}
		fuzzConn(t, cfg, http2.ClientPreface, data, nil)
	})
}

func FuzzServerFramesRaw(f *testing.F) {
	addFrameSeeds(f, []byte("GET / HTTP/1.1\r\nA: b\r\n\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg := Config{Handle: echo, MaxStreams: 10, MaxHeadBytes: 1 << 10, Coding: rawCoding{}}
		fuzzConn(t, cfg, http2.ClientPreface, data, nil)
	})
}

func FuzzClientFrames(f *testing.F) {
	addFrameSeeds(f, fields(":status", "200"))
	addFrameSeeds(f, fields(":status", "103"))
	f.Fuzz(func(t *testing.T, data []byte) {
		fuzzConn(t, Config{Client: true, MaxHeadBytes: 1 << 10}, "", data, func(c *Conn) {
			for range 3 {
				s, err := c.Open(requestHead("POST", "/"), make([]byte, 100), true)
				if err != nil {
					return
				}
				readResponse(s)
				s.Trailers(new(message.Head))
				s.Reset(http2.ErrCodeCancel)
			}
		})
	})
}

// FuzzHeadAgainstMetaHeaders compares decoded request heads with those of x/net. What
// x/net refuses is refused here, and what is accepted has the same fields.
func FuzzHeadAgainstMetaHeaders(f *testing.F) {
	f.Add(getBlock("x-a", "1", "cookie", "a", "cookie", "b"))
	f.Add(getBlock("content-length", "5"))
	f.Add(fields(":method", "CONNECT", ":authority", "a:1"))
	f.Add([]byte("\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff")) // RFC 7541, C.4.1
	f.Fuzz(func(t *testing.T, block []byte) {
		if len(block) > 10000 {
			return
		}
		fr := http2.NewFramer(nil, bytes.NewReader(frameBytes(func(fr *http2.Framer) {
			fr.WriteHeaders(headersParam(1, block, true))
		})))
		fr.ReadMetaHeaders = hpack.NewDecoder(tableSize, nil)
		fr.MaxHeaderListSize = 1 << 16
		frame, theirErr := fr.ReadFrame()
		var d headDecoder
		d.init(1 << 16)
		d.begin()
		_, ourErr := d.hpack.Write(block)
		if ourErr == nil {
			ourErr = d.hpack.Close()
		}
		if ourErr == nil {
			ourErr = d.check(Request)
		}
		if ourErr != nil || d.tooLarge {
			return
		}
		if theirErr != nil {
			t.Fatalf("accepted what x/net refuses: %v", theirErr)
		}
		meta := frame.(*http2.MetaHeadersFrame)
		h := d.head
		for name, got := range map[string]string{
			"method":    h.Method,
			"scheme":    h.Scheme,
			"authority": h.Authority,
			"path":      h.Target,
		} {
			if want := meta.PseudoValue(name); got != want {
				t.Errorf("%s %q, x/net has %q", name, got, want)
			}
		}
		regular := h.Fields
		want := meta.RegularFields()
		if len(regular) != len(want) {
			t.Fatalf("%d fields, x/net has %d", len(regular), len(want))
		}
		for i, field := range regular {
			if field.Name != want[i].Name || field.Value != want[i].Value {
				t.Errorf("field %d is %v, x/net has %v", i, field, want[i])
			}
		}
	})
}

// FuzzEncodeDecode: what the encoder writes, the decoder reads.
func FuzzEncodeDecode(f *testing.F) {
	f.Add("GET", "/", "a", "x-name", "value")
	f.Fuzz(func(t *testing.T, method, target, authority, name, value string) {
		h := requestHead(method, target, message.Field{Name: name, Value: value})
		h.Authority = authority
		var e headEncoder
		e.init()
		var d headDecoder
		d.init(1 << 20)
		d.begin()
		if _, err := d.hpack.Write(e.encode(h)); err != nil {
			t.Fatal(err)
		}
		if d.check(Request) != nil {
			return
		}
		got := d.head
		if got.Method != method || got.Target != target || got.Authority != authority {
			t.Errorf("got %+v", got)
		}
	})
}
