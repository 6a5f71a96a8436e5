package httprelay

import (
	"sync"
	"time"

	"golang.org/x/net/http2"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
)

// An upload forwards the body of a request to the stream of the current try, in a
// goroutine of its own. Until the response begins it keeps the bytes that it has read, so
// that another try can send them again. It drops them all once it has sent ReplayBytes
// and must read more.
type upload struct {
	from   Stream
	memory Memory // nil: no bound
	ran    sync.WaitGroup

	mu      sync.Mutex // guards what follows
	changed sync.Cond
	to      Stream // of the current try; nil: none yet, or a write to it has failed
	full    Stream // has had the whole body
	kept    []byte // what was read so far and not given up; only run appends to it
	sent    int    // how much of kept to has had
	replay  bool   // kept is all that was read
	// exhausted: memory is used up. What is kept is dropped once it is written.
	exhausted bool
	held      int  // of memory
	deciding  bool // Plan.Retry may still ask for another try, so kept must stay
	final     bool // no other try follows
	ended     bool // the body was read to its end
	tail      *message.Head
	stopped   bool
	total     int64
	err       error // of from
}

// newUpload starts an upload, which waits for its first attach.
func newUpload(from Stream, first []byte, memory Memory) *upload {
	u := &upload{from: from, memory: memory, replay: true, kept: append([]byte(nil), first...), total: int64(len(first))}
	u.changed.L = &u.mu
	u.ran.Go(u.run)
	return u
}

// body returns the bytes with which the next try is to be opened. end reports that the
// message ends after them.
func (u *upload) body() (b []byte, end bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.to = nil
	return u.kept, u.ended && u.tail == nil
}

// attach makes s, which was opened with a result of body, the stream of the current
// try. It resets s if the body has broken off since.
func (u *upload) attach(s Stream, sent int, end bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.to, u.sent, u.deciding = s, sent, false
	if end {
		u.full = s
	}
	if u.err != nil {
		s.Reset(http2.ErrCodeCancel) // it cannot get the rest
	}
	u.changed.Broadcast()
}

// decide reports whether another try can have all bytes that were read. If so, the upload
// keeps these bytes until the next call of attach, finalize or stop.
func (u *upload) decide() (replayable bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.deciding = u.replay && !u.exhausted && u.err == nil
	return u.deciding
}

// broken returns why the body broke off, or nil. u may be nil: there is no body.
func (u *upload) broken() error {
	if u == nil {
		return nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.err
}

// finalize records that no other try follows.
func (u *upload) finalize() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.final, u.deciding = true, false
	u.changed.Broadcast()
}

// lateWrite is how long stop waits for the end of a write of the last bytes. A response
// can come before the write has returned.
const lateWrite = 100 * time.Millisecond

// stop ends the upload and waits for it. unread reports that the body was not forwarded
// completely. err is why it could not be read.
func (u *upload) stop() (unread bool, err error) {
	u.mu.Lock()
	u.stopped = true
	to, ended, full := u.to, u.ended, u.to != nil && u.full == u.to
	err = u.err // later errors are of StopReading
	u.changed.Broadcast()
	u.mu.Unlock()
	switch {
	case full:
	case ended && to != nil:
		late := time.AfterFunc(lateWrite, func() { u.cutWrite(to) })
		defer late.Stop()
	default:
		if to != nil {
			to.Reset(http2.ErrCodeCancel) // interrupts a write
		}
		u.from.StopReading() // interrupts a read
	}
	u.ran.Wait()
	u.mu.Lock()
	defer u.mu.Unlock()
	u.forget()
	return u.full == nil || u.full != u.to, err
}

// cutWrite resets a stream that has not had the whole body. If it has, another request
// may already use its connection.
func (u *upload) cutWrite(to Stream) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.full != to {
		to.Reset(http2.ErrCodeCancel)
	}
}

// run forwards the body until the stream of the last try has had all of it, or until
// stop is called.
func (u *upload) run() {
	for {
		to, data, end, ok := u.await()
		switch {
		case !ok:
			return
		case len(data) > 0 || end:
			u.write(to, data, end)
		default:
			u.read()
		}
	}
}

// await waits until there is something to do: to write data or the end to a stream, or,
// without either, to read more. It returns false if nothing is left to do.
func (u *upload) await() (to Stream, data []byte, end, ok bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for {
		switch {
		case u.stopped || u.err != nil, u.final && u.to != nil && u.full == u.to:
			return nil, nil, false, false
		case u.to == nil || u.full == u.to:
			u.changed.Wait()
		case u.sent < len(u.kept) || u.ended:
			return u.to, u.kept[u.sent:], u.ended, true
		case !u.final && !u.exhausted && len(u.kept) < ReplayBytes:
			return nil, nil, false, true
		case u.deciding:
			u.changed.Wait()
		default:
			u.forget()
			return nil, nil, false, true
		}
	}
}

// forget keeps nothing any more. u.mu is held.
func (u *upload) forget() {
	u.replay, u.kept, u.sent = false, nil, 0
	if u.held > 0 {
		u.memory.Release(u.held)
		u.held = 0
	}
}

// room returns how many bytes may be read at once.
func (u *upload) room() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.replay {
		return min(bufferSize, ReplayBytes-len(u.kept))
	}
	return bufferSize
}

// write writes data to a stream, and the end of the message if end is set. data is the
// unsent part of kept, or, if nothing is kept, the bytes that were just read.
func (u *upload) write(to Stream, data []byte, end bool) {
	tail := u.tail // set before ended
	var err error
	if len(data) > 0 || tail == nil {
		_, err = to.Write(data, end && tail == nil)
	}
	if err == nil && end && tail != nil {
		err = to.WriteTrailers(tail)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case u.to != to: // another try has begun
	case err != nil:
		u.to = nil
	default:
		u.sent += len(data)
		if end {
			u.full = to
		}
	}
}

// read reads more of the body. It holds no buffer while it waits.
func (u *upload) read() {
	u.from.AwaitBody()
	buf := largeBuffers.get()
	defer buf.free()
	n, end, err := u.from.ReadBody(buf.b[:u.room()])
	var tail *message.Head
	if end {
		if tail = new(message.Head); !u.from.ReadTrailers(tail) {
			tail = nil
		}
	}
	if to := u.record(buf.b[:n], end, tail, err); to != nil && (n > 0 || end) {
		u.write(to, buf.b[:n], end)
	}
}

// record records what was read, and keeps it for the next write. If it is not to be
// kept, record returns the stream to which it must be written.
func (u *upload) record(b []byte, end bool, tail *message.Head, err error) (to Stream) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.total += int64(len(b))
	if err != nil {
		u.err = err
		if u.to != nil {
			u.to.Reset(http2.ErrCodeCancel) // interrupts the wait for the response
		}
		return nil
	}
	u.tail, u.ended = tail, end
	if u.replay {
		if u.memory != nil && !u.exhausted {
			if u.exhausted = !u.memory.Reserve(len(b)); !u.exhausted {
				u.held += len(b)
			}
		}
		u.kept = append(u.kept, b...)
		return nil
	}
	return u.to
}
