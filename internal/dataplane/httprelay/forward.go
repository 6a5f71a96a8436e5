package httprelay

import (
	"bytes"
	"errors"
	"sync"
	"time"

	"golang.org/x/net/http2"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
)

const (
	// ReplayBytes is the size from which a request's body is no longer kept for another
	// try. The last read that is kept may exceed it by up to bufferSize.
	ReplayBytes = 64 << 10
)

// A Plan says how a request is tried. Its functions are called from the goroutine that
// called Forward.
type Plan struct {
	// Open starts a try with the head and the first bytes of the body. end reports that
	// the message ends after them. try counts from 0.
	Open func(try int, h *message.Head, body []byte, end bool) (Stream, error)
	// Retry decides whether a failed try is followed by another, and may wait before it
	// answers. nil: there is one try.
	Retry func(Failure) bool
	// IsFailure reports whether a final response counts as a failed try. Without
	// another try it is forwarded nevertheless. nil: none does.
	IsFailure func(*message.Head) bool
	// OnResponse is called with each head before it is forwarded, and may edit it. nil:
	// it is forwarded as it came.
	OnResponse func(*message.Head)
	// Memory is the budget for the bodies that are kept for another try, beside the first
	// bytes. If it is used up, the request has one try. nil: there is no bound beside
	// ReplayBytes.
	Memory Memory
	// Start is when the request began, for Result.FirstByte. Zero: when Forward was called.
	Start time.Time
	// Timeout bounds each try until its final response begins. 0: it has no bound.
	Timeout time.Duration
}

// Memory is a budget of bytes. It must be safe for concurrent use and must not block.
type Memory interface {
	// Reserve reserves n bytes, or returns false.
	Reserve(n int) bool
	// Release returns n bytes.
	Release(n int)
}

// A Failure is a try that failed before its final response was forwarded.
type Failure struct {
	Try int // from 0
	// Err is why there is no response. It is ErrTimeout after Plan.Timeout.
	Err error
	// Response is the response that counts as a failure, if there is no Err.
	Response *message.Head
	// Replayable reports that every byte of the body that was sent can be sent again.
	Replayable bool
}

// ErrTimeout reports a try that took longer than Plan.Timeout.
var ErrTimeout = errors.New("no response within the timeout")

// A Result says how a request ended.
type Result struct {
	// Err is why the response is not complete; nil if it is.
	Err error
	// FromErr reports that Err is of the side that made the request.
	FromErr bool
	// Began reports that a final response head was forwarded, so that no other response
	// can take its place.
	Began bool
	// Status is that of the final response. GRPCStatus is its grpc-status, if HasGRPC.
	Status     int
	GRPCStatus string
	HasGRPC    bool
	// Tries is how many times Plan.Open was called.
	Tries int
	// Sent and Received count the bytes of the two bodies.
	Sent, Received int64
	// FirstByte is the time from Plan.Start until the final head had come.
	FirstByte time.Duration
	// Unread reports that the response was complete before the request had been read.
	Unread bool
}

// forwarding is one call of Forward.
type forwarding struct {
	from  Stream
	plan  *Plan
	start time.Time
	up    *upload
	res   Result
	// Trailers of the request, if they came with its first bytes, and of the response.
	requestTail, tail message.Head
}

var forwardings = sync.Pool{New: func() any { return new(forwarding) }}

// free returns f. Nothing refers to it any more, because the upload has ended.
func (f *forwarding) free() {
	f.requestTail.Reset()
	f.tail.Reset()
	*f = forwarding{requestTail: f.requestTail, tail: f.tail}
	forwardings.Put(f)
}

// Forward forwards a request whose head has been read from from, and its response. ended
// reports that nothing follows the head. It returns when both are complete or have
// failed. It does not answer from in place of a response: if the result has an Err and
// has not begun, the caller must.
func Forward(from Stream, request *message.Head, ended bool, plan *Plan) Result {
	f := forwardings.Get().(*forwarding)
	defer f.free()
	f.from, f.plan, f.start = from, plan, plan.Start
	if f.start.IsZero() {
		f.start = time.Now()
	}
	f.run(request, ended)
	return f.res
}

func (f *forwarding) run(request *message.Head, ended bool) {
	first, tail, ended, err := f.readFirst(ended)
	if err != nil {
		f.fail(err, true)
		return
	}
	f.res.Sent = int64(len(first))
	if !ended || tail != nil {
		f.up = newUpload(f.from, first, f.plan.Memory)
		f.up.ended, f.up.tail = ended, tail // before its first attach
		defer f.stopUpload()
	}
	response := heads.Get().(*message.Head)
	defer heads.Put(response)
	for {
		body, end := first, ended
		if f.up != nil {
			body, end = f.up.body()
		}
		to, err := f.plan.Open(f.res.Tries, request, body, end)
		f.res.Tries++
		if err == nil {
			if f.up != nil {
				f.up.attach(to, len(body), end)
			}
			err = f.try(to, response)
		}
		if err == nil {
			return
		}
		if err == errAgain {
			continue
		}
		if broken := f.up.broken(); broken != nil { // so no try can succeed
			f.fail(broken, true)
			return
		}
		if f.res.Began || f.res.FromErr || f.plan.Retry == nil || !f.plan.Retry(f.failure(err)) {
			f.fail(err, f.res.FromErr)
			return
		}
	}
}

// readFirst takes the bytes of the body that have come already. If they are the rest of
// the message, without trailers, the request needs no upload.
func (f *forwarding) readFirst(ended bool) ([]byte, *message.Head, bool, error) {
	if ended {
		return nil, nil, true, nil
	}
	buf, n, end, err := readBuffered(f.from)
	defer buf.free()
	if err != nil || n == 0 {
		return nil, nil, false, err
	}
	// A request may wait for its response for long, so it keeps no more than it needs.
	return bytes.Clone(buf.b[:n]), trailers(f.from, end, &f.requestTail), end, nil
}

// stopUpload waits for the upload to end. If the response is complete, the rest of the
// request is not needed.
func (f *forwarding) stopUpload() {
	unread, err := f.up.stop()
	f.res.Sent, f.res.Unread = f.up.total, unread
	if err != nil && f.res.Err != nil {
		f.res.Err, f.res.FromErr = err, true // the caller's end was the cause of the other
	}
}

func (f *forwarding) failure(err error) Failure {
	return Failure{Try: f.res.Tries - 1, Err: err, Replayable: f.up == nil || f.up.decide()}
}

func (f *forwarding) fail(err error, from bool) {
	if f.res.Err == nil {
		f.res.Err, f.res.FromErr = err, from
	}
}

// errAgain reports a response that counts as a failed try and is followed by another.
var errAgain = errors.New("the response counts as a failure")

// try forwards the body to one stream and its response back. If it fails before the
// response began, another try may follow.
func (f *forwarding) try(to Stream, response *message.Head) error {
	var timedOut *timeout
	if f.plan.Timeout > 0 {
		timedOut = startTimeout(f.plan.Timeout, to)
		defer timedOut.stop()
	}
	for {
		response.Reset()
		end, err := to.ReadHead(response)
		if err != nil {
			to.Reset(http2.ErrCodeCancel)
			return timedOut.explain(err)
		}
		if response.Status/100 == 1 && response.Status != 101 {
			if err := f.writeHead(response, nil, false); err != nil {
				return f.abandon(to, err)
			}
			continue
		}
		if !timedOut.stop() {
			return ErrTimeout
		}
		return f.download(to, response, end)
	}
}

// download forwards the final response.
func (f *forwarding) download(to Stream, response *message.Head, end bool) error {
	if f.plan.IsFailure != nil && f.plan.Retry != nil && f.plan.IsFailure(response) {
		failure := f.failure(nil)
		failure.Response = response
		if f.plan.Retry(failure) {
			to.Reset(http2.ErrCodeCancel)
			return errAgain
		}
	}
	f.res.FirstByte = time.Since(f.start)
	f.res.Began, f.res.Status = true, response.Status
	f.noteGRPC(response)
	if f.up != nil {
		f.up.finalize()
	}
	if end {
		if err := f.writeHead(response, nil, true); err != nil {
			return f.abandon(to, err)
		}
		return nil
	}
	last, err := f.downloadFirst(to, response)
	for err == nil && !last {
		to.AwaitBody()
		last, err = f.downloadMore(to)
	}
	return err
}

// downloadFirst forwards the head with the first bytes of the body, if they have come.
func (f *forwarding) downloadFirst(to Stream, response *message.Head) (last bool, err error) {
	buf, n, end, err := readBuffered(to)
	defer buf.free()
	if err != nil {
		return true, f.cut(to, err)
	}
	f.res.Received += int64(n)
	tail := trailers(to, end, &f.tail)
	if err := f.writeHead(response, buf.b[:n], end && tail == nil); err != nil {
		return true, f.abandon(to, err)
	}
	return end, f.finish(to, tail)
}

// downloadMore forwards bytes of the body that have come.
func (f *forwarding) downloadMore(to Stream) (last bool, err error) {
	buf := largeBuffers.get()
	defer buf.free()
	n, end, err := to.ReadBody(buf.b)
	if err != nil {
		return true, f.cut(to, err)
	}
	f.res.Received += int64(n)
	tail := trailers(to, end, &f.tail)
	if n > 0 || end && tail == nil {
		if _, err := f.from.Write(buf.b[:n], end && tail == nil); err != nil {
			return true, f.abandon(to, err)
		}
	}
	return end, f.finish(to, tail)
}

// trailers reads the trailers of a body that has ended into h. It returns h, or nil if
// there are none.
func trailers(s Stream, end bool, h *message.Head) *message.Head {
	if !end || !s.ReadTrailers(h) {
		return nil
	}
	return h
}

// finish writes the trailers of a response, if there are any.
func (f *forwarding) finish(to Stream, tail *message.Head) error {
	if tail == nil {
		return nil
	}
	f.noteGRPC(tail)
	if err := f.from.WriteTrailers(tail); err != nil {
		return f.abandon(to, err)
	}
	return nil
}

// cut ends a response that was cut short.
func (f *forwarding) cut(to Stream, err error) error {
	to.Reset(http2.ErrCodeCancel)
	f.fail(err, false)
	f.from.Reset(http2.ErrCodeInternal)
	return nil
}

func (f *forwarding) writeHead(h *message.Head, body []byte, end bool) error {
	if f.plan.OnResponse != nil {
		f.plan.OnResponse(h)
	}
	return f.from.WriteHead(h, body, end)
}

func (f *forwarding) noteGRPC(h *message.Head) {
	if status, ok := h.Get("grpc-status"); ok {
		f.res.GRPCStatus, f.res.HasGRPC = status, true
	}
}

// abandon ends a try because the caller's side of it has failed.
func (f *forwarding) abandon(to Stream, err error) error {
	to.Reset(http2.ErrCodeCancel)
	f.fail(err, true)
	return err
}

// timeout resets a stream that does not answer in time. A nil one never does.
type timeout struct {
	mu    sync.Mutex // guards what follows
	timer *time.Timer
	fired bool
}

func startTimeout(after time.Duration, s Stream) *timeout {
	t := &timeout{}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.timer = time.AfterFunc(after, func() {
		t.mu.Lock()
		t.fired = true
		t.mu.Unlock()
		s.Reset(http2.ErrCodeCancel)
	})
	return t
}

// stop reports whether the timeout has not fired.
func (t *timeout) stop() bool {
	if t == nil {
		return true
	}
	t.timer.Stop()
	t.mu.Lock()
	defer t.mu.Unlock()
	return !t.fired
}

func (t *timeout) explain(err error) error {
	if !t.stop() {
		return ErrTimeout
	}
	return err
}

var heads = sync.Pool{New: func() any { return new(message.Head) }}
