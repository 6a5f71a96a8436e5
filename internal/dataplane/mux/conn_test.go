package mux

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/dataplane/message"
)

func goAways(frames []frame) (last []uint32) {
	for _, f := range frames {
		if f.Type == http2.FrameGoAway {
			last = append(last, f.N)
		}
	}
	return last
}

// TestServerGoAwayLosesNoRequest: requests that cross the first GOAWAY are served.
func TestServerGoAwayLosesNoRequest(t *testing.T) {
	for name, answersPing := range map[string]bool{"after the round trip": true, "after the delay": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				release := make(chan struct{})
				p := startPeer(t, Config{Handle: func(s *Stream) {
					<-release
					s.WriteHead(&message.Head{Status: 200}, nil, true)
				}})
				defer p.close()
				p.headers(1, getBlock(), true)
				synctest.Wait()
				p.conn.GoAway()
				if last := goAways(p.take()); len(last) != 1 || last[0] != maxStreamID {
					t.Errorf("GOAWAY frames name %v", last)
				}
				p.headers(3, getBlock(), true)
				synctest.Wait()
				if answersPing {
					p.fr.WritePing(true, pingData(pingGoAway, 0))
				} else {
					bubble.Pass(goAwayDelay)
				}
				if last := goAways(p.take()); len(last) != 1 || last[0] != 3 {
					t.Errorf("GOAWAY frames name %v", last)
				}
				p.headers(5, getBlock(), true)
				synctest.Wait()
				if n := p.conn.Load(); n != 2 {
					t.Errorf("%d streams are open: want 2", n)
				}
				close(release)
				served := 0
				for _, f := range p.take() {
					if f.Type == http2.FrameHeaders {
						served++
					}
				}
				if served != 2 || !p.ended() || p.conn.reason() != "graceful" {
					t.Errorf("%d responses, ended %v by %q", served, p.ended(), p.conn.reason())
				}
				if err := <-p.err; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestClientGoAwayFinishesStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startPeer(t, Config{Client: true})
		defer p.close()
		s, err := p.conn.Open(requestHead("GET", "/"), nil, true)
		if err != nil {
			t.Fatal(err)
		}
		p.conn.GoAway()
		if _, err := p.conn.Open(requestHead("GET", "/"), nil, true); !errors.Is(err, ErrGoingAway) {
			t.Errorf("open: %v", err)
		}
		p.headers(1, fields(":status", "200"), false)
		p.fr.WriteData(1, true, []byte("x"))
		if status, err := readResponse(s); status != 200 || err != nil {
			t.Errorf("response %d, %v", status, err)
		}
		if err := <-p.err; err != nil {
			t.Error(err)
		}
	})
}

// TestNotProcessed: which ends of a request permit to send it elsewhere.
func TestNotProcessed(t *testing.T) {
	cases := map[string]struct {
		send func(p *peer)
		want bool
		away bool // ResetError.GoingAway
	}{
		"REFUSED_STREAM": {func(p *peer) { p.fr.WriteRSTStream(3, http2.ErrCodeRefusedStream) }, true, false},
		"CANCEL":         {func(p *peer) { p.fr.WriteRSTStream(3, http2.ErrCodeCancel) }, false, false},
		"REFUSED_STREAM after the head": {func(p *peer) {
			p.headers(3, fields(":status", "200"), false)
			p.fr.WriteRSTStream(3, http2.ErrCodeRefusedStream)
		}, false, false},
		"GOAWAY with a lower stream": {func(p *peer) { p.fr.WriteGoAway(1, 0, nil) }, true, true},
		"GOAWAY with this stream, then the end": {func(p *peer) {
			p.fr.WriteGoAway(3, 0, nil)
			p.nc.Close()
		}, false, false},
		"GOAWAY with an error and a lower stream": {func(p *peer) {
			p.fr.WriteGoAway(1, http2.ErrCodeEnhanceYourCalm, nil)
			p.nc.Close()
		}, true, false},
		"end without GOAWAY": {func(p *peer) { p.nc.Close() }, false, false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := startPeer(t, Config{Client: true})
				defer p.close()
				for range 2 {
					if _, err := p.conn.Open(requestHead("GET", "/"), nil, true); err != nil {
						t.Fatal(err)
					}
				}
				s := p.conn.streams[3]
				called := make(chan error, 1)
				s.OnReset(func(err error) { called <- err })
				c.send(p)
				_, err := readResponse(s)
				var reset *ResetError
				if !errors.As(err, &reset) || reset.NotProcessed != c.want || reset.GoingAway != c.away {
					t.Errorf("%v, %+v: want not processed %v, going away %v", err, reset, c.want, c.away)
				}
				if got := <-called; got != error(reset) {
					t.Errorf("OnReset got %v", got)
				}
			})
		})
	}
}

func TestOpenErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		away := make(chan struct{})
		p := startPeer(t, Config{Client: true, OnGoAway: func() { close(away) }},
			http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1})
		defer p.close()
		if since, idle := p.conn.Idle(); !idle || since.IsZero() {
			t.Errorf("idle %v since %v", idle, since)
		}
		s, err := p.conn.Open(requestHead("GET", "/"), nil, true)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.conn.Open(requestHead("GET", "/"), nil, true); !errors.Is(err, ErrTooManyStreams) {
			t.Errorf("open: %v", err)
		}
		if _, idle := p.conn.Idle(); idle || p.conn.CanOpen() || p.conn.Load() != 1 {
			t.Errorf("idle %v, can open %v, load %d", idle, p.conn.CanOpen(), p.conn.Load())
		}
		s.Reset(http2.ErrCodeCancel)
		s.Reset(http2.ErrCodeCancel)
		if _, err := readResponse(s); err == nil {
			t.Error("response after Reset")
		}
		if !p.conn.CanOpen() {
			t.Error("the reset stream still counts")
		}
		resets := 0
		for _, f := range p.take() {
			if f.Type == http2.FrameRSTStream {
				resets++
			}
		}
		if resets != 1 {
			t.Errorf("%d RST_STREAM frames", resets)
		}
		if _, err = p.conn.Open(requestHead("GET", "/"), nil, true); err != nil {
			t.Fatal(err)
		}
		p.fr.WriteGoAway(3, 0, nil)
		<-away
		if _, err := p.conn.Open(requestHead("GET", "/"), nil, true); !errors.Is(err, ErrGoingAway) {
			t.Errorf("open: %v", err)
		}
	})
}

// TestFramesOnResetStreamsAreIgnored: they were on their way.
func TestFramesOnResetStreamsAreIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startPeer(t, Config{Client: true})
		defer p.close()
		s, err := p.conn.Open(requestHead("GET", "/"), nil, true)
		if err != nil {
			t.Fatal(err)
		}
		s.Reset(http2.ErrCodeCancel)
		p.take()
		p.headers(1, fields(":status", "200"), false)
		p.fr.WriteData(1, false, make([]byte, 1000))
		p.fr.WriteWindowUpdate(1, 10)
		p.fr.WriteRSTStream(1, http2.ErrCodeCancel)
		if got := p.take(); got != nil {
			t.Errorf("frames %v: want none", got)
		}
	})
}

// TestEarlyAnswerToAnUpload: the response is read to its end, though the rest of the
// request was refused.
func TestEarlyAnswerToAnUpload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := startPair(t, Config{}, Config{Handle: func(s *Stream) {
			s.WriteHead(&message.Head{Status: 413}, make([]byte, 100<<10), true)
		}})
		s, err := c.Open(requestHead("POST", "/"), nil, false)
		if err != nil {
			t.Fatal(err)
		}
		written := make(chan error, 1)
		go func() {
			_, err := s.Write(make([]byte, 1<<20), true)
			written <- err
		}()
		var h message.Head
		if _, err := s.ReadHead(&h); err != nil || h.Status != 413 {
			t.Errorf("status %d, %v", h.Status, err)
		}
		if body, err := readAll(s); len(body) != 100<<10 || err != nil {
			t.Errorf("body of %d bytes, %v", len(body), err)
		}
		var reset *ResetError
		if err := <-written; !errors.As(err, &reset) || reset.Code != http2.ErrCodeNo {
			t.Errorf("write: %v", err)
		}
	})
}

// TestRunEndsWithItsContext and waits for Handle.
func TestRunEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := newMemoryPair()
		defer far.Close()
		ctx, cancel := context.WithCancel(context.Background())
		release := make(chan struct{})
		server := New(near, Config{Handle: func(s *Stream) {
			if _, err := s.Read(make([]byte, 1)); !errors.Is(err, context.Canceled) {
				t.Errorf("read: %v", err)
			}
			<-release
		}})
		client := New(far, Config{Client: true})
		clientErr := make(chan error, 1)
		go func() { clientErr <- client.Run(context.Background()) }()
		err := make(chan error, 1)
		go func() { err <- server.Run(ctx) }()
		s, openErr := client.Open(requestHead("POST", "/"), nil, false)
		if openErr != nil {
			t.Fatal(openErr)
		}
		synctest.Wait()
		cancel()
		synctest.Wait()
		select {
		case <-err:
			t.Error("Run has not waited for Handle")
		default:
		}
		close(release)
		if got := <-err; !errors.Is(got, context.Canceled) || server.reason() != "canceled" {
			t.Errorf("run: %v, %q", got, server.reason())
		}
		var h message.Head
		if _, err := s.ReadHead(&h); err == nil {
			t.Error("response from an ended connection")
		}
		<-clientErr
	})
}

func TestPrefaceTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{Handle: echo})
		defer p.close()
		bubble.Pass(prefaceTimeout)
		if err := <-p.err; err == nil || p.conn.reason() != "preface_timeout" {
			t.Errorf("run: %v, %q", err, p.conn.reason())
		}
	})
}

// TestPeerCloses: an idle connection may end so, but the loss of a request is an error.
func TestPeerCloses(t *testing.T) {
	for name, open := range map[string]bool{"idle": false, "with a stream": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := startPeer(t, Config{Handle: hold})
				if open {
					p.headers(1, getBlock(), false)
				}
				p.nc.Close()
				err := <-p.err
				if errors.Is(err, io.ErrUnexpectedEOF) != open {
					t.Errorf("run: %v", err)
				}
			})
		})
	}
}

func TestPing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startPeer(t, Config{Handle: hold})
		defer p.close()
		type result struct {
			rtt time.Duration
			err error
		}
		got := make(chan result, 1)
		go func() {
			rtt, err := p.conn.Ping(context.Background())
			got <- result{rtt, err}
		}()
		f, ok := p.find(http2.FramePing)
		if !ok {
			t.Fatal("no PING")
		}
		bubble.Pass(50 * time.Millisecond)
		p.fr.WritePing(true, [8]byte([]byte(f.Text)))
		if r := <-got; r.rtt != 50*time.Millisecond || r.err != nil || p.conn.RTT() != r.rtt {
			t.Errorf("ping: %v, RTT %v", r, p.conn.RTT())
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if _, err := p.conn.Ping(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("ping: %v", err)
		}
		go func() {
			rtt, err := p.conn.Ping(context.Background())
			got <- result{rtt, err}
		}()
		synctest.Wait()
		p.nc.Close()
		if r := <-got; !errors.Is(r.err, ErrClosed) {
			t.Errorf("ping: %v", r)
		}
	})
}

// TestRunClearsDeadlines: a deadline of the handshake before Run does not end the
// connection later.
func TestRunClearsDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		near.SetDeadline(time.Now().Add(time.Second))
		client, server := New(near, Config{Client: true}), New(far, Config{Handle: func(*Stream) {}})
		ended := make(chan error, 2)
		for _, c := range []*Conn{client, server} {
			go func() { ended <- c.Run(t.Context()) }()
		}
		bubble.Pass(2 * time.Second)
		if _, err := client.Ping(t.Context()); err != nil {
			t.Error(err)
		}
		client.GoAway()
		if err := errors.Join(<-ended, <-ended); err != nil {
			t.Error(err)
		}
	})
}
