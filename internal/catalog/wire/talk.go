package wire

import (
	"cmp"
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/causeway-mesh/causeway/internal/catalog"
)

// Sink learns what a peer says. Its methods are called one at a time for each
// Client, and for each Link of a Server. The peer is not heard meanwhile, and so is
// slowed down by a Sink that is slow.
type Sink interface {
	// Hello tells who the peer of link is, at the beginning of each stream, whenever
	// it changes, and when its clock does. skew is the peer's clock minus ours, the
	// message's way included. h must not be changed. It returns the number of the
	// newest issuer list of the peer that is applied, which is told to the peer.
	Hello(link string, h *Hello, skew time.Duration) (issuerNumber uint64)
	// Trusts tells which number of our own issuer list the peer has applied, whenever
	// that changes on a stream. It is the peer's word, and no more.
	Trusts(link string, issuerNumber uint64)
	// Catalog hands over the peer's whole catalog. It must not be changed, and
	// Service.Validate has not looked at it yet.
	Catalog(link string, services map[catalog.Key]catalog.Service)
	// Disconnected tells that no stream is left and why, after each attempt of a Client
	// and after the last stream of a Server's Link. err is nil if the peer ended it in
	// good order. What was handed over remains as true as it was.
	Disconnected(link string, err error)
}

// Timing tunes a stream. The zero value works; both ends must agree.
type Timing struct {
	// Heartbeat is the time between heartbeats; 0 means 2 s.
	Heartbeat time.Duration
	// Silence ends a stream on which nothing is heard; 0 means 6 s.
	Silence time.Duration
	// SendTimeout ends a stream whose peer takes nothing; 0 means 30 s.
	SendTimeout time.Duration
}

func (t Timing) orDefaults() Timing {
	return Timing{
		Heartbeat:   cmp.Or(t.Heartbeat, 2*time.Second),
		Silence:     cmp.Or(t.Silence, 6*time.Second),
		SendTimeout: cmp.Or(t.SendTimeout, 30*time.Second),
	}
}

const (
	// A peer's messages are taken at this rate, after a burst that lets any first
	// catalog run at full speed; beyond it, flow control slows the peer down.
	messagesPerSecond = 100
	messageBurst      = 1000
	// skewStep is by how much a clock has to move to be told again.
	skewStep = 10 * time.Second
)

// stream is either end of the gRPC stream.
type stream interface {
	Send(*Message) error
	Recv() (*Message, error)
}

// talk runs one conversation on one stream.
type talk struct {
	*conversation
	stream stream
	link   string
	board  *Board
	timing Timing
	check  func() error    // asked with each heartbeat; an error ends the stream
	cut    func()          // frees a Send that blocks
	stop   <-chan struct{} // closed when this end has to go; may be nil
	woken  chan struct{}   // holds one

	sink     Sink
	deliver  sync.Locker // held while sink is called
	over     bool        // guarded by deliver: sink is not called any more
	greeting *Hello      // guarded by deliver: the peer's last
	skew     time.Duration
	last     map[string]*Service // touched by listen alone
	services map[catalog.Key]catalog.Service
}

// run talks until the stream or ctx, which is the stream's, ends, or the peer
// deserves no more, and returns why; nil if the peer ended it in good order. What
// start starts ends soon after the stream has; the sink is not called once run has
// returned.
func (t *talk) run(ctx context.Context, start func(func())) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(t.timing.Silence, func() { cancel(ErrSilent) })
	defer silence.Stop()
	start(func() { cancel(t.listen(ctx, silence)) })
	err := t.speak(ctx)
	if errors.Is(err, io.EOF) {
		<-ctx.Done() // a Send that failed leaves the reason to Recv
	}
	if ctx.Err() != nil && !errors.Is(err, ErrSlow) {
		err = context.Cause(ctx)
	}
	t.deliver.Lock()
	t.over = true
	t.deliver.Unlock()
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// speak says what is due, until ctx ends.
func (t *talk) speak(ctx context.Context) error {
	heartbeat := time.NewTicker(t.timing.Heartbeat)
	defer heartbeat.Stop()
	hello, _, helloChanged := t.board.hello.Read(struct{}{})
	t.greet(hello)
	var catalogChanged <-chan struct{} // nil until the peer subscribes
	for {
		if catalogChanged == nil && t.subscribed() {
			catalogChanged = t.offerNewest()
		}
		for m := t.next(time.Now()); m != nil; m = t.next(time.Now()) {
			if err := t.send(ctx, m); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.stop:
			return errStopping
		case <-t.woken:
		case <-catalogChanged:
			catalogChanged = t.offerNewest()
		case <-helloChanged:
			hello, _, helloChanged = t.board.hello.Read(struct{}{})
			t.greet(hello)
		case <-heartbeat.C:
			if err := t.check(); err != nil {
				return err
			}
			t.beat()
		}
	}
}

// offerNewest offers the Link's catalog, if there is one.
func (t *talk) offerNewest() (changed <-chan struct{}) {
	view, ok, changed := t.board.catalogs.Read(t.link)
	if ok {
		t.offer(view)
	}
	return changed
}

// linger is how long a message under way may take when the talk is over, so that a
// peer that reads learns why.
const linger = time.Second

// send sends m. It hardly outlasts ctx, nor waits long for a peer that takes nothing.
func (t *talk) send(ctx context.Context, m *Message) error {
	sent := make(chan struct{})
	defer close(sent)
	defer context.AfterFunc(ctx, func() {
		select {
		case <-sent:
		case <-time.After(linger):
			t.cut()
		}
	})()
	var late atomic.Bool
	timeout := time.AfterFunc(t.timing.SendTimeout, func() {
		late.Store(true)
		t.cut()
	})
	defer timeout.Stop()
	err := t.stream.Send(m)
	if err != nil && late.Load() {
		return ErrSlow
	}
	return err
}

// wake makes speak look again.
func (t *talk) wake() {
	select {
	case t.woken <- struct{}{}:
	default:
	}
}

// listen hears the peer until the stream ends, and returns why.
func (t *talk) listen(ctx context.Context, silence *time.Timer) error {
	limiter := rate.NewLimiter(messagesPerSecond, messageBurst)
	for {
		silence.Reset(t.timing.Silence)
		m, err := t.stream.Recv()
		if err != nil {
			return err
		}
		silence.Stop() // what takes long from here is not the peer
		if err := limiter.Wait(ctx); err != nil {
			return err
		}
		h, err := t.hear(m)
		if err != nil {
			return err
		}
		if !t.tell(h) {
			return context.Canceled
		}
		t.wake()
	}
}

// tell hands over to the sink what was heard, and makes the answers due. It
// returns false when the talk is over.
func (t *talk) tell(h news) bool {
	t.deliver.Lock()
	defer t.deliver.Unlock()
	if t.over {
		return false
	}
	if h.timeMs != 0 {
		skew := time.Until(time.UnixMilli(h.timeMs))
		moved := (skew - t.skew).Abs() >= skewStep
		if h.hello != nil {
			t.greeting = h.hello
		}
		if h.hello != nil || moved {
			t.skew = skew
			t.trust(t.sink.Hello(t.link, t.greeting, skew))
		}
	}
	if h.trusts != 0 {
		t.sink.Trusts(t.link, h.trusts)
	}
	if h.view != nil {
		t.translate(h.view)
		t.sink.Catalog(t.link, t.services)
	}
	if h.update {
		t.took()
	}
	return true
}

// translate makes view the services, anew only where it changed.
func (t *talk) translate(view map[string]*Service) {
	services := make(map[catalog.Key]catalog.Service, len(view))
	for key, m := range view {
		k := catalog.Key{Namespace: m.GetNamespace(), Name: m.GetName()}
		if s, ok := t.services[k]; ok && t.last[key] == m {
			services[k] = s
		} else {
			services[k] = decode(m)
		}
	}
	t.last, t.services = view, services
}
