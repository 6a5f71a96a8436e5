package redial

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var errRefused = &net.OpError{Op: "dial", Err: errors.New("connection refused")}

type answer = func() (*http.Response, error)

// attempts is a transport that returns its answers in order, and then repeats the last
// one.
type attempts struct {
	answers []answer
	at      []time.Duration // when each attempt began, after the first
	open    int             // bodies that are open
	begin   time.Time
}

func (a *attempts) RoundTrip(*http.Request) (*http.Response, error) {
	if a.begin.IsZero() {
		a.begin = time.Now()
	}
	a.at = append(a.at, time.Since(a.begin))
	return a.answers[min(len(a.at), len(a.answers))-1]()
}

func (a *attempts) status(code int) answer {
	return func() (*http.Response, error) {
		a.open++
		return &http.Response{StatusCode: code, Body: &body{Reader: strings.NewReader(""), a: a}}, nil
	}
}

type body struct {
	io.Reader
	a *attempts
}

func (b *body) Close() error { b.a.open--; return nil }

func fails(err error) answer {
	return func() (*http.Response, error) { return nil, err }
}

func TestRoundTripper(t *testing.T) {
	cut := errors.New("the connection was cut")
	cases := map[string]struct {
		why      string
		method   string
		answers  func(a *attempts) []answer
		attempts int
		status   int
		err      error
	}{
		"an answer": {
			why: "nothing is wrong", method: http.MethodGet, attempts: 1, status: 200,
			answers: func(a *attempts) []answer {
				return []answer{a.status(200)}
			},
		},
		"refused, then an answer": {
			why: "the informer must not notice the outage", method: http.MethodGet,
			attempts: 3, status: 200,
			answers: func(a *attempts) []answer {
				refused := fails(errRefused)
				return []answer{refused, refused, a.status(200)}
			},
		},
		"a load balancer without servers": {
			why: "it is an outage too", method: http.MethodGet, attempts: 4, status: 200,
			answers: func(a *attempts) []answer {
				return []answer{
					a.status(502), a.status(503), a.status(504), a.status(200),
				}
			},
		},
		"an API server that cannot answer": {
			why: "the informer logs it, and backs off", method: http.MethodGet,
			attempts: maxAnswers + 1, status: 504,
			answers: func(a *attempts) []answer { return []answer{a.status(504)} },
		},
		"a write": {
			why: "its caller decides whether to repeat it", method: http.MethodPatch,
			attempts: 1, err: errRefused,
			answers: func(*attempts) []answer {
				return []answer{fails(errRefused)}
			},
		},
		"forbidden": {
			why: "the informer logs it", method: http.MethodGet, attempts: 1, status: 403,
			answers: func(a *attempts) []answer {
				return []answer{a.status(403)}
			},
		},
		"a connection that is cut": {
			why: "the informer knows what it has read", method: http.MethodGet, attempts: 1, err: cut,
			answers: func(*attempts) []answer {
				return []answer{fails(cut)}
			},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := &attempts{}
				a.answers = tc.answers(a)
				resp, err := get(t.Context(), a, tc.method)
				if !errors.Is(err, tc.err) || resp != nil && resp.StatusCode != tc.status {
					t.Errorf("got %v, %v, want status %d, error %v: %s", resp, err, tc.status, tc.err, tc.why)
				}
				if len(a.at) != tc.attempts {
					t.Errorf("%d attempts, want %d: %s", len(a.at), tc.attempts, tc.why)
				}
				if resp != nil {
					resp.Body.Close()
				}
				if a.open != 0 {
					t.Errorf("%d bodies stay open", a.open)
				}
			})
		})
	}
}

func get(ctx context.Context, next http.RoundTripper, method string) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, method, "https://api.example/", nil)
	if err != nil {
		return nil, err
	}
	return RoundTripper(next).RoundTrip(r)
}

// During a long outage the delays stay short, and they differ.
func TestDelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &attempts{answers: []answer{fails(errRefused)}}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		if _, err := get(ctx, a, http.MethodGet); !errors.Is(err, errRefused) {
			t.Errorf("the request ended with %v, want the last error", err)
		}
		if n := len(a.at); n < 200 || n > 600 {
			t.Fatalf("%d attempts in 10 min", n)
		}
		apart := make(map[time.Duration]bool)
		for i := range a.at[1:] {
			d := a.at[i+1] - a.at[i]
			if apart[d] = true; d < minDelay || d >= maxDelay {
				t.Errorf("attempt %d came %v after the one before", i+1, d)
			}
		}
		if len(apart) < 100 {
			t.Errorf("only %d different delays: many processes would retry at the same time", len(apart))
		}
	})
}
