package cli

import (
	"net/http"
	"sync"
	"time"
)

// serverClock hears an API server's clock from its answers. The zero value has this machine's.
type serverClock struct {
	mu  sync.Mutex // guards off
	off time.Duration
}

// now is the API server's time, to half a second.
func (c *serverClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.off)
}

// listen puts the clock between a client and its transport.
func (c *serverClock) listen(next http.RoundTripper) http.RoundTripper { return &heard{next, c} }

// heard is a transport whose answers' dates set a clock.
type heard struct {
	next  http.RoundTripper
	clock *serverClock
}

// RoundTrip implements http.RoundTripper.
func (h *heard) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := h.next.RoundTrip(r)
	if err != nil {
		return answer, err
	}
	if date, err := http.ParseTime(answer.Header.Get("Date")); err == nil {
		h.clock.mu.Lock()
		h.clock.off = time.Until(date.Add(time.Second / 2)) // it is in whole seconds
		h.clock.mu.Unlock()
	}
	return answer, nil
}

// WrappedRoundTripper lets client-go find what it has to tell when a request is given up; it warns on stderr where it cannot.
func (h *heard) WrappedRoundTripper() http.RoundTripper { return h.next }
