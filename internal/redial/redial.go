// Package redial retries the reads of informers while the API server is unreachable.
//
// An informer of client-go doubles the delay between its attempts up to a minute, so
// after an outage a controller may read stale data for that long. With this transport an
// attempt does not fail while the API server is unreachable. The transport sends the
// request again every few seconds until the API server answers it.
//
//	informer ─GET─▶ RoundTripper ─▶ dial: refused ─▶ 1 to 3 s ─▶ dial: refused ─▶ … ─▶ answer
//
// What always holds:
//   - Only GET requests are sent again, because they change nothing.
//   - A request ends when its context is done. It returns the last response or error.
//   - A request returns the sixth answer of 502, 503 or 504. Only failed dials are
//     retried without a limit.
//   - The delays are random, so that the informers of many processes do not all retry at
//     the same time.
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
	// maxAnswers is how many answers of 502, 503 or 504 a request hides from the
	// informer. If there are more, their cause is not an outage, and the informer must
	// log it.
	maxAnswers = 5
	// DialTimeout is the timeout of one connection attempt with Dialer. The default of
	// client-go, 30 s, would delay requests after a network path works again.
	DialTimeout = 5 * time.Second
)

// Dialer returns the dialer for a client with this transport.
func Dialer() *net.Dialer { return &net.Dialer{Timeout: DialTimeout, KeepAlive: 30 * time.Second} }

// RoundTripper returns a transport that sends requests through next. It sends a GET
// request again while the API server is unreachable, or while the answer is 502, 503 or
// 504.
func RoundTripper(next http.RoundTripper) http.RoundTripper { return roundTripper{next} }

type roundTripper struct{ next http.RoundTripper }

// RoundTrip implements [http.RoundTripper].
func (t roundTripper) RoundTrip(r *http.Request) (*http.Response, error) {
	for answers := 0; ; {
		resp, err := t.next.RoundTrip(r)
		if r.Method != http.MethodGet || !unreachable(resp, err) || r.Context().Err() != nil {
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

// unreachable reports whether the result of an attempt shows that nothing serves the API
// now. Of the errors only those of the dial count, because others may have a cause that
// the informer must log.
func unreachable(resp *http.Response, err error) bool {
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
