package httprelay

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"
	"golang.org/x/net/http2"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeStream is either end of a stream. What it reads is given; what is written to it is
// kept.
type fakeStream struct {
	heads []message.Head
	body  chan string // its end is the end of the body
	tail  []message.Field
	fail  error // of ReadHead, once heads are read
	// limit is how many bytes it accepts before it is reset; 0: all.
	limit int
	// early: it answers before it has received the whole request.
	early bool

	mu      sync.Mutex // guards what follows
	pending string
	status  int
	written bytes.Buffer
	trailer []message.Field
	ended   bool
	whole   chan struct{} // closed when ended
	reset   chan struct{}
	once    sync.Once
	stopped bool
}

var errReset = errors.New("the stream was reset")

func newFake() *fakeStream {
	return &fakeStream{body: make(chan string, 100), whole: make(chan struct{}), reset: make(chan struct{})}
}

// sends returns a stream on which a body comes in parts.
func sends(parts ...string) *fakeStream {
	f := newFake()
	for _, p := range parts {
		f.body <- p
	}
	close(f.body)
	return f
}

func (f *fakeStream) ReadHead(h *message.Head) (bool, error) {
	if len(f.heads) == 0 {
		if f.fail != nil {
			return false, f.fail
		}
		<-f.reset
		return false, errReset
	}
	if !f.early {
		<-f.whole
	}
	*h, f.heads = f.heads[0], f.heads[1:]
	return false, nil
}

func (f *fakeStream) take(p []byte, wait bool) (int, bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pending == "" {
		f.mu.Unlock()
		var part string
		open := true
		if wait {
			select {
			case part, open = <-f.body:
			case <-f.reset:
				f.mu.Lock()
				return 0, false, errReset
			}
		} else {
			select {
			case part, open = <-f.body:
			default:
			}
		}
		f.mu.Lock()
		if !open {
			return 0, true, nil
		}
		f.pending = part
	}
	n := copy(p, f.pending)
	f.pending = f.pending[n:]
	return n, false, nil
}

func (f *fakeStream) ReadBuffered(p []byte) (int, bool, error) { return f.take(p, false) }
func (f *fakeStream) ReadBody(p []byte) (int, bool, error)     { return f.take(p, true) }
func (f *fakeStream) AwaitBody()                               {}

func (f *fakeStream) ReadTrailers(h *message.Head) bool {
	h.Fields = f.tail
	return len(f.tail) > 0
}

func (f *fakeStream) WriteHead(h *message.Head, body []byte, end bool) error {
	f.mu.Lock()
	f.status = h.Status
	f.mu.Unlock()
	_, err := f.Write(body, end)
	return err
}

func (f *fakeStream) Write(p []byte, end bool) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.written.Write(p)
	if f.limit > 0 && f.written.Len() > f.limit {
		f.Reset(http2.ErrCodeCancel)
		return 0, errReset
	}
	if end {
		f.end()
	}
	return len(p), nil
}

func (f *fakeStream) WriteTrailers(h *message.Head) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.trailer = h.Fields
	f.end()
	return nil
}

// end records the end of what is written. f.mu is held.
func (f *fakeStream) end() {
	f.ended = true
	close(f.whole)
}

func (f *fakeStream) StopReading() {
	f.mu.Lock()
	f.stopped = true
	f.mu.Unlock()
	f.Reset(http2.ErrCodeNo)
}

func (f *fakeStream) Reset(http2.ErrCode) { f.once.Do(func() { close(f.reset) }) }

// answers returns a stream to an application that answers with a body.
func answers(status int, body string) *fakeStream {
	f := sends(body)
	f.heads = []message.Head{{Status: status}}
	return f
}

// fails returns a stream that fails before a response.
func fails() *fakeStream {
	f := newFake()
	f.fail = io.ErrUnexpectedEOF
	return f
}

// breaksAfter returns a stream that is reset after some bytes.
func breaksAfter(n int) *fakeStream {
	f := newFake()
	f.limit = n
	return f
}

func TestForward(t *testing.T) {
	long := strings.Repeat("0123456789abcdef", 8<<10) // 128 KiB
	always := func(Failure) bool { return true }
	ifReplayable := func(f Failure) bool { return f.Replayable }
	is503 := func(h *message.Head) bool { return h.Status == 503 }
	cases := map[string]struct {
		from      *fakeStream
		tries     []*fakeStream
		retry     func(Failure) bool
		isFailure func(*message.Head) bool
		status    int
		received  string // by the last try
		fails     bool
	}{
		"one try": {
			from: sends("hello"), tries: []*fakeStream{answers(200, "world")}, status: 200, received: "hello",
		},
		"another try has the body from its beginning": {
			from:  sends("hel", "lo"),
			tries: []*fakeStream{fails(), answers(200, "world")}, retry: always, status: 200, received: "hello",
		},
		"a failure of the policy is followed by another try": {
			from:  sends("hello"),
			tries: []*fakeStream{answers(503, "later"), answers(200, "world")}, retry: always, isFailure: is503,
			status: 200, received: "hello",
		},
		"the last failure is forwarded": {
			from:  sends("hello"),
			tries: []*fakeStream{answers(503, "world")}, retry: func(Failure) bool { return false }, isFailure: is503,
			status: 503, received: "hello",
		},
		"a long body": {
			from: sends(long, long), tries: []*fakeStream{answers(200, "world")}, status: 200, received: long + long,
		},
		"no try succeeds": {
			from: sends("hello"), tries: []*fakeStream{fails()}, retry: func(Failure) bool { return false }, fails: true, received: "hello",
		},
		"a body that is not kept is not sent again": {
			from: sends(long, long), tries: []*fakeStream{breaksAfter(100 << 10)}, retry: ifReplayable, fails: true,
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			n := 0
			plan := &Plan{Retry: tc.retry, IsFailure: tc.isFailure}
			plan.Open = func(_ int, _ *message.Head, body []byte, end bool) (Stream, error) {
				to := tc.tries[n]
				n++
				_, err := to.Write(body, end)
				return to, err
			}
			result := Forward(tc.from, &message.Head{Method: "POST"}, false, plan)
			if (result.Err != nil) != tc.fails || n != len(tc.tries) || result.Tries != n {
				t.Fatalf("%+v after %d tries, want %d", result, n, len(tc.tries))
			}
			if tc.received != "" && tc.tries[n-1].written.String() != tc.received {
				t.Errorf("the application received %d bytes, want %d", tc.tries[n-1].written.Len(), len(tc.received))
			}
			if tc.fails {
				if result.Began || tc.from.status != 0 {
					t.Errorf("a head of status %d was written", tc.from.status)
				}
				return
			}
			if tc.from.status != tc.status || tc.from.written.String() != "world" || !tc.from.ended {
				t.Errorf("the caller received %d, %q, ended %v", tc.from.status, &tc.from.written, tc.from.ended)
			}
		})
	}
}

// TestForwardTrailers: trailers pass in both directions.
func TestForwardTrailers(t *testing.T) {
	from, to := sends("hello"), answers(200, "world")
	from.tail, to.tail = []message.Field{{Name: "a", Value: "1"}}, []message.Field{{Name: "grpc-status", Value: "5"}}
	plan := &Plan{Open: func(_ int, _ *message.Head, body []byte, end bool) (Stream, error) {
		_, err := to.Write(body, end)
		return to, err
	}}
	result := Forward(from, &message.Head{Method: "POST"}, false, plan)
	if result.Err != nil || result.GRPCStatus != "5" || len(from.trailer) != 1 || len(to.trailer) != 1 || to.written.String() != "hello" {
		t.Errorf("%+v, trailers %v and %v", result, to.trailer, from.trailer)
	}
}

// TestEarlyResponse: a response may end before the request has been read.
func TestEarlyResponse(t *testing.T) {
	from, to := newFake(), answers(413, "too large") // from's body never ends
	from.body <- "hello"
	to.early = true
	result := Forward(from, &message.Head{Method: "POST"}, false, &Plan{
		Open: func(int, *message.Head, []byte, bool) (Stream, error) { return to, nil },
	})
	if result.Err != nil || !result.Unread || from.written.String() != "too large" || !from.stopped {
		t.Errorf("%+v, the caller received %q", result, &from.written)
	}
}

// fakeMemory is a budget.
type fakeMemory struct {
	mu   sync.Mutex // guards free
	free int
}

func (m *fakeMemory) Reserve(n int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n > m.free {
		return false
	}
	m.free -= n
	return true
}

func (m *fakeMemory) Release(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.free += n
}

// TestKeptBodiesAreBounded: without memory a body is not kept, but sent. What was
// reserved is released.
func TestKeptBodiesAreBounded(t *testing.T) {
	for name, tc := range map[string]struct {
		free       int
		replayable bool
	}{"enough": {1 << 20, true}, "too little": {10, false}} {
		t.Run(name, func(t *testing.T) {
			memory := &fakeMemory{free: tc.free}
			from, to := sends("hel", "lo", strings.Repeat("x", 100)), answers(503, "later")
			var failure Failure
			result := Forward(from, &message.Head{Method: "POST"}, false, &Plan{
				Memory: memory,
				Open: func(_ int, _ *message.Head, body []byte, end bool) (Stream, error) {
					_, err := to.Write(body, end)
					return to, err
				},
				IsFailure: func(*message.Head) bool { return true },
				Retry:     func(f Failure) bool { failure = f; return false },
			})
			if result.Err != nil || to.written.Len() != 105 {
				t.Errorf("%+v, %d bytes were sent, want 105", result, to.written.Len())
			}
			if failure.Replayable != tc.replayable {
				t.Errorf("replayable: %v, want %v", failure.Replayable, tc.replayable)
			}
			if memory.free != tc.free {
				t.Errorf("%d bytes are free in the end, want %d", memory.free, tc.free)
			}
		})
	}
}

// TestDecisionKeepsBody: while Retry decides, Forward keeps the bytes that another try
// needs, although the failed try still receives the body.
func TestDecisionKeepsBody(t *testing.T) {
	const parts = 3
	part := strings.Repeat("0123456789abcdef", bufferSize/16)
	for name, again := range map[string]bool{"another try": true, "no other try": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				from := newFake()
				tries := []*fakeStream{answers(503, "later"), answers(200, "world")}
				tries[0].early = true // it does not wait for the body
				n := 0
				result := Forward(from, &message.Head{Method: "POST"}, false, &Plan{
					Open: func(_ int, _ *message.Head, body []byte, end bool) (Stream, error) {
						to := tries[n]
						n++
						_, err := to.Write(body, end)
						return to, err
					},
					IsFailure: func(h *message.Head) bool { return h.Status == 503 },
					Retry: func(f Failure) bool {
						for range parts {
							from.body <- part
						}
						close(from.body)
						synctest.Wait()
						return again && f.Replayable
					},
				})
				last := tries[n-1]
				if result.Err != nil || (n > 1) != again || from.status != map[bool]int{true: 200, false: 503}[again] {
					t.Fatalf("%+v after %d tries, status %d", result, n, from.status)
				}
				if again && last.written.String() != strings.Repeat(part, parts) {
					t.Errorf("the application received %d bytes of %d", last.written.Len(), parts*len(part))
				}
			})
		})
	}
}

// TestCallerFailsBetweenTries: if the body breaks off before the next try is open, that
// try ends, because it could not get the rest.
func TestCallerFailsBetweenTries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		from := newFake()
		from.body <- "hello"
		tries := []*fakeStream{answers(503, "later"), newFake()}
		tries[0].early = true
		n := 0
		result := Forward(from, &message.Head{Method: "POST"}, false, &Plan{
			Open: func(_ int, _ *message.Head, body []byte, end bool) (Stream, error) {
				if n == 1 {
					from.Reset(http2.ErrCodeCancel)
					synctest.Wait()
				}
				to := tries[n]
				n++
				_, err := to.Write(body, end)
				return to, err
			},
			IsFailure: func(h *message.Head) bool { return h.Status == 503 },
			Retry:     func(f Failure) bool { synctest.Wait(); return f.Replayable },
		})
		if n != 2 || !errors.Is(result.Err, errReset) || !result.FromErr {
			t.Errorf("%+v after %d tries", result, n)
		}
	})
}

// TestCallerFailsDuringTry: if the body breaks off, Retry is not asked, because that says
// nothing about the endpoint.
func TestCallerFailsDuringTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		from, to := newFake(), newFake()
		from.body <- "hello"
		result := Forward(from, &message.Head{Method: "POST"}, false, &Plan{
			Open: func(_ int, _ *message.Head, body []byte, end bool) (Stream, error) {
				go func() {
					synctest.Wait()
					from.Reset(http2.ErrCodeCancel)
				}()
				_, err := to.Write(body, end)
				return to, err
			},
			Retry: func(f Failure) bool { t.Errorf("asked about %v", f.Err); return false },
		})
		if result.Tries != 1 || !errors.Is(result.Err, errReset) || !result.FromErr {
			t.Errorf("%+v", result)
		}
	})
}

// TestLateResetSparesCompleteStream: the timer of stop may fire just when the last write
// returns. It must not reset the stream then, because another request may already use the
// connection to the application.
func TestLateResetSparesCompleteStream(t *testing.T) {
	for name, complete := range map[string]bool{"complete": true, "still writing": false} {
		to := newFake()
		u := &upload{to: to}
		if complete {
			u.full = to
		}
		u.cutWrite(to)
		select {
		case <-to.reset:
			if complete {
				t.Errorf("%s: the stream was reset", name)
			}
		default:
			if !complete {
				t.Errorf("%s: the stream was not reset", name)
			}
		}
	}
}
