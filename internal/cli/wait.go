package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// errTooLong is the cause of a context that --timeout ended.
var errTooLong = errors.New("it took too long")

// poll is how often a wait looks again.
const poll = 500 * time.Millisecond

// progress writes a line when something that it says has changed.
type progress struct {
	w     io.Writer
	start time.Time
	last  map[string]string
}

func newProgress(w io.Writer) *progress {
	return &progress{w: w, start: time.Now(), last: map[string]string{}}
}

// say writes "what: state", unless that was the last thing said of what.
func (p *progress) say(what, state string) {
	if p.last[what] == state {
		return
	}
	p.last[what] = state
	fmt.Fprintf(p.w, "[%3ds] %s: %s\n", int(time.Since(p.start).Seconds()), what, state)
}

// wait is for one thing that takes its time.
type wait struct {
	// what is waited for, what is said of it when it is there, and, in an error, when it is not.
	what, done, undone string
	// hint is what may help if it takes too long.
	hint string
	// state says what is still missing; "": nothing.
	state func() (string, error)
}

// until looks at all waits every half second, and says what they say, until none misses anything.
func (p *progress) until(ctx context.Context, waits ...wait) error {
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		var open []wait
		for _, w := range waits {
			s, err := w.state()
			switch {
			case err != nil && ctx.Err() != nil:
				open = append(open, w) // told below
			case err != nil:
				return fmt.Errorf("look at %s: %w", w.what, err)
			case s == "":
				p.say(w.what, w.done)
			default:
				p.say(w.what, s)
				open = append(open, w)
			}
		}
		if waits = open; len(waits) == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return p.gaveUp(ctx, waits[0])
		}
	}
}

func (p *progress) gaveUp(ctx context.Context, w wait) error {
	err := fmt.Errorf("%s %s: %s: %w", w.what, w.undone, p.last[w.what], context.Cause(ctx))
	if !errors.Is(err, errTooLong) {
		return err
	}
	return withHint(err, w.hint)
}
