package wire

import (
	"cmp"
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"
)

// Sink receives what a peer says of itself. Its methods are called one at a time for each
// Client, and for each Link of a Server. The peer's messages wait meanwhile, so a slow
// Sink slows the peer down.
type Sink interface {
	// Hello is called at the beginning of each stream, whenever the peer's Hello changes,
	// and when its clock moves. skew is the peer's clock minus ours, including the
	// message's way. h must not be changed. Hello returns the number of the newest issuer
	// list of the peer that is applied, for the Ack.
	Hello(link string, h *Hello, skew time.Duration) (issuerNumber uint64)
	// IssuersApplied is called when the number of our own issuer list that the peer says
	// to have applied changes on a stream.
	IssuersApplied(link string, issuerNumber uint64)
	// Freshness is called with each heartbeat that carries it. It says how current the
	// replica at the other end of the stream is.
	Freshness(link string, f Freshness)
	// Disconnected is called after each failed attempt of a Client and at the end of each
	// of its streams, except one that Reopen ended. For a Server it is called after the
	// last stream of a Link. err is nil if the peer ended the stream in good order.
	Disconnected(link string, err error)
}

// Timing tunes a stream. The zero value works. Both sides must agree.
type Timing struct {
	// Heartbeat is the time between heartbeats; 0 means 2 s.
	Heartbeat time.Duration
	// Silence is the time without any message that ends a stream; 0 means 6 s.
	Silence time.Duration
	// SendTimeout is how long the peer may take to read a message; 0 means 30 s.
	SendTimeout time.Duration
}

func (t Timing) orDefaults() Timing {
	return Timing{
		Heartbeat:   cmp.Or(t.Heartbeat, 2*time.Second),
		Silence:     cmp.Or(t.Silence, 6*time.Second),
		SendTimeout: cmp.Or(t.SendTimeout, 30*time.Second),
	}
}

// skewStep is how far a clock must move before Sink.Hello is called again.
const skewStep = 10 * time.Second

// transport is either side of the gRPC stream.
type transport interface {
	Send(*Message) error
	Recv() (*Message, error)
}

// stream runs the protocol on one transport.
type stream struct {
	*protocolState
	transport transport
	link      string
	board     *Board
	budget    *peerBudget
	timing    Timing
	verify    func() error    // called with each heartbeat; an error ends the stream
	abort     func()          // unblocks Send
	stop      <-chan struct{} // closed when this side shuts down; may be nil
	wakeup    chan struct{}   // holds one value

	sink     Sink
	deliver  sync.Locker // held while sink is called
	ended    bool        // guarded by deliver: sink is not called any more
	greeting *Hello      // guarded by deliver: the peer's last
	skew     time.Duration

	// These are called by the receiving goroutine; nil on a Server's stream.
	onHello     func()
	onFreshness func(Freshness)
	onUpdate    func(complete bool)
}

// run sends and receives until the stream or ctx, which is the stream's, ends, and
// returns why; nil if the peer ended it in good order. A goroutine that start starts ends
// soon after the stream has. The sink is not called after run has returned.
func (s *stream) run(ctx context.Context, start func(func())) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(s.timing.Silence, func() { cancel(ErrSilent) })
	defer silence.Stop()
	start(func() { cancel(s.receiveLoop(ctx, silence)) })
	err := s.sendLoop(ctx)
	if errors.Is(err, io.EOF) {
		<-ctx.Done() // after a failed Send, Recv returns the reason
	}
	if ctx.Err() != nil && !errors.Is(err, ErrSlow) {
		err = context.Cause(ctx)
	}
	s.deliver.Lock()
	s.ended = true
	s.deliver.Unlock()
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// sendLoop sends what is due, until ctx ends.
func (s *stream) sendLoop(ctx context.Context) error {
	heartbeat := time.NewTicker(s.timing.Heartbeat)
	defer heartbeat.Stop()
	hello, helloChanged := s.board.currentHello()
	s.helloDue(hello)
	var reader *catalogReader // nil until the peer subscribes
	defer func() {
		if reader != nil {
			reader.close()
		}
	}()
	var paused <-chan time.Time // not nil: the peer is over its budget until then
	for {
		if bounds, subscribed := s.subscription(); subscribed && reader == nil {
			reader = s.board.newReader(s.link, bounds)
			s.setUpdates(reader)
		}
		for m := s.next(time.Now(), paused == nil); m != nil; m = s.next(time.Now(), paused == nil) {
			if err := s.send(ctx, m); err != nil {
				return err
			}
			if m.GetUpdate() == nil {
				continue
			}
			if d := s.budget.send(proto.Size(m)); d > 0 {
				paused = time.After(d)
			}
		}
		var changed <-chan struct{}
		if reader != nil && paused == nil && s.windowOpen() {
			changed = reader.changed()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.stop:
			return errStopping
		case <-s.wakeup:
		case <-changed:
		case <-paused:
			paused = nil
		case <-helloChanged:
			hello, helloChanged = s.board.currentHello()
			s.helloDue(hello)
		case <-heartbeat.C:
			if err := s.verify(); err != nil {
				return err
			}
			s.heartbeatDue(s.board.currentFreshness())
		}
	}
}

// linger is how long a message being sent may take when the stream is over, so that a
// peer that reads learns why.
const linger = time.Second

// send sends m. It outlasts ctx by linger at most, and waits SendTimeout for a peer that
// does not read.
func (s *stream) send(ctx context.Context, m *Message) error {
	sent := make(chan struct{})
	defer close(sent)
	defer context.AfterFunc(ctx, func() {
		select {
		case <-sent:
		case <-time.After(linger):
			s.abort()
		}
	})()
	var late atomic.Bool
	timeout := time.AfterFunc(s.timing.SendTimeout, func() {
		late.Store(true)
		s.abort()
	})
	defer timeout.Stop()
	err := s.transport.Send(m)
	if err != nil && late.Load() {
		return ErrSlow
	}
	return err
}

// wake makes sendLoop look for what is due.
func (s *stream) wake() {
	select {
	case s.wakeup <- struct{}{}:
	default:
	}
}

// receiveLoop takes in messages until the stream ends, and returns why.
func (s *stream) receiveLoop(ctx context.Context, silence *time.Timer) error {
	for {
		silence.Reset(s.timing.Silence)
		m, err := s.transport.Recv()
		if err != nil {
			return err
		}
		silence.Stop() // a delay from here on is not the peer's silence
		if err := s.budget.receive(ctx, proto.Size(m)); err != nil {
			return err
		}
		start := time.Now()
		e, err := s.handle(m)
		if err != nil {
			return err
		}
		if !s.dispatch(e) {
			return context.Canceled
		}
		worked := time.Since(start)
		if e.update && s.onUpdate != nil {
			s.onUpdate(e.complete)
		}
		s.wake()
		if err := s.budget.worked(ctx, worked); err != nil {
			return err
		}
	}
}

// dispatch calls the sink with what was received. It returns false when the stream is
// over.
func (s *stream) dispatch(e event) bool {
	s.deliver.Lock()
	defer s.deliver.Unlock()
	if s.ended {
		return false
	}
	if e.timeMs != 0 || e.hello != nil {
		s.dispatchHello(e)
	}
	if e.issuersApplied != 0 {
		s.sink.IssuersApplied(s.link, e.issuersApplied)
	}
	if e.freshness != nil {
		s.sink.Freshness(s.link, *e.freshness)
		if s.onFreshness != nil {
			s.onFreshness(*e.freshness)
		}
	}
	return true
}

func (s *stream) dispatchHello(e event) {
	skew := time.Until(time.UnixMilli(e.timeMs))
	moved := (skew - s.skew).Abs() >= skewStep
	first := s.greeting == nil
	if e.hello != nil {
		s.greeting = e.hello
	}
	if e.hello != nil || moved {
		s.skew = skew
		s.issuersDue(s.sink.Hello(s.link, s.greeting, skew))
	}
	if first && s.onHello != nil {
		s.onHello()
	}
}
