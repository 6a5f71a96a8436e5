package agent

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/http2"

	"github.com/causeway-mesh/causeway/internal/afterfunc"
	"github.com/causeway-mesh/causeway/internal/dataplane/balance"
	"github.com/causeway-mesh/causeway/internal/dataplane/httprelay"
	"github.com/causeway-mesh/causeway/internal/dataplane/message"
	"github.com/causeway-mesh/causeway/internal/dataplane/mux"
	"github.com/causeway-mesh/causeway/internal/dataplane/reqmetrics"
	"github.com/causeway-mesh/causeway/internal/dataplane/reqroute"
)

// Copies of requests, for routes with the filter RequestMirror. The original does not wait
// for a copy, and does not fail with it.

const (
	// maxCopiedBody is the size of the body of a request that is copied.
	maxCopiedBody = 64 << 10
	// maxCopies is how many copies an agent may have open, and maxCopiesOfRequest how many
	// one request has.
	maxCopies          = 256
	maxCopiesOfRequest = 4
	// copyTimeout bounds a copy until the end of its response.
	copyTimeout = 10 * time.Second
)

// The outcomes of copies, as a metric label.
const (
	copyAnswered   = "answered"
	copyFailed     = "failed"
	copyTooLarge   = "too_large"
	copyOverBudget = "over_budget" // too many copies of a request or in all, or no memory
	copyIncomplete = "incomplete"  // the original ended before its body did
)

// newMirrored returns the metric of copies.
func newMirrored() *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "causeway_agent_mirrored_requests_total",
		Help: "Copies of requests that routes ask for, by outcome: answered, failed, or not sent because the body is too large, the budget is used up, or the original ended first.",
	}, []string{"outcome"})
	for _, outcome := range []string{copyAnswered, copyFailed, copyTooLarge, copyOverBudget, copyIncomplete} {
		c.WithLabelValues(outcome)
	}
	return c
}

// addCopy adds a backend that gets a copy of the request.
func (r *outboundRequest) addCopy(s *state, ref reqroute.Ref) {
	if len(r.routed.copies) >= maxCopiesOfRequest {
		r.conn.agent.metrics.mirrored.WithLabelValues(copyOverBudget).Inc()
		return
	}
	b, err := r.conn.backendAt(s, ref)
	if err != nil {
		r.conn.agent.metrics.mirrored.WithLabelValues(copyFailed).Inc()
		return
	}
	r.routed.copies = append(r.routed.copies, b)
}

// beginCopies sends the copies of a request, as soon as its body is known. The stream that
// it returns replaces from. The caller must call end when the request has ended.
func (r *outboundRequest) beginCopies(from httprelay.Stream, ended bool) (_ httprelay.Stream, end func()) {
	if len(r.routed.copies) == 0 {
		return from, func() {}
	}
	c := &requestCopy{agent: r.conn.agent, to: r.routed.copies, head: *r.routed.copied, memory: r.backend.memory}
	c.head.Del("Expect")
	if ended {
		c.send()
		return from, func() {}
	}
	return &copiedStream{from, c}, func() { c.drop(copyIncomplete) }
}

// A copiedStream keeps what is read from a stream for copies.
type copiedStream struct {
	httprelay.Stream
	copy *requestCopy
}

func (s *copiedStream) ReadBuffered(p []byte) (n int, end bool, err error) {
	n, end, err = s.Stream.ReadBuffered(p)
	s.copy.add(p[:n], end, err)
	return n, end, err
}

func (s *copiedStream) ReadBody(p []byte) (n int, end bool, err error) {
	n, end, err = s.Stream.ReadBody(p)
	s.copy.add(p[:n], end, err)
	return n, end, err
}

// A requestCopy is the head and the body of a request that is copied.
type requestCopy struct {
	agent  *Agent
	to     []*requestBackend
	head   message.Head
	memory httprelay.Memory

	mu   sync.Mutex // guards what follows
	body []byte
	done bool // it was sent or dropped
}

// add keeps bytes of the body. It sends the copies at its end.
func (c *requestCopy) add(p []byte, end bool, err error) {
	c.mu.Lock()
	done, size := c.done, len(c.body)+len(p)
	c.mu.Unlock()
	switch {
	case done:
	case err != nil:
		c.drop(copyIncomplete)
	case size > maxCopiedBody:
		c.drop(copyTooLarge)
	case len(p) > 0 && !c.memory.Reserve(len(p)):
		c.drop(copyOverBudget)
	default:
		c.mu.Lock()
		c.body = append(c.body, p...)
		c.mu.Unlock()
		if end {
			c.send()
		}
	}
}

// end marks the copy as sent or dropped. It returns false if it was that already.
func (c *requestCopy) end() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.done
	c.done = true
	return !was
}

// drop gives the copies up, unless they were sent.
func (c *requestCopy) drop(outcome string) {
	if c.end() {
		c.memory.Release(len(c.body))
		c.agent.metrics.mirrored.WithLabelValues(outcome).Add(float64(len(c.to)))
		c.body = nil
	}
}

// send sends the copies in the background.
func (c *requestCopy) send() {
	if !c.end() {
		return
	}
	left := new(atomic.Int64)
	left.Store(int64(len(c.to)))
	for _, b := range c.to {
		finish := func(outcome string) {
			c.agent.metrics.mirrored.WithLabelValues(outcome).Inc()
			if left.Add(-1) == 0 {
				c.memory.Release(len(c.body))
			}
		}
		if c.agent.copies.Add(1) > maxCopies || !c.agent.requests.begin() {
			c.agent.copies.Add(-1)
			finish(copyOverBudget)
			continue
		}
		go func() {
			defer c.agent.requests.work.Done()
			defer c.agent.copies.Add(-1)
			outcome := copyAnswered
			if err := b.sendCopy(&c.head, c.body); err != nil {
				outcome = copyFailed
				c.agent.log.Debug("copy of a request failed", "mirror", b.out.mirror.name, "error", err)
			}
			finish(outcome)
		}()
	}
}

// sendCopy sends a whole request once, and reads its response.
func (b *requestBackend) sendCopy(h *message.Head, body []byte) error {
	a, start := b.agent, time.Now()
	if err := b.checkCaller(); err != nil {
		return err
	}
	if err := b.acquire(); err != nil {
		return err
	}
	defer b.release()
	ctx, cancel := context.WithTimeout(a.baseCtx, copyTimeout)
	defer cancel()
	ctx, release := a.leases.grant(ctx, a.state.Load, b.out.checkTarget)
	defer release()
	recorder := b.recorders[0]
	if isGRPC(h) {
		recorder = b.recorders[1]
	}
	counted := recorder.Start(start)
	result := reqmetrics.Result{RequestBytes: uint64(len(body))}
	defer func() {
		result.Duration = time.Since(start)
		counted.Finish(time.Now(), result)
	}()
	s, choice, err := a.pick(ctx, b.group, b.out, nil)
	if err != nil {
		return err
	}
	sent := time.Now()
	var grpc uint32
	result.Status, grpc, err = exchangeCopy(ctx, s, h, body)
	b.group.balancer.Finish(choice, time.Since(sent), outcomeOfCopy(choice, result.Status, grpc, err), time.Now())
	return err
}

// outcomeOfCopy returns what the response to a copy says about its endpoint. It is not a
// reason to eject the endpoint, and an error does not end an ejection.
func outcomeOfCopy(c balance.Choice, status int, grpc uint32, err error) balance.Outcome {
	if grpc != 0 {
		status = httpStatusOfGRPC(grpc)
	}
	switch {
	case err != nil:
		return balance.Neutral
	case balance.OutcomeOf(status, balance.EjectOnGatewayErrors) == balance.Success:
		return balance.Success
	case c.Trial:
		return balance.Neutral
	}
	return balance.ServerError
}

// exchangeCopy sends a request over a session and discards its response, until ctx ends.
// It returns the HTTP status and the gRPC status, which is 0 if there is none.
func exchangeCopy(ctx context.Context, s *requestSession, h *message.Head, body []byte) (status int, grpc uint32, err error) {
	stop := func() bool { return true }
	defer func() { stop() }()
	stream, err := s.mux.OpenWith(h, nil, len(body) == 0, mux.OpenOptions{Opening: func(s *mux.Stream) {
		stop = afterfunc.Start(ctx, func() { s.Reset(http2.ErrCodeCancel) })
	}})
	if err != nil {
		return 0, 0, err
	}
	defer stream.Reset(http2.ErrCodeCancel)
	if len(body) > 0 {
		if _, err := stream.Write(body, true); err != nil {
			return 0, 0, err
		}
	}
	var response message.Head
	ended := false
	for status < 200 {
		response.Reset()
		if ended, err = stream.ReadHead(&response); err != nil {
			return 0, 0, err
		}
		status = response.Status
	}
	if value, far := response.Get(httprelay.ErrorField); far {
		return status, 0, fmt.Errorf("the far agent refuses it: %s", httprelay.ErrorReason(value))
	}
	grpc, _ = grpcStatusOf(&response)
	buf := make([]byte, 4<<10)
	for !ended {
		if _, ended, err = (httprelay.MuxStream{Stream: stream}).ReadBody(buf); err != nil {
			return status, grpc, err
		}
	}
	if stream.Trailers(&response) {
		grpc, _ = grpcStatusOf(&response)
	}
	return status, grpc, nil
}
