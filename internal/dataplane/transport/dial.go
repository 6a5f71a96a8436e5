package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

// ErrNoAddress reports a dial without an address.
var ErrNoAddress = errors.New("no address to dial")

// Dialer dials one of several addresses. The zero value is ready to use.
type Dialer struct {
	// Timeout bounds each attempt. Zero: 3 s.
	Timeout time.Duration
	// Delay is the head start of an address over the next one. Zero: 250 ms.
	Delay time.Duration
	// Dial makes one attempt on a TCP address and must end with its context. Nil: a
	// net.Dialer's.
	Dial func(ctx context.Context, address string) (net.Conn, error)
}

// DialFirst dials the addresses in their order. It starts each attempt when the
// previous one has failed or Delay has passed. It returns the first connection, tuned
// if it is TCP, and the index of its address. It waits until the other attempts have
// ended, and closes their connections. The error wraps those of all attempts, or is
// ErrNoAddress, or ctx's cause.
func (d Dialer) DialFirst(ctx context.Context, addresses ...string) (net.Conn, int, error) {
	switch len(addresses) {
	case 0:
		return nil, 0, ErrNoAddress
	case 1: // there is no race
		conn, err := d.dial(ctx, addresses[0])
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = errors.Join(err, cause)
			}
			return nil, 0, fmt.Errorf("dial: %w", err)
		}
		return conn, 0, nil
	}
	attempts, cancel := context.WithCancel(ctx)
	r := race{d: d, addresses: addresses, results: make(chan attempt), errs: make([]error, len(addresses))}
	won := r.run(attempts)
	cancel()
	for r.running > 0 { // losers
		if lost := r.wait(nil); lost.conn != nil {
			lost.conn.Close()
		}
	}
	if won.conn == nil {
		if err := context.Cause(ctx); err != nil {
			return nil, 0, fmt.Errorf("dial: %w", errors.Join(append(r.errs, err)...))
		}
		return nil, 0, fmt.Errorf("dial: %w", errors.Join(r.errs...))
	}
	return won.conn, won.index, nil
}

// race is one call of DialFirst, which receives the results of its goroutines.
type race struct {
	d         Dialer
	addresses []string
	started   int
	running   int
	results   chan attempt
	errs      []error // by address
}

type attempt struct {
	conn  net.Conn
	index int
	err   error
}

// run starts attempts until one succeeds or all have failed.
func (r *race) run(ctx context.Context) attempt {
	delay := r.d.Delay
	if delay == 0 {
		delay = 250 * time.Millisecond
	}
	for r.started < len(r.addresses) || r.running > 0 {
		if r.started < len(r.addresses) && ctx.Err() == nil {
			r.start(ctx)
		}
		var timer *time.Timer
		var next <-chan time.Time
		if r.started < len(r.addresses) && ctx.Err() == nil {
			timer = time.NewTimer(delay)
			next = timer.C
		}
		if r.running == 0 {
			return attempt{} // ctx ended
		}
		a := r.wait(next)
		if timer != nil {
			timer.Stop()
		}
		if a.conn != nil {
			return a
		}
	}
	return attempt{}
}

func (r *race) start(ctx context.Context) {
	index := r.started
	r.started++
	r.running++
	go func() { // received by wait, by run or by DialFirst
		conn, err := r.d.dial(ctx, r.addresses[index])
		r.results <- attempt{conn, index, err}
	}()
}

// wait returns the next result, or nothing when it is time for the next address.
func (r *race) wait(next <-chan time.Time) attempt {
	select {
	case a := <-r.results:
		r.running--
		if a.err != nil {
			r.errs[a.index] = a.err
		}
		return a
	case <-next:
		return attempt{}
	}
}

// dial makes one attempt within the timeout.
func (d Dialer) dial(ctx context.Context, address string) (net.Conn, error) {
	timeout := d.Timeout
	if timeout == 0 {
		timeout = 3 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	dial := d.Dial
	if dial == nil {
		dial = func(ctx context.Context, address string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		}
	}
	conn, err := dial(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", address, err)
	}
	if t, ok := conn.(*net.TCPConn); ok {
		if err := Tune(t); err != nil {
			t.Close()
			return nil, err
		}
	}
	return conn, nil
}
