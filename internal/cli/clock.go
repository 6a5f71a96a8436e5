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
func (c *serverClock) listen(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		answer, err := next.RoundTrip(r)
		if err != nil {
			return answer, err
		}
		if date, err := http.ParseTime(answer.Header.Get("Date")); err == nil {
			c.mu.Lock()
			c.off = time.Until(date.Add(time.Second / 2)) // it is in whole seconds
			c.mu.Unlock()
		}
		return answer, nil
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

// RoundTrip implements http.RoundTripper.
func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
