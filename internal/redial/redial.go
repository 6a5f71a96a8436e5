// Package redial keeps the reads of informers waiting while the API server is away.
//
// An informer of client-go doubles the delay between its attempts up to a minute, so
// after an outage a controller may read stale data for that long. With this transport the
// attempt itself waits: it dials again every few seconds until the API server answers.
//
//	informer ─GET─▶ RoundTripper ─▶ dial: refused ─▶ 1 to 3 s ─▶ dial: refused ─▶ … ─▶ answer
//
// What always holds:
//   - Only requests that change nothing, GET, are sent again.
//   - A request ends when its context is done, with the last error.
//   - The delays are random, so the informers of many processes do not return at once.
package redial

import (
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"time"

	"github.com/causeway-mesh/causeway/internal/backoff"
)

const (
	// minDelay is the shortest time between two attempts of one request.
	minDelay = time.Second
	// maxDelay is the longest.
	maxDelay = 3 * time.Second
	// maxAnswers is how many answers in a row a request hides from the informer. More of
	// them have another cause than an outage, which the informer logs.
	maxAnswers = 5
	// DialTimeout is the timeout of one connection attempt with Dialer. The default of
	// client-go, 30 s, would hide that a network path is back.
	DialTimeout = 5 * time.Second
)

// Dialer returns the dialer for a client with this transport.
func Dialer() *net.Dialer { return &net.Dialer{Timeout: DialTimeout, KeepAlive: 30 * time.Second} }

// RoundTripper returns a transport that sends a GET request again, through next, while
// the API server cannot be reached, or something before it answers 502, 503 or 504.
func RoundTripper(next http.RoundTripper) http.RoundTripper { return roundTripper{next} }

type roundTripper struct{ next http.RoundTripper }

// RoundTrip implements [http.RoundTripper].
func (t roundTripper) RoundTrip(r *http.Request) (*http.Response, error) {
	for answers := 0; ; {
		resp, err := t.next.RoundTrip(r)
		if r.Method != http.MethodGet || !away(resp, err) || r.Context().Err() != nil {
			return resp, err
		}
		if resp != nil {
			if answers++; answers > maxAnswers {
				return resp, err
			}
		}
		if !backoff.Sleep(r.Context(), minDelay+rand.N(maxDelay-minDelay)) {
			return resp, err
		}
		if resp != nil {
			resp.Body.Close()
		}
	}
}

// WrappedRoundTripper lets client-go find the transport below this one.
func (t roundTripper) WrappedRoundTripper() http.RoundTripper { return t.next }

// away reports whether an attempt says that nothing serves the API now. Of the errors
// only those of the dial count: others may have a cause that the informer must log.
func away(resp *http.Response, err error) bool {
	if err != nil {
		op, ok := errors.AsType[*net.OpError](err)
		return ok && op.Op == "dial"
	}
	switch resp.StatusCode {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}
