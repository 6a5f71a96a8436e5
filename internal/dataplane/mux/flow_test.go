package mux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/dataplane/message"
)

// startPair runs a client and a server over memory.
func startPair(t *testing.T, client, server Config) (c, s *Conn) {
	near, far := newMemoryPair()
	client.Client = true
	c, s = New(near, client), New(far, server)
	var wg sync.WaitGroup
	wg.Go(func() { c.Run(context.Background()) })
	wg.Go(func() { s.Run(context.Background()) })
	t.Cleanup(func() {
		near.Close()
		far.Close()
		wg.Wait()
	})
	return c, s
}

// TestUnreadStreamsStallNoOther: 300 streams whose handlers do not read, full to their
// windows, hold more than the connection's window.
func TestUnreadStreamsStallNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := startPair(t, Config{}, Config{MaxStreams: 400, Handle: func(s *Stream) {
			var h message.Head
			s.ReadHead(&h)
			if h.Target == "/unread" {
				hold(s)
				return
			}
			readAll(s)
			s.WriteHead(&message.Head{Status: 200}, nil, true)
		}})
		synctest.Wait()
		var streams []*Stream
		var wg sync.WaitGroup
		for range 300 {
			s, err := c.Open(requestHead("POST", "/unread"), nil, false)
			if err != nil {
				t.Fatal(err)
			}
			streams = append(streams, s)
			wg.Go(func() { s.Write(make([]byte, 1<<20), true) })
		}
		synctest.Wait()
		s, err := c.Open(requestHead("POST", "/"), make([]byte, 4<<20), true)
		if err != nil {
			t.Fatal(err)
		}
		if status, err := readResponse(s); status != 200 || err != nil {
			t.Errorf("response %d, %v", status, err)
		}
		for _, s := range streams {
			s.Reset(http2.ErrCodeCancel)
		}
		wg.Wait()
	})
}

// bodySize returns the DATA bytes of a stream among frames.
func bodySize(frames []frame, id uint32) (n int) {
	for _, f := range frames {
		if f.Type == http2.FrameData && f.Stream == id {
			n += int(f.N)
		}
	}
	return n
}

// sendBody answers with as many bytes as the target says.
func sendBody(s *Stream) {
	var h message.Head
	if _, err := s.ReadHead(&h); err != nil {
		return
	}
	var n int
	fmt.Sscanf(h.Target, "/%d", &n)
	s.WriteHead(&message.Head{Status: 200}, make([]byte, n), true)
}

func pathBlock(path string) []byte {
	return fields(":method", "GET", ":scheme", "http", ":authority", "a", ":path", path)
}

// TestWindowsShrinkBelowZero follows RFC 9113, section 6.9.2.
func TestWindowsShrinkBelowZero(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		initial := func(n uint32) http2.Setting {
			return http2.Setting{ID: http2.SettingInitialWindowSize, Val: n}
		}
		p := startPeer(t, Config{Handle: sendBody}, initial(100))
		defer p.close()
		p.headers(1, pathBlock("/110"), true)
		steps := []struct {
			send func()
			want int // bytes that this step lets through
		}{
			{func() {}, 100},
			{func() { p.fr.WriteSettings(initial(10)) }, 0}, // the window is -90
			{func() { p.fr.WriteWindowUpdate(1, 90) }, 0},
			{func() { p.fr.WriteWindowUpdate(1, 4) }, 4},
			{func() { p.fr.WriteSettings(initial(20)) }, 6},
		}
		for i, step := range steps {
			step.send()
			if got := bodySize(p.take(), 1); got != step.want {
				t.Errorf("step %d: %d bytes, want %d", i, got, step.want)
			}
		}
	})
}

// TestWindowStallHoldsOneStream: a peer that opens no window for one stream still gets
// the others.
func TestWindowStallHoldsOneStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startPeer(t, Config{Handle: sendBody}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		defer p.close()
		p.headers(1, pathBlock("/1000"), true)
		p.headers(3, pathBlock("/1000"), true)
		p.take()
		p.fr.WriteWindowUpdate(3, 1000)
		got := p.take()
		if bodySize(got, 1) != 0 || bodySize(got, 3) != 1000 {
			t.Errorf("stream 1 has %d bytes, stream 3 has %d", bodySize(got, 1), bodySize(got, 3))
		}
		p.fr.WriteRSTStream(1, http2.ErrCodeCancel)
		synctest.Wait()
		if n := p.conn.Load(); n != 0 {
			t.Errorf("%d streams are open", n)
		}
	})
}

// TestConnectionWindowIsShared: a large body leaves the others their turns.
func TestConnectionWindowIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startPeer(t, Config{Handle: sendBody},
			http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
		defer p.close()
		p.headers(1, pathBlock("/65535"), true)
		p.take()
		p.headers(3, pathBlock("/1000000"), true)
		p.take()
		for id := uint32(5); id <= 9; id += 2 {
			p.headers(id, pathBlock("/30000"), true)
			p.take()
		}
		// Three bodies of two frames each, and as much again for the large one.
		for range 12 {
			p.fr.WriteWindowUpdate(0, 16384)
			synctest.Wait()
		}
		got := p.take()
		for id := uint32(5); id <= 9; id += 2 {
			if n := bodySize(got, id); n != 30000 {
				t.Errorf("stream %d sent %d bytes", id, n)
			}
		}
		if n := bodySize(got, 3); n < 4*16384 {
			t.Errorf("the large body has %d bytes", n)
		}
	})
}

func increments(frames []frame, id uint32) (out []uint32) {
	for _, f := range frames {
		if f.Type == http2.FrameWindowUpdate && f.Stream == id {
			out = append(out, f.N)
		}
	}
	return out
}

// TestWindowUpdatesFollowTheReader: nothing is announced before half a window is read.
func TestWindowUpdatesFollowTheReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		read := make(chan int)
		p := startPeer(t, Config{Handle: func(s *Stream) {
			for n := range read {
				io.ReadFull(s, make([]byte, n))
			}
		}})
		defer p.close()
		defer close(read)
		p.headers(1, getBlock(), false)
		for range 4 {
			p.fr.WriteDataPadded(1, false, make([]byte, 16<<10-101), make([]byte, 100))
		}
		if got := increments(p.take(), 1); got != nil {
			t.Errorf("increments %v before anything was read", got)
		}
		read <- 32<<10 - 405
		if got := increments(p.take(), 1); got != nil {
			t.Errorf("increments %v before half was read", got)
		}
		read <- 1
		if got := increments(p.take(), 1); len(got) != 1 || got[0] != 32<<10 {
			t.Errorf("increments %v, want half a window with the padding", got)
		}
	})
}

// budget is a WindowBudget.
type budget struct {
	limit int64
	used  atomic.Int64
}

func (b *budget) Reserve(n int) bool {
	if b.used.Load()+int64(n) > b.limit {
		return false
	}
	b.used.Add(int64(n))
	return true
}

func (b *budget) Release(n int) { b.used.Add(-int64(n)) }

// A pathTest is a connection of which the test knows the round trip, with one stream.
type pathTest struct {
	*peer
	rtt time.Duration
}

// startPath opens stream 1 and measures the round trip: one PING is answered after rtt.
func startPath(t *testing.T, rtt time.Duration, windows WindowBudget, handle func(*Stream)) *pathTest {
	p := &pathTest{startPeer(t, Config{Windows: windows, Handle: handle}), rtt}
	p.headers(1, getBlock(), false)
	p.send(32 << 10) // the window update comes with the PING
	<-time.After(rtt)
	p.fr.WritePing(true, pingData(pingMeasure, 0))
	p.take()
	return p
}

// send writes n bytes on stream 1 and returns the increments of its window.
func (p *pathTest) send(n int) (total int) {
	for ; n > 0; n -= 16 << 10 {
		p.fr.WriteData(1, false, make([]byte, min(n, 16<<10)))
		synctest.Wait()
	}
	for _, n := range increments(p.take(), 1) {
		total += int(n)
	}
	return total
}

// TestWindowGrowth: a window grows if the reader takes all of it within two round trips.
func TestWindowGrowth(t *testing.T) {
	const fast, far, slow = time.Millisecond, 60 * time.Millisecond, 3 * time.Millisecond
	cases := map[string]struct {
		rtt, pause time.Duration // pause is between windows
		budget     int64
		want       []int // windows, in KiB
	}{
		"a short path":               {fast, fast, 1 << 30, []int{128, 256, 512, 1024, 2048, 4096, 4096}},
		"a long path":                {far, far, 1 << 30, []int{256, 1024, 4096, 4096}},
		"a slow reader":              {fast, slow, 1 << 30, []int{64, 64, 64, 64}},
		"the budget refuses":         {fast, fast, 64<<10 - 1, []int{64, 64}},
		"the budget admits one step": {fast, fast, 128 << 10, []int{128, 128}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := &budget{limit: tc.budget}
				p := startPath(t, tc.rtt, b, func(s *Stream) {
					readAll(s)
					s.WriteHead(&message.Head{Status: 200}, nil, true)
				})
				defer p.close()
				window := 64 << 10
				for i, want := range tc.want {
					<-time.After(tc.pause)
					if window = p.send(window); window>>10 != want {
						t.Fatalf("step %d: the window is %d KiB, want %d", i, window>>10, want)
					}
					if used := b.used.Load(); used != int64(window-64<<10) {
						t.Errorf("step %d: %d bytes are reserved for a window of %d", i, used, window)
					}
				}
				p.fr.WriteData(1, true, nil)
				p.take()
				if used := b.used.Load(); used != 0 {
					t.Errorf("%d bytes are still reserved", used)
				}
			})
		})
	}
}

// TestLeastRoundTrip: the least round trip counts for at least leastAge, within bounds.
func TestLeastRoundTrip(t *testing.T) {
	const ms, age = time.Millisecond, leastAge
	type sample struct {
		after time.Duration // the one before
		rtt   time.Duration
	}
	for name, tc := range map[string]struct {
		samples []sample
		want    time.Duration
	}{
		"none":                    {nil, 0},
		"one":                     {[]sample{{0, 60 * ms}}, 60 * ms},
		"delayed answers":         {[]sample{{0, 60 * ms}, {ms, 900 * ms}, {ms, 5000 * ms}}, 60 * ms},
		"a shorter path":          {[]sample{{0, 60 * ms}, {ms, 20 * ms}}, 20 * ms},
		"older but valid":         {[]sample{{0, 60 * ms}, {age, 90 * ms}, {age - 1, 90 * ms}}, 60 * ms},
		"a longer path":           {[]sample{{0, 60 * ms}, {age, 90 * ms}, {age, 95 * ms}}, 90 * ms},
		"after a long silence":    {[]sample{{0, 60 * ms}, {2 * age, 90 * ms}}, 90 * ms},
		"all answers are delayed": {[]sample{{0, 20000 * ms}, {ms, 20000 * ms}}, maxRoundTrip},
		"a path without a length": {[]sample{{0, 50 * time.Microsecond}}, minRoundTrip},
	} {
		var r roundTrips
		now := time.Unix(1_000_000, 0)
		for _, s := range tc.samples {
			now = now.Add(s.after)
			r.record(s.rtt, now)
		}
		if got := r.least(); got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

// TestDelayedPingsGrowNoWindow: a peer that answers later PINGs late does not let the
// window of a slow reader grow.
func TestDelayedPingsGrowNoWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &budget{limit: 1 << 30}
		p := startPath(t, time.Millisecond, b, func(s *Stream) { readAll(s) })
		defer p.close()
		for range 5 {
			<-time.After(measureInterval) // the next window update comes with a PING
			p.send(64 << 10)
			<-time.After(time.Second)
			p.fr.WritePing(true, pingData(pingMeasure, 0))
			p.take()
		}
		if used := b.used.Load(); used != 0 {
			t.Errorf("%d bytes are reserved", used)
		}
	})
}

// TestEndedStreamReservesNothing: the PING that measures the path can end a connection
// whose peer does not read. Its streams have given back their windows then.
func TestEndedStreamReservesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &budget{limit: 1 << 30}
		p := startPath(t, 60*time.Millisecond, b, func(s *Stream) { readAll(s) })
		defer p.close()
		<-time.After(measureInterval)
		c := p.conn
		c.mu.Lock()
		defer c.mu.Unlock()
		s := c.streams[1]
		s.measuredFrom, s.taken = time.Now(), s.window
		out := c.grow()
		out.b = append(out.b, make([]byte, maxPending+maxControl+1)...)
		c.growWindow(s)
		if c.end == nil {
			t.Error("the connection has not ended")
		}
		if used := b.used.Load(); used != 0 || s.reserved != 0 {
			t.Errorf("%d bytes are reserved after the end", used)
		}
	})
}

// TestUnreadWindowStays: a stream whose reader stalls keeps its window, although the
// connection is fast and its reader took the first bytes at once.
func TestUnreadWindowStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &budget{limit: 1 << 30}
		p := startPath(t, 60*time.Millisecond, b, func(s *Stream) {
			if s.id == 3 {
				io.ReadFull(s, make([]byte, 64<<10))
				hold(s)
				return
			}
			readAll(s)
		})
		defer p.close()
		p.headers(3, getBlock(), false)
		for range 4 {
			p.fr.WriteData(3, false, make([]byte, 16<<10))
		}
		for range 3 {
			p.send(64 << 10)
		}
		if used := b.used.Load(); used == 0 {
			t.Error("the fast stream has no larger window")
		}
		p.conn.mu.Lock()
		defer p.conn.mu.Unlock()
		if got := p.conn.streams[3].window; got != 64<<10 {
			t.Errorf("the stalled stream has a window of %d KiB", got>>10)
		}
	})
}

// TestPaddingGrowsNoWindow: a peer that sends mostly padding to a reader that stalls gets
// its credit back, but no larger window.
func TestPaddingGrowsNoWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startPath(t, 60*time.Millisecond, &budget{limit: 1 << 30}, hold)
		defer p.close()
		p.headers(3, getBlock(), false)
		for range 2000 {
			p.fr.WriteDataPadded(3, false, []byte("x"), make([]byte, 255))
		}
		synctest.Wait()
		p.conn.mu.Lock()
		defer p.conn.mu.Unlock()
		if s := p.conn.streams[3]; s.window != 64<<10 || s.received != 2000 {
			t.Errorf("after %d bytes of body the window has %d KiB", s.received, s.window>>10)
		}
	})
}

// TestBudgetIsReleasedOnReset covers a stream that is dropped with unread bytes.
func TestBudgetIsReleasedOnReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &budget{limit: 1 << 30}
		p := startPath(t, time.Millisecond, b, func(s *Stream) {
			io.ReadFull(s, make([]byte, 96<<10))
			hold(s)
		})
		defer p.close()
		p.send(64 << 10)
		p.send(32 << 10)
		if used := b.used.Load(); used != 64<<10 {
			t.Errorf("%d bytes are reserved", used)
		}
		p.fr.WriteRSTStream(1, http2.ErrCodeCancel)
		synctest.Wait()
		if used := b.used.Load(); used != 0 {
			t.Errorf("%d bytes are still reserved", used)
		}
	})
}

// TestRawHeadBlocks: heads cross with their case, order, path and reason phrase.
func TestRawHeadBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got message.Head
		raw := rawCoding{}
		c, _ := startPair(t, Config{Coding: raw}, Config{Coding: raw, Handle: func(s *Stream) {
			if _, err := s.ReadHead(&got); err != nil {
				t.Error(err)
			}
			s.WriteHead(&message.Head{Status: 103, Reason: "Soon"}, nil, false)
			s.WriteHead(&message.Head{Status: 200, Reason: "Fine By Me"}, []byte("abc"), false)
			s.WriteTrailers(&message.Head{Fields: []message.Field{{Name: "X-Sum", Value: "1"}}})
		}})
		long := strings.Repeat("v", 40<<10) // takes CONTINUATION frames
		req := requestHead("GET", "/a%2F../b", message.Field{Name: "X-Case", Value: long})
		s, err := c.Open(req, nil, true)
		if err != nil {
			t.Fatal(err)
		}
		var early, final, trailers message.Head
		if _, err := s.ReadHead(&early); err != nil || early.Reason != "Soon" {
			t.Errorf("early head %v, %v", early, err)
		}
		if end, err := s.ReadHead(&final); err != nil || end || final.Reason != "Fine By Me" {
			t.Errorf("final head %v, %v, %v", final, end, err)
		}
		if body, err := readAll(s); err != nil || string(body) != "abc" {
			t.Errorf("body %q, %v", body, err)
		}
		if !s.Trailers(&trailers) || trailers.Fields[0].Name != "X-Sum" {
			t.Errorf("trailers %v", trailers)
		}
		if got.Target != "/a%2F../b" || got.Fields[0] != (message.Field{Name: "X-Case", Value: long}) {
			t.Errorf("request %s %d", got.Target, len(got.Fields))
		}
	})
}

// TestHeadAndBodyCauseOneWakeUp: what arrives in one read is there when ReadHead returns.
func TestHeadAndBodyCauseOneWakeUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := startPair(t, Config{}, Config{Handle: func(s *Stream) {
			s.WriteHead(&message.Head{Status: 200}, []byte("hello"), true)
		}})
		s, err := c.Open(requestHead("GET", "/"), nil, true)
		if err != nil {
			t.Fatal(err)
		}
		var h message.Head
		if end, err := s.ReadHead(&h); end || err != nil {
			t.Errorf("end %v, %v", end, err)
		}
		if n, ended := s.Buffered(); n != 5 || !ended {
			t.Errorf("buffered %d, %v: want the whole body", n, ended)
		}
	})
}

// TestResetEndsTheWaitOfOpen: another goroutine can end a stream that waits to be opened,
// or to send the first bytes of its body.
func TestResetEndsTheWaitOfOpen(t *testing.T) {
	for name, full := range map[string]bool{"for a window": false, "for space": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				window := http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20}
				p := startPeer(t, Config{Client: true}, window)
				defer p.close()
				if full {
					p.fr.WriteWindowUpdate(0, 2<<20)
					p.pause(true)
					defer p.pause(false)
					synctest.Wait()
					for range 2 {
						go p.conn.Open(requestHead("POST", "/"), make([]byte, 1<<20), true)
						synctest.Wait()
					}
				}
				var stream *Stream
				ended := make(chan error, 1)
				go func() {
					o := OpenOptions{Opening: func(s *Stream) { stream = s }}
					s, err := p.conn.OpenWith(requestHead("POST", "/"), make([]byte, 3<<20), true, o)
					if err == nil {
						_, err = s.ReadHead(&message.Head{})
					}
					ended <- err
				}()
				synctest.Wait()
				select {
				case err := <-ended:
					t.Fatalf("it did not wait: %v", err)
				default:
				}
				stream.Reset(http2.ErrCodeCancel)
				synctest.Wait()
				select {
				case err := <-ended:
					var reset *ResetError
					if !errors.As(err, &reset) || !reset.Local {
						t.Errorf("%v", err)
					}
				default:
					t.Error("it still waits")
				}
				bubble.Pass(2 * stuckTimeout)
				if got := p.conn.reason(); got != "" {
					t.Errorf("the connection of the other streams ended: %q", got)
				}
			})
		})
	}
}

// TestQueuedStreamGoesOn: a window update may wake a queued stream before its turn, while
// another goroutine writes to the connection. The stream must not wait for its own turn.
func TestQueuedStreamGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startPeer(t, Config{Client: true})
		defer p.close()
		s, err := p.conn.Open(requestHead("POST", "/"), nil, false)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		p.conn.mu.Lock()
		p.conn.out.flushing = true // as if another goroutine did
		p.conn.queueTurn(s)
		p.conn.mu.Unlock()
		done := make(chan error, 1)
		go func() {
			_, err := s.Write(make([]byte, 3*maxFrameSize), false)
			done <- err
		}()
		synctest.Wait()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		default:
			t.Error("the stream waits, although there is space and no other stream is queued")
		}
		p.conn.mu.Lock()
		p.conn.out.flushing = false
		p.conn.flushInBackground()
		p.conn.mu.Unlock()
	})
}
