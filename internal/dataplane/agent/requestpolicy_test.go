package agent

import (
	"io"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2"

	"github.com/causeway-mesh/causeway/internal/dataplane/httprelay"
	"github.com/causeway-mesh/causeway/internal/dataplane/mux"
	"github.com/causeway-mesh/causeway/internal/dataplane/retry"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
	"github.com/causeway-mesh/causeway/internal/trafficsettings"
)

func TestRetryPolicy(t *testing.T) {
	defaults := retry.Default()
	with := func(edit func(*retry.Policy)) retry.Policy {
		p := defaults
		p.Methods = slices.Clone(p.Methods)
		edit(&p)
		return p
	}
	cases := map[string]struct {
		settings trafficsettings.Settings
		want     retry.Policy
	}{
		"nothing is set":   {trafficsettings.Settings{}, defaults},
		"no retries":       {trafficsettings.Settings{Retries: trafficsettings.None}, with(func(p *retry.Policy) { p.MaxRetries = 0 })},
		"retries":          {trafficsettings.Settings{Retries: 5}, with(func(p *retry.Policy) { p.MaxRetries = 5 })},
		"only resets":      {trafficsettings.Settings{RetryOn: trafficsettings.RetryReset}, with(func(p *retry.Policy) { p.On = retry.OnReset | retry.OnTryTimeout })},
		"only not reached": {trafficsettings.Settings{RetryOn: trafficsettings.RetryConnectFailure}, with(func(p *retry.Policy) { p.On = retry.OnConnectionFailed })},
		"gateway errors":   {trafficsettings.Settings{RetryOn: trafficsettings.RetryGatewayError}, with(func(p *retry.Policy) { p.On = retry.OnGatewayErrors })},
		"server errors":    {trafficsettings.Settings{RetryOn: trafficsettings.Retry5xx}, with(func(p *retry.Policy) { p.On = retry.OnServerErrors })},
		"gRPC UNAVAILABLE": {trafficsettings.Settings{RetryOn: trafficsettings.RetryUnavailable}, with(func(p *retry.Policy) { p.On, p.GRPCStatuses = 0, 1<<14 })},
		"other methods too": {trafficsettings.Settings{RetryOn: trafficsettings.RetryReset | trafficsettings.RetryIdempotent}, with(func(p *retry.Policy) {
			p.On = retry.OnReset | retry.OnTryTimeout
			p.Methods = append(p.Methods, "PUT", "DELETE")
		})},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			if d := cmp.Diff(tc.want, mirrorPort{settings: tc.settings}.retryPolicy()); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// TestClassify: how a failed try counts.
func TestClassify(t *testing.T) {
	for name, tc := range map[string]struct {
		err  error
		want retry.Failure
	}{
		"left out by GOAWAY": {&mux.ResetError{Code: http2.ErrCodeRefusedStream, NotProcessed: true, GoingAway: true}, retry.GoingAway},
		"refused":            {&mux.ResetError{Code: http2.ErrCodeRefusedStream, NotProcessed: true}, retry.NotProcessed},
		"reset":              {&mux.ResetError{Code: http2.ErrCodeInternal}, retry.Reset},
		"session gone":       {mux.ErrClosed, retry.NotProcessed},
		"no pod":             {refuse(reasonOther, errNoSession), retry.ConnectFailed},
		"timeout":            {httprelay.ErrTimeout, retry.TryTimeout},
	} {
		if got, _ := classify(httprelay.Failure{Err: tc.err}); got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

// TestNoRetries: with retries set to 0, an application that resets each connection
// receives each request once. By default it receives a GET three times.
func TestNoRetries(t *testing.T) {
	for name, tc := range map[string]struct {
		retries *uint32
		want    int64
	}{"default": {nil, 3}, "none": {new(uint32(0)), 1}} {
		t.Run(name, func(t *testing.T) {
			eachVersion(t, func(t *testing.T, h2 bool) {
				var received atomic.Int64
				w := newHarness(t, serveHTTP(func(http.ResponseWriter, *http.Request) {
					received.Add(1)
					panic(http.ErrAbortHandler)
				}))
				w.change(&w.westView, "frontend/shop/bar-east", func(r *wire.Resource) {
					backendOf(r).Settings = &wire.TrafficSettings{Retries: tc.retries}
				})
				w.learnClientFirst()
				resp, err := w.client(alice, h2).Get("http://bar-east/")
				if err != nil {
					t.Fatal(err)
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if n := received.Load(); n != tc.want || resp.StatusCode < 500 {
					t.Errorf("status %d, and the application received %d requests, want %d", resp.StatusCode, n, tc.want)
				}
			})
		})
	}
}
